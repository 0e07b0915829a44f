"""Features are the frozen backbone's own answers, one row per picture, in manifest order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from headstart.base.arrays import Ints
from headstart.base.artifacts import PrepareFolder
from headstart.base.device import processor
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json
from headstart.data.decode import encode
from headstart.data.packed import Pixels
from headstart.engines import activations
from headstart.engines.base import Engine, Forward, Precision
from headstart.engines.batching import inference_batch
from headstart.engines.select import ENGINES, SAMPLE
from headstart.models.backbones import architecture
from headstart.models.preprocessing import View
from headstart.models.trunk import Trunk
from headstart.training import features as training_features
from headstart.training.feature_files import load_features
from headstart.training.features import FeatureExtractor, extract

CPU = torch.device("cpu")
TWENTY = torch.arange(40.0).reshape(20, 2)


def packed(folder: Path, count: int, quality: int | None, taken: slice = slice(None)) -> tuple[Pixels, pd.DataFrame]:
    """Pictures of many sizes, packed as prepare packs them, splits and classes shuffled: some of ``count`` drawn ones."""
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(40, 120, (count, 2))]
    drawn = [encode(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)), quality) for h, w in sizes]
    stored, sizes = drawn[taken], sizes[taken]
    folder.mkdir()
    PrepareFolder(folder).pixels.write_bytes(b"".join(stored))
    lengths = np.array([len(s) for s in stored])
    heights, widths = zip(*sizes, strict=True)
    table = {"offset": np.cumsum(lengths) - lengths, "length": lengths, "height": heights, "width": widths}
    table["digest"] = [hashlib.sha256(s).digest() for s in stored]
    packing = {b"headstart": json.dumps({"jpeg_quality": quality}).encode()}
    pq.write_table(pa.table(table).replace_schema_metadata(packing), PrepareFolder(folder).pixels_index)
    manifest = pd.DataFrame(
        {
            "path": [f"{n}.png" for n in range(count)],
            "label": rng.permutation([("wolf", "ant", "bee")[n % 3] for n in range(count)]),
            "split": rng.permutation([("train", "train", "test", "val")[n % 4] for n in range(count)]),
        }
    )
    manifest = manifest.iloc[taken].reset_index(drop=True)
    manifest["group"] = manifest.index.astype(str)  # each on its own
    return Pixels(folder), manifest


@pytest.mark.parametrize("quality", [None, 95], ids=["raw", "jpeg"])
def test_each_row_is_the_forward_pass_of_its_picture_in_manifest_order(tmp_path: Path, quality: int | None) -> None:
    pixels, manifest = packed(tmp_path / "prepare", 90, quality)
    trunk = architecture("test_resnet").trunk()
    extract(trunk, pixels, manifest, CPU, tmp_path / "features")
    for split in ("train", "val", "test"):
        features, labels = load_features(tmp_path / "features", split)
        rows = np.flatnonzero(manifest["split"] == split)
        assert features.shape == (len(rows), trunk(torch.zeros(1, 3, 64, 64)).shape[1])
        assert (features.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert [("ant", "bee", "wolf")[n] for n in labels] == manifest["label"].iloc[rows].tolist()
        with torch.inference_mode():
            direct = torch.cat([trunk(trunk.view.batch([pixels[int(row)]])) for row in rows])
        torch.testing.assert_close(features, direct, rtol=1e-3, atol=1e-4)
        assert direct.std(dim=0).max() > 1e-3  # the pictures do differ
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == [
        "features.json",
        "test.safetensors", "train.safetensors", "val.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(("everything", "batch"), [(10**12, 64), (10**8, 32), (10**7, 4), (1, 1)])
def test_how_many_pass_at_once_depends_on_all_memory_and_not_on_what_is_free(
    monkeypatch: pytest.MonkeyPatch, everything: int, batch: int
) -> None:
    network, view = nn.Conv2d(3, 16, 3, padding=1), View(96, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)  # 590 kB a picture
    for free in (everything, everything // 100):
        monkeypatch.setattr("headstart.engines.batching.memory", lambda device, free=free: (free, everything))
        assert inference_batch(network, view, torch.device("cpu")) == batch


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    pixels, manifest = packed(tmp_path / "prepare", 20, None)
    for name in ("a", "b"):
        extract(architecture("test_resnet").trunk(), pixels, manifest, CPU, tmp_path / name)
    for split in ("train", "val", "test"):
        a, b = ((tmp_path / name / f"{split}.safetensors").read_bytes() for name in ("a", "b"))
        assert a == b


class OneByOne(Engine):
    """As CONTRIBUTING.md describes it."""

    name = "one-by-one"

    def prepare(self, network: nn.Module, sample: Tensor, device: torch.device) -> Callable[[Precision], Forward]:
        @torch.no_grad()
        def forward(pictures: Tensor) -> Tensor:
            return torch.cat([network(picture[None]) for picture in pictures])

        return lambda precision: forward


def test_an_engine_is_added_as_one_class_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, OneByOne.name, OneByOne())
    pixels, manifest = packed(tmp_path / "prepare", 20, None)
    trunk = architecture("test_resnet").trunk()
    for engine in ("torch", OneByOne.name):
        extract(trunk, pixels, manifest, CPU, tmp_path / engine, engine)
        card = read_json(tmp_path / engine / "features.json")
        assert (card["engine"], card["threads"]) == (engine, torch.get_num_threads())
        assert card["processor"] == processor(CPU)
    for split in ("train", "val", "test"):
        expected, found = (load_features(tmp_path / engine, split)[0] for engine in ("torch", OneByOne.name))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def answers_of_twenty(engine: Callable[[torch.Tensor], torch.Tensor], folder: Path) -> NDArray[np.float32]:
    """What ``engine`` makes of TWENTY, four at a time, in folder/found."""
    return activations.answers_of(
        lambda first: map(engine, TWENTY[first:].split(4)), len(TWENTY), folder / "found", lambda count=1: None
    )


def test_answers_that_were_cut_short_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "SAVE_EVERY_S", 0.0)
    shown, most = list[torch.Tensor](), 3

    def engine(batch: torch.Tensor) -> torch.Tensor:
        if len(shown) == most:
            raise KeyboardInterrupt
        shown.append(batch)
        return 2 * batch

    with pytest.raises(KeyboardInterrupt):
        answers_of_twenty(engine, tmp_path)
    assert not (tmp_path / "found").exists()
    shown, most = [], 99
    found = answers_of_twenty(engine, tmp_path)
    assert torch.equal(torch.cat(shown), TWENTY[12:])
    assert np.array_equal(found, 2 * TWENTY)
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_half_finished_answers_that_are_damaged_are_made_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(activations, "SAVE_EVERY_S", 0.0)
    shown = 0

    def engine(batch: torch.Tensor) -> torch.Tensor:
        nonlocal shown
        shown += 1
        if shown == 4:
            raise KeyboardInterrupt
        return 2 * batch

    with pytest.raises(KeyboardInterrupt):
        answers_of_twenty(engine, tmp_path)
    part = tmp_path / ".found.part"
    part.write_bytes(b"\0\0\0@" + part.read_bytes()[4:])
    assert np.array_equal(answers_of_twenty(engine, tmp_path), 2 * TWENTY)
    assert f"{part} is damaged" in capsys.readouterr().err
    assert shown == 4 + 5


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_picture_passes_through_the_network_once_whatever_becomes_of_labels_and_of_other_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(training_features, "inference_batch", lambda *_: 8)
    trunk, shown = architecture("test_resnet").trunk(), 0
    batches = FeatureExtractor.batches

    def counted(self: FeatureExtractor, rows: Ints) -> Iterator[Tensor]:
        nonlocal shown
        for batch in batches(self, rows):
            shown += len(batch) == 8  # SAMPLE comes in two of them
            yield batch

    def passed(name: str, pixels: Pixels, manifest: pd.DataFrame) -> int:
        """Batches that are passed with what was kept; the bytes are those of a run that knows nothing."""
        nonlocal shown
        shown = 0
        extract(trunk, pixels, manifest, CPU, tmp_path / name, engine, kept=tmp_path / "kept")
        found = shown
        extract(trunk, pixels, manifest, CPU, tmp_path / f"{name} anew", engine)
        for file in ("train.safetensors", "val.safetensors", "test.safetensors", "features.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name} anew" / file).read_bytes()
        return found - SAMPLE // 8

    monkeypatch.setattr(FeatureExtractor, "batches", counted)
    pixels, manifest = packed(tmp_path / "prepare", 44, None, slice(40))
    assert passed("first", pixels, manifest) == 5
    relabelled = manifest.assign(label=np.roll(manifest["label"], 1), split=np.roll(manifest["split"], 1))
    assert passed("relabelled", pixels, relabelled) == 0
    assert passed("some left out", *packed(tmp_path / "fewer", 44, None, slice(3, 39))) == 0
    assert passed("some more", *packed(tmp_path / "more", 44, None)) == 1
    assert passed("first again", pixels, manifest) == 0


def test_two_that_make_the_same_features_at_once_both_have_them(tmp_path: Path) -> None:
    pixels, manifest = packed(tmp_path / "prepare", 40, None)

    trunks = {name: architecture("test_resnet").trunk() for name in ("a", "b", "c")}  # random, by torch's one generator

    def run(name: str) -> None:
        extract(trunks[name], pixels, manifest, CPU, tmp_path / name, "torch", kept=tmp_path / "kept")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, trunks))
    for split in ("train", "val", "test"):
        assert len({(tmp_path / name / f"{split}.safetensors").read_bytes() for name in trunks}) == 1
    for home in (tmp_path / "kept").iterdir():
        assert sorted(file.name for file in home.iterdir()) == ["features", "pictures"]


def test_extraction_changes_nothing_in_the_backbone(tmp_path: Path) -> None:
    pixels, manifest = packed(tmp_path / "prepare", 12, None)
    trunk = architecture("test_resnet").trunk()
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    extract(trunk.train(), pixels, manifest, CPU, tmp_path / "features")
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


class Overflows(nn.Module):
    """Answers with infinity where a picture is bright, as a network whose weights went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 1000)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.classifier(pictures.mean(dim=(2, 3)).sub(0.4).clamp(min=0).mul(200).exp() * 1e38)
        return answer


