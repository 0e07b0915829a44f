"""Fine-tuning: what is trained, how fast, from where, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from headstart.base.artifacts import FinetuneFolder, PrepareFolder
from headstart.base.artifacts.card import Frame
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.errors import HeadstartError
from headstart.base.sections import Finetune
from headstart.data.packed import Pixels
from headstart.engines import activations
from headstart.models.backbones import architecture
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.preprocessing import View
from headstart.training import augmentation, finetuned, trainer
from headstart.training import network as training_network
from headstart.training.checkpoint import Checkpoint
from headstart.training.network import TrainedNetwork
from headstart.training.recipe import Recipe, TrainingSetup

CPU = torch.device("cpu")
SMALL = """
from torch import nn
def net(num_classes):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
    network.input_size = 64
    return network
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Pixels, pd.DataFrame]:
    return packed(tmp_path / "prepare")


def packed(folder: Path) -> tuple[Pixels, pd.DataFrame]:
    """24 pictures, red or blue by class, packed as prepare packs them."""
    rng = np.random.default_rng(0)
    arrays, rows = [], []
    for number in range(24):
        label = ("blue", "red")[number % 2]
        array = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
        array[..., 0 if label == "red" else 2] += 120
        arrays.append(array)
        rows.append({"label": label, "split": "val" if number >= 16 else "train", "group": str(number)})
    folder.mkdir()
    PrepareFolder(folder).pixels.write_bytes(b"".join(a.tobytes() for a in arrays))
    sides = [40] * len(arrays)
    table = {"offset": [4800 * n for n in range(24)], "length": [4800] * 24, "height": sides, "width": sides}
    pq.write_table(pa.table(table), PrepareFolder(folder).pixels_index)
    return Pixels(folder), pd.DataFrame(rows)


def head(width: int = 8) -> FittedHead:
    generator = torch.Generator().manual_seed(0)
    return FittedHead(LinearHead.of(torch.randn(2, width, generator=generator), torch.zeros(2)), 1.5, ("blue", "red"))


VIEW = View(32, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def recipe(scratch: bool = False, **settings: object) -> Recipe:
    values = {"epochs": 2, "batch_size": 8, "size_ratio": 0.5, "scratch_passes": 1} | settings
    return Recipe(Finetune.model_validate(values), scratch=scratch, seed=3, pictures=16)


def train(network: Path, pictures: tuple[Pixels, pd.DataFrame], folder: Path, how: Recipe, **more: object) -> None:
    trunk = architecture("small.py:net", network).trunk(seed=1)
    resume = more.pop("resume", folder.parent / "resume")
    setup = TrainingSetup(trunk, head(), *pictures, how, CPU, engine=str(more.pop("engine", "auto")))
    trainer.finetune(setup, folder, resume, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("unfreeze", "share"), [("last", 0.25), ("half", 0.5), ("all", 1.0)])
def test_as_many_blocks_are_trained_as_asked_and_the_lower_ones_slower(unfreeze: str, share: float) -> None:
    trunk = architecture("resnet18").trunk()
    model = Classifier(trunk, FittedHead(LinearHead.of(torch.zeros(2, 512), torch.zeros(2)), 1.0, ("a", "b")))
    groups = recipe(unfreeze=unfreeze, lr=1e-3, layer_decay=0.5).parameter_groups(model)
    blocks = trunk.blocks()
    trained = [block for block in blocks if block[0].requires_grad]
    assert len(trained) == -(-len(blocks) * share // 1)
    assert trained == blocks[len(blocks) - len(trained) :]
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(blocks[-1][0])] == 1e-3
    assert rate[id(trained[0][0])] == pytest.approx(1e-3 * 0.5 ** (len(trained) - 1))
    assert all((group["weight_decay"] > 0) == (group["params"][0].ndim > 1) for group in groups)
    assert sum(p.requires_grad for p in model.parameters()) == sum(len(group["params"]) for group in groups)


@pytest.mark.parametrize("unfreeze", ["last", "half", "all"])
def test_nothing_of_a_random_network_stays_frozen(unfreeze: str) -> None:
    trunk = architecture("resnet18").trunk()
    model = Classifier(trunk, FittedHead(LinearHead.of(torch.zeros(2, 512), torch.zeros(2)), 1.0, ("a", "b")))
    replace(recipe(unfreeze=unfreeze), scratch=True).parameter_groups(model)
    assert all(p.requires_grad for p in model.parameters())


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_the_rate_warms_up_and_ends_near_zero(steps: int, warmup: float) -> None:
    factors = [recipe(warmup=warmup).schedule(step, steps) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_of_few_steps_none_is_taken_at_the_full_rate() -> None:
    assert max(recipe().schedule(step, 12) for step in range(12)) < 0.25
    assert max(recipe().schedule(step, 400) for step in range(400)) > 0.95
    assert recipe(warmup=0.0).schedule(1, 12) > 0.95
    assert recipe(scratch=True).schedule(1, 12) > 0.95


def test_from_random_weights_small_sets_have_more_epochs_and_pictures_are_small() -> None:
    settings = Finetune(epochs=4, patience=2, size_ratio=1.25)
    of = {n: Recipe(settings, scratch=True, seed=0, pictures=n) for n in (10, 1000, 10**6)}
    assert [how.epochs for how in of.values()] == [100, 40, 10]
    assert all(how.patience == how.epochs for how in of.values())
    assert [of[10].size_ratio(size) for size in (256, 64)] == [0.5, 1.25]
    pretrained = replace(of[10], scratch=False)
    assert (pretrained.epochs, pretrained.patience, pretrained.size_ratio(256)) == (4, 2, 1.25)


def test_mixing_goes_from_the_start_to_the_trained_weights() -> None:
    start = {"w": torch.tensor([0.0, 2.0]), "count": torch.tensor(1)}
    trained = {"w": torch.tensor([1.0, 4.0]), "count": torch.tensor(9)}
    assert trainer.mix(start, trained, 1.0)["w"].tolist() == [1.0, 4.0]
    assert trainer.mix(start, trained, 0.5)["w"].tolist() == [0.5, 3.0]
    assert trainer.mix(start, trained, 0.5)["count"] == 9


def test_the_mixture_kept_is_the_calmest_that_validation_allows(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    train(network, pictures, tmp_path / "out", recipe(lr=0.01, head_lr=0.01))
    details = FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details)
    (kept,) = [
        row
        for row in details.mixtures
        if (row.epochs, row.trained_share) == (details.averaged_epochs, details.trained_share)
    ]
    calmer = [row for row in details.mixtures if row.trained_share < kept.trained_share]
    assert all(row.val_log_loss > kept.val_log_loss for row in calmer)
    alone = [row.trained_share for row in details.mixtures if row.epochs == [details.best_epoch]]
    assert alone == list(trainer.MIXTURES)
    model = finetuned.load_finetuned(tmp_path / "out", architecture("small.py:net", network).trunk(), head())
    assert model is not None
    rows = [n for n in range(24) if n >= 16]
    again = torch.cat(list(model.eval().logits_of(pictures[0], rows, 4, CPU)))
    assert torch.allclose(again, finetuned.load_val_logits(tmp_path / "out"), atol=1e-5)


def test_a_soup_takes_the_epochs_with_which_validation_does_not_get_worse() -> None:
    states = [{"w": torch.tensor([w]), "count": torch.tensor(n)} for n, w in enumerate((4.0, 9.0, 0.0))]

    def soup(target: float) -> tuple[list[int], float]:
        taken, weights = trainer.greedy_soup(states, lambda state: abs(float(state["w"]) - target))
        return taken, float(weights["w"])

    assert soup(4) == ([0], 4)
    assert soup(2) == ([0, 2], 2)
    assert soup(7) == ([0, 1], 6.5)
    assert soup(5.3) == ([0, 1, 2], pytest.approx(13 / 3))  # 4, then 6.5 and 4.33


def test_a_soup_is_kept_only_where_validation_does_not_say_that_it_is_worse(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [0, 1, 2]

    def all_of_them(states: list[dict[str, torch.Tensor]], _: object) -> tuple[list[int], dict[str, torch.Tensor]]:
        return everything, {
            key: torch.stack([s[key].float() for s in states]).mean(0).to(v) for key, v in states[0].items()
        }

    monkeypatch.setattr(trainer, "greedy_soup", all_of_them)
    train(network, pictures, tmp_path / "out", recipe(epochs=4, lr=0.1, head_lr=0.1, warmup=0.0, ema=0.0))
    details = FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details)
    by_loss = (
        pd.read_csv(FinetuneFolder(tmp_path, "out").curve).sort_values("val_log_loss", kind="stable")["epoch"].tolist()
    )
    assert [row.epochs for row in details.mixtures] == [by_loss[:3], by_loss[:1]] * len(trainer.MIXTURES)
    assert {row.trained_share for row in details.mixtures} == set(trainer.MIXTURES)
    assert (details.averaged_epochs, details.trained_share) in [(r.epochs, r.trained_share) for r in details.mixtures]


def test_a_checkpoint_holds_of_the_best_epochs_what_training_has_changed(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    setup = TrainingSetup(architecture("small.py:net", network).trunk(seed=1), head(), *pictures, recipe(), CPU)
    trained = TrainedNetwork(setup, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    kept = Checkpoint(tmp_path / "epoch.pt", trained, torch.optim.AdamW(trained.parameter_groups), CPU)
    for loss in (0.5, 0.3, 0.9, 0.3, 0.4):
        with torch.no_grad():
            next(trained.average.module.head.parameters()).add_(1)  # type: ignore[union-attr, operator]
        kept.add({"val_log_loss": loss})
    assert [epoch.epoch for epoch in kept.best] == [2, 4, 5]
    assert all(set(epoch.weights) < set(trained.start) for epoch in kept.best)


def test_training_learns_what_the_start_did_not_know(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []
    how = recipe(scratch=True, scratch_lr=0.02, scratch_epochs=12)
    train(network, pictures, tmp_path / "out", how, on_epoch=rows.append)
    assert rows[-1]["val_accuracy"] == 1.0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details).trained_share == 1.0


@pytest.mark.parametrize("settings", [{}, {"unfreeze": "last", "views": 2}], ids=["other views every epoch", "two views"])
def test_a_training_that_stops_in_between_ends_with_the_same_bytes(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, settings: dict[str, object]
) -> None:
    class StopError(Exception):
        pass

    def stop_after_one(row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            raise StopError

    train(network, pictures, tmp_path / "whole", recipe(epochs=3, **settings))
    with pytest.raises(StopError):
        train(
            network,
            pictures,
            tmp_path / "parts",
            recipe(epochs=3, **settings),
            resume=tmp_path / "r",
            on_epoch=stop_after_one,
        )
    assert (tmp_path / "r" / "epoch.pt").exists()
    seen: list[float] = []
    train(
        network, pictures, tmp_path / "parts", recipe(epochs=3, **settings),
        resume=tmp_path / "r", on_epoch=lambda row: seen.append(row["epoch"]),
    )  # fmt: skip
    assert seen == [1, 2, 3]
    assert not (tmp_path / "r").exists()
    for name in ("weights.safetensors", "finetune.json", "curve.csv", "val_logits.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_all_views_of_an_epoch_are_those_it_would_train_on(pictures: tuple[Pixels, pd.DataFrame]) -> None:
    pixels, manifest = pictures
    rows = np.flatnonzero(manifest["split"] == "train")
    views = augmentation.TrainingViews(pixels, rows, rows % 2, augmentation.augmentation(recipe().settings, VIEW), seed=5)
    first, second = (torch.cat(list(views.all(epoch, 6))) for epoch in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.stack([views[1, n][0] for n in range(len(views))]))


@pytest.mark.parametrize(("size", "ratio", "expected"), [(112, 1.0, 112), (112, 0.5, 64), (64, 2.0, 128), (20, 0.3, 32)])
def test_a_network_is_trained_at_its_own_size_or_in_steps(network: Path, size: int, ratio: float, expected: int) -> None:
    assert augmentation.train_size(architecture("small.py:net", network, size=size).trunk(), ratio) == expected


@pytest.mark.parametrize("augment", ["none", "light", "trivial"])
@pytest.mark.parametrize("frame", ["centre", "squeeze", "pad"])
def test_training_sees_of_a_picture_what_the_view_shows(frame: Frame, augment: Literal["none", "light", "trivial"]) -> None:
    picture = torch.full((3, 40, 200), 200, dtype=torch.uint8)
    picture[:, :, :30] = 0
    settings = recipe(augment=augment, crop_min=0.9).settings
    changed = augmentation.augmentation(settings, replace(VIEW, frame=frame))
    torch.manual_seed(0)
    seen = torch.stack([changed(picture) for _ in range(20)])
    assert seen.shape == (20, 3, 32, 32)
    assert (str(augmentation.augmentation(settings, VIEW)) == str(changed)) == (frame == "centre")
    sees_the_end = (seen < 20).flatten(1).any(1).float().mean()
    assert (sees_the_end > 0.7) == (frame != "centre")


def test_a_second_training_on_the_same_views_does_not_run_the_frozen_layers_again(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    def trained(name: str, **settings: object) -> bytes:
        how = recipe(unfreeze="last", views=2, **settings)
        train(network, pictures, tmp_path / name, how, resume=tmp_path / "r", cache=kept)
        return FinetuneFolder(tmp_path, name).weights.read_bytes()

    first = trained("first")
    (folder,) = kept.iterdir()
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(written) == {"validation", "view-1", "view-2"}
    assert trained("again") == first
    assert trained("faster", lr=0.01) != first
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    trained("cropped", crop_min=0.9)
    assert len(list(kept.iterdir())) == 2
    network.write_text(SMALL.replace("input_size = 64", "input_size = 64\n    network.mean = (0.9, 0.1, 0.1)"))
    assert trained("seen otherwise") != first
    assert len(list(kept.iterdir())) == 3


def test_answers_that_nobody_asked_for_longest_make_room(
    pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "KEPT", 100)
    folders = []
    for number in range(3):
        folders.append(activations.folder_for(tmp_path, torch.nn.Linear(2, 2), "torch", pictures[0], (number,)))
        (folders[-1] / "view-1").write_bytes(b"x" * 60)
    assert [folder.exists() for folder in folders] == [False, True, True]


@pytest.mark.parametrize(("kept", "still"), [("frozen", True), ("trained", False)])
def test_batch_norm_statistics_move_only_where_asked(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, kept: str, still: bool
) -> None:
    before = architecture("small.py:net", network).trunk(seed=1).state_dict()["network.1.running_mean"]
    train(network, pictures, tmp_path / "out", recipe(batch_norm=kept))
    after = load_file(FinetuneFolder(tmp_path, "out").weights)["trunk.network.1.running_mean"]
    assert torch.equal(before, after) is still


def test_a_training_that_diverges_says_so(network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"training diverged in epoch \d.*lower finetune.lr"):
        train(network, pictures, tmp_path / "out", recipe(lr=1e9, head_lr=1e9, warmup=0.0))


def test_a_network_is_trained_and_used_at_a_larger_size_where_asked(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    train(network, pictures, tmp_path / "out", recipe(epochs=1, size_ratio=1.5))
    assert FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details).size == 96
    model = finetuned.load_finetuned(tmp_path / "out", architecture("small.py:net", network).trunk(), head())
    assert model is not None
    assert model.trunk.view.size == 96


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_convolutional_networks_take_pictures_larger_than_they_were_made_for(name: str) -> None:
    trunk = architecture(name).trunk()
    assert augmentation.train_size(trunk, 1.4) == 320 == augmentation.wanted_size(224, 1.4)


def test_a_transformer_that_is_built_for_a_size_says_that_it_takes_no_other(
    pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = architecture("vit_tiny_patch16_224").trunk()
    setup = TrainingSetup(trunk, head(192), *pictures, recipe(epochs=1, size_ratio=1.5, unfreeze="last"), CPU)
    trainer.finetune(setup, tmp_path / "out", tmp_path / "r")
    assert FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details).size == 224
    assert "finetune: the network takes pictures of 224 pixels only, and is trained on those\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "warned"), [("auto", False), ("fp32", False), ("bf16", True)], ids=["auto", "fp32", "bf16"]
)
def test_a_cpu_trains_in_fp32_unless_told_otherwise_and_then_says_what_that_costs(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    asked: str, warned: bool,
) -> None:  # fmt: skip
    train(network, pictures, tmp_path / "out", recipe(epochs=1, precision=asked))
    found = FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details).precision
    assert found.precision == ("bf16" if warned else "fp32")
    assert found.why == ("bfloat16 takes longer on a CPU" if asked == "auto" else "params.yaml asks for it")
    told = "finetune.precision: bf16 takes longer than fp32 on a CPU; it is used since you ask for it\n"
    assert (told in capsys.readouterr().err) == warned


def test_auto_and_fp32_end_with_the_same_weights_on_a_cpu(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    for precision in ("auto", "fp32"):
        train(network, pictures, tmp_path / precision, recipe(epochs=1, precision=precision))
    first, second = (FinetuneFolder(tmp_path, name).weights.read_bytes() for name in ("auto", "fp32"))
    assert first == second


@pytest.mark.parametrize(("allowed", "taken"), [(1.0, True), (-1.0, False)], ids=["answers agree", "log-loss moves"])
def test_where_bf16_is_faster_it_is_taken_if_its_answers_are_the_same(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    allowed: float, taken: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(training_network, "faster_in_bf16", lambda device: True)
    monkeypatch.setattr(training_network, "LOG_LOSS", allowed)
    train(network, pictures, tmp_path / "out", recipe(epochs=1))
    found = FinetuneDetails.read(FinetuneFolder(tmp_path, "out").details).precision
    assert found.precision == ("bf16" if taken else "fp32")
    assert ("answers stay the same on 8 validation pictures" if taken else "refused: the log-loss moves by") in found.why


def test_a_network_that_takes_one_size_only_is_trained_at_that_size() -> None:
    assert augmentation.train_size(architecture("vit_tiny_patch16_224").trunk(), 0.7) == 224
    assert augmentation.train_size(architecture("squeezenet1_0").trunk(), 0.7) == 160


def test_training_above_layers_that_openvino_runs_ends_where_torch_would(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    for engine in ("torch", "openvino"):
        train(network, pictures, tmp_path / engine, recipe(unfreeze="last", epochs=1), engine=engine)
        assert FinetuneDetails.read(FinetuneFolder(tmp_path, engine).details).frozen_part.engine == engine
    first, second = (load_file(FinetuneFolder(tmp_path, engine).weights) for engine in ("torch", "openvino"))
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-3) for key in first)


DAMAGE = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "junk": lambda content: b"no checkpoint at all",
    "a bit flipped in the weights": lambda content: content[:2000] + bytes([content[2000] ^ 4]) + content[2001:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_saved_epoch_that_is_damaged_is_trained_again(
    damage: str,
    network: Path,
    pictures: tuple[Pixels, pd.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class StopError(Exception):
        pass

    def stop(_: dict[str, float]) -> None:
        raise StopError

    how, resume = recipe(), tmp_path / "r"
    train(network, pictures, tmp_path / "whole", how)
    with pytest.raises(StopError):
        train(network, pictures, tmp_path / "parts", how, resume=resume, on_epoch=stop)
    saved = resume / "epoch.pt"
    saved.write_bytes(DAMAGE[damage](saved.read_bytes()))
    capsys.readouterr()
    train(network, pictures, tmp_path / "parts", how, resume=resume)
    assert capsys.readouterr().err.count(f"headstart: {saved} is damaged or of an older version; it is made again\n") == 1
    for name in ("weights.safetensors", "finetune.json", "curve.csv", "val_logits.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["validation", "view-1"])
def test_activations_that_are_damaged_are_computed_again(
    file: str, damage: str, network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    how = recipe(unfreeze="last", views=1)
    train(network, pictures, tmp_path / "first", how, resume=tmp_path / "r", cache=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").glob(f"*/{file}")
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGE[damage](whole))
    train(network, pictures, tmp_path / "again", how, resume=tmp_path / "r", cache=tmp_path / "kept")
    assert kept.read_bytes() == whole
    first, again = (FinetuneFolder(tmp_path, name).weights.read_bytes() for name in ("first", "again"))
    assert first == again