def test_features_that_are_no_numbers_stop_the_stage_and_name_the_picture(tmp_path: Path) -> None:
    pixels, manifest = packed(tmp_path / "prepare", 12, None)
    trunk = Trunk(Overflows(), View(32, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    with pytest.raises(HeadstartError, match=r"no finite numbers, first for \d+.png"):
        extract(trunk, pixels, manifest, CPU, tmp_path / "features")
    assert not list((tmp_path / "features").iterdir())


def test_missing_and_damaged_features_are_said(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"val\.safetensors is not there; run `dvc repro features`"):
        load_features(tmp_path, "val")
    (tmp_path / "val.safetensors").write_bytes(b"damaged")
    with pytest.raises(HeadstartError, match="run `dvc repro --force --single-item features`"):
        load_features(tmp_path, "val")


def test_packed_pictures_that_are_cut_short_are_noticed_before_they_are_used(tmp_path: Path) -> None:
    pixels, _ = packed(tmp_path / "prepare", 3, None)
    whole = pixels[2].copy()
    file = PrepareFolder(tmp_path / "prepare").pixels
    assert np.array_equal(Pixels(tmp_path / "prepare")[2], whole)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(HeadstartError, match=r"pixels\.bin is cut short; run `dvc repro --force --single-item prepare`"):
        Pixels(tmp_path / "prepare")
