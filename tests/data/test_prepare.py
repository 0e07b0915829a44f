"""prepare leaves out what harms, says so, never leaks, and writes the same bytes however it got there."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.base.sections import Data, Prepare, Split
from headstart.base.terminal import many
from headstart.data import decoders
from headstart.data.audit import Audit
from headstart.data.decode import Array
from headstart.data.decoders import Stored
from headstart.data.fetch import fetch
from headstart.data.groups import assign_splits, count_leaks
from headstart.data.manifest import class_names, read_manifest
from headstart.data.pack import PackedPicture
from headstart.data.packed import Pixels
from headstart.data.picture import Picture
from headstart.data.prepare import prepare
from tests.data import hostile
from tests.data.pictures import encoded, everything_below, photograph, write_pictures

PROJECT = Path(__file__).parents[2]
SMALL = Prepare(short_side=64, max_megapixels=1)
EVEN = Split(val=0.3, test=0.3)


def prepared(source: Path, folder: Path, settings: Prepare = SMALL, split: Split = EVEN, **more: int) -> pd.DataFrame:
    pictures = fetch(Data(source=str(source)), Path("fetched.csv"))
    root = source.parent if source.suffix == ".csv" else source
    return prepare(pictures, root, settings, split, more.get("seed", 0), more.get("threads", 1), folder)


def report(folder: Path) -> dict[str, Any]:
    audit: dict[str, Any] = json.loads((folder / "audit.json").read_text())
    return audit


def files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in everything_below(folder).items()}


def plain_set(folder: Path, each: int = 12) -> Path:
    names = {f"{label}/{i:02d}.png": 100 * k + i for k, label in enumerate(("ants", "bees")) for i in range(each)}
    return write_pictures(folder, names)


# --- hostile files and dark ones -----------------------------------------------------------------------------------


def test_files_that_would_end_or_stop_the_stage_are_named_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plain_set(tmp_path / "set")
    for name, data in {
        "icon.ico": hostile.icon_with(hostile.png(60_000, 60_000)),
        "scans.jpg": hostile.jpeg_of_scans(500, 500, 3000),
        "program.jpg": hostile.eps("{} loop"),
        "slow.gif": hostile.gif_of_comments(2_000_000),
    }.items():
        (source / "ants" / name).write_bytes(data)
    with (source / "bees/film.mp4").open("wb") as stream:
        stream.truncate(6_000_000_000)
    monkeypatch.setattr(decoders, "SECONDS_PER_HEADER", 0.5)
    pictures = [
        Picture(path.relative_to(source).as_posix(), path.parent.name, size=1, sha256=str(path))
        for path in sorted(source.rglob("*.*"))
    ]
    manifest = prepare(pictures, source, SMALL, EVEN, 0, 2, tmp_path / "out")
    dropped = {entry["path"]: entry["reason"] for entry in report(tmp_path / "out")["dropped"]}
    assert dropped.pop("ants/icon.ico").startswith("60000×60000 pixels is above prepare.max_megapixels")
    assert dropped.pop("ants/scans.jpg").startswith("a JPEG of more than 100 scans")
    assert dropped.pop("ants/program.jpg").startswith("not a picture: EPS is a program")
    assert "takes more than 0.5 s of processor time" in dropped.pop("ants/slow.gif")
    assert dropped.pop("bees/film.mp4") in ("not a picture that Pillow can read", dropped.get("ants/slow.gif"))
    assert not dropped
    assert len(manifest) == 24


def test_formats_that_nobody_asked_for_are_left_out(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set")
    (source / "ants/rare.qoi").write_bytes(hostile.flat_qoi(20, 20))
    assert "ants/rare.qoi" in set(prepared(source, tmp_path / "all")["path"])
    prepared(source, tmp_path / "common", SMALL.model_copy(update={"formats": "common"}))
    (dropped,) = report(tmp_path / "common")["dropped"]
    assert dropped["path"] == "ants/rare.qoi"
    assert dropped["reason"].startswith("QOI is not one of the formats that are read here")


@pytest.mark.parametrize(("bits", "kind"), [(10, "TIFF"), (12, "PNG"), (14, "TIFF")])
def test_dark_pictures_of_16_bits_are_said_and_can_be_set_right(
    bits: int, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    white = 2**bits - 1
    for label, flip in (("ants", 1), ("bees", -1)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(12):
            grey = np.asarray(photograph(number + 50 * flip + 50).convert("L"))[:, ::flip]
            data = encoded(Image.fromarray((grey.astype(np.uint32) * white // 255).astype(np.uint16)), kind)
            (tmp_path / "set" / label / f"{number}.{kind.lower()}").write_bytes(data)
    prepared(tmp_path / "set", tmp_path / "dark")
    said = f"24 of 24 pictures of 16 bits have no value above {white} and become nearly black"
    assert said in capsys.readouterr().err
    assert any(said in warning for warning in report(tmp_path / "dark")["warnings"])
    settings = SMALL.model_copy(update={"white_level": white})
    manifest = prepared(tmp_path / "set", tmp_path / "bright", settings)
    assert "nearly black" not in capsys.readouterr().err
    assert manifest["path"][0].startswith("ants/0.")
    expected = np.asarray(photograph(50 + 50).convert("L"))
    assert np.abs(Pixels(tmp_path / "bright")[0][..., 0].astype(int) - expected).max() <= 1


# --- the audit, on one folder with everything that goes wrong ------------------------------------------------------


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, pd.DataFrame]]:
    """A prepared folder whose source had every kind of trouble."""
    source, folder = plain_set(tmp_path_factory.mktemp("set")), tmp_path_factory.mktemp("prepared")
    write_pictures(source, {"cats/1.png": 301, "cats/2.png": 302, "ants/copy of 03.png": 3, "bees/stolen.png": 4})
    (source / "ants/05 small.jpg").write_bytes(encoded(photograph(5).resize((80, 60)), "JPEG", quality=85))
    (source / "bees/06 ant.jpg").write_bytes(encoded(photograph(6), "JPEG", quality=85))
    (source / "ants/empty.png").write_bytes(b"")
    (source / "bees/empty.png").write_bytes(b"")
    (source / "ants/notes.jpg").write_bytes(b"remember the ants")
    (source / "ants/cut.png").write_bytes(encoded(photograph(70))[:-300])
    (source / "ants/bomb.png").write_bytes(encoded(Image.new("L", (2000, 1000)), "PNG"))
    frames = [photograph(71), photograph(72)]
    (source / "ants/moving.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (source / "ants/print.tif").write_bytes(encoded(photograph(73).convert("CMYK"), "TIFF"))
    write_pictures(source, {"ants/gone.png": 74})
    with inside(tmp_path_factory.mktemp("project")):
        pictures = fetch(Data(source=str(source)), Path("fetched.csv"))
        (source / "ants/gone.png").unlink()
        yield folder, prepare(pictures, source, SMALL, EVEN, 0, 1, folder)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("ants/copy of 03.png", "exact duplicate of ants/03.png"),
        ("bees/stolen.png", "label conflict: the same file is 'ants' in ants/04.png"),
        ("ants/04.png", "label conflict: the same file is 'bees' in bees/stolen.png"),
        ("ants/empty.png", "empty file (0 bytes)"),
        ("bees/empty.png", "empty file (0 bytes)"),
        ("ants/notes.jpg", "not a picture that Pillow can read"),
        ("ants/cut.png", "truncated or damaged: "),
        ("ants/bomb.png", "2000×1000 pixels is above prepare.max_megapixels (1)"),
        ("ants/gone.png", "cannot be read: No such file or directory"),
    ],
)
def test_what_is_left_out_is_in_the_audit_with_its_reason(
    troubled: tuple[Path, pd.DataFrame], path: str, reason: str
) -> None:
    folder, manifest = troubled
    dropped = {entry["path"]: entry["reason"] for entry in report(folder)["dropped"]}
    assert dropped[path].startswith(reason)
    assert path not in set(manifest["path"])


def test_every_picture_is_either_kept_or_dropped(troubled: tuple[Path, pd.DataFrame]) -> None:
    folder, manifest = troubled
    audit = report(folder)
    dropped = [entry["path"] for entry in audit["dropped"]]
    assert dropped == sorted(set(dropped))
    assert audit["kept"] == len(manifest)
    assert audit["kept"] + len(dropped) == 24 + 4 + 9 + 1
    assert sum(n for parts in audit["classes"].values() for n in parts.values()) == audit["kept"]


def test_near_duplicates_share_a_group_and_a_split(troubled: tuple[Path, pd.DataFrame]) -> None:
    folder, manifest = troubled
    rows = manifest.set_index("path")
    for copy, original in (("ants/05 small.jpg", "ants/05.png"), ("bees/06 ant.jpg", "ants/06.png")):
        assert rows.loc[copy, "group"] == rows.loc[original, "group"]
        assert rows.loc[copy, "split"] == rows.loc[original, "split"]
    assert report(folder)["leaks"] == 0
    assert manifest.groupby("group")["split"].nunique().max() == 1


def test_what_is_doubtful_but_kept_is_a_warning(troubled: tuple[Path, pd.DataFrame]) -> None:
    warnings = report(troubled[0])["warnings"]
    assert "ants/moving.gif: animated or many pages: the first is used" in warnings
    assert any(
        w.startswith("near-duplicates with two labels: ants/06.png (ants) and bees/06 ant.jpg (bees)") for w in warnings
    )
    assert any(w.startswith("class 'cats' ") for w in warnings)
    assert report(troubled[0])["converted"]["CMYK converted to RGB"] == 1


def test_the_manifest_is_in_path_order_and_pixels_are_its_rows(troubled: tuple[Path, pd.DataFrame]) -> None:
    folder, manifest = troubled
    assert list(manifest.columns) == ["path", "label", "split", "group", "sha256", "width", "height"]
    assert manifest["path"].tolist() == sorted(manifest["path"])
    assert read_manifest(folder).equals(manifest)
    pixels = Pixels(folder)
    assert len(pixels) == len(manifest)
    row = manifest["path"].tolist().index("bees/07.png")
    assert (pixels[row] == np.asarray(photograph(107))).all()  # 72 is hardly more than 64
    assert manifest.loc[row, ["width", "height"]].tolist() == [96, 72]
    assert class_names(manifest) == sorted(set(manifest["label"]))


# --- the same bytes, however they came about ------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_threads_nor_on_what_an_earlier_run_left(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set", each=66)  # enough for two workers
    prepared(source, tmp_path / "one", threads=1)
    prepared(source, tmp_path / "two", threads=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    before, pictures = files(tmp_path / "one"), fetch(Data(source=str(source)), Path("fetched.csv"))
    shutil.rmtree(source)  # so that whatever is decoded again is missed
    (tmp_path / "one" / ".pixels.bin.k1ll3d").write_bytes(b"half")
    (tmp_path / "one" / ".ipynb_checkpoints").mkdir()  # by somebody who had a look
    prepare(pictures, source, SMALL, EVEN, 0, 1, tmp_path / "one")
    assert files(tmp_path / "one") == before


def test_new_pictures_are_decoded_and_no_others_and_none_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = plain_set(tmp_path / "set")
    old = prepared(source, tmp_path / "out")
    write_pictures(source, {"ants/0 first.png": 900, "bees/zz.png": 901})
    prepared(source, tmp_path / "fresh")
    pictures = fetch(Data(source=str(source)), Path("fetched.csv"))
    for path in old["path"]:
        (source / path).unlink()
    capsys.readouterr()
    new = prepare(pictures, source, SMALL, EVEN, 0, 1, tmp_path / "out")
    assert "prepare: 2 pictures in " in capsys.readouterr().err
    assert files(tmp_path / "out") == files(tmp_path / "fresh")
    assert len(new) == len(old) + 2
    assert old.set_index("path")["split"].to_dict().items() <= new.set_index("path")["split"].to_dict().items()


# Decodes until it is killed.
HALF = """
import os, signal, sys
from pathlib import Path
from headstart.base.sections import Data, Prepare, Split
from headstart.base.terminal import many
from headstart.data import pack
from headstart.data.fetch import fetch
from headstart.data.prepare import prepare

keep = pack._SoFar.keep

def keep_and_die(self, usable, stream):
    self.pause = 0
    keep(self, usable, stream)
    if len(usable) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

pack._SoFar.keep, (source, out) = keep_and_die, map(Path, sys.argv[1:3])
settings = Prepare(short_side=64, max_megapixels=1), Split(val=0.3, test=0.3)
prepare(fetch(Data(source=str(source)), Path("fetched.csv")), source, *settings, 0, 1, out)
"""


def test_killed_it_goes_on_after_the_pictures_that_were_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, kept = plain_set(tmp_path / "set"), Path(".headstart/prepare")
    prepared(source, tmp_path / "undisturbed")
    for killed_after in (9, 16):
        command = [sys.executable, "-c", HALF, str(source), str(tmp_path / "out"), str(killed_after)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        newest = max(kept.glob("*/pixels.bin"), key=lambda file: file.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)  # of picture 16
    capsys.readouterr()
    prepared(source, tmp_path / "out")
    said = capsys.readouterr()
    assert "going on after 15 pictures of a run that was stopped" in said.out
    assert f"{newest} (1 of 16 pictures) is damaged" in said.err
    assert "prepare: 9 pictures in " in said.err
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert not kept.exists()


DAMAGED = {
    "a bit of a picture": ("pixels.bin", lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], 1),
    "the pixels cut short": ("pixels.bin", lambda content: content[:-10], 24),
    "no pixels": ("pixels.bin", lambda content: b"", 24),
    "a bit of the index": ("pixels.parquet", lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:], 24),
    "the index cut short": ("pixels.parquet", lambda content: content[:-10], 24),
    "no index": ("pixels.parquet", lambda content: b"", 24),
    "junk in the index": ("pixels.parquet", lambda content: b"PAR1" + b"junk" * 99 + b"PAR1", 24),
    "the digest": ("pixels.sha256", lambda content: b"\xff\xfe", 24),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_packed_pictures_that_are_damaged_are_decoded_again_and_that_is_said(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = plain_set(tmp_path / "set")
    prepared(source, tmp_path / "out")
    whole, (name, change, decoded) = files(tmp_path / "out"), DAMAGED[damage]
    (tmp_path / "out" / name).write_bytes(change((tmp_path / "out" / name).read_bytes()))
    capsys.readouterr()
    prepared(source, tmp_path / "out")
    said = capsys.readouterr().err
    assert files(tmp_path / "out") == whole
    assert f"headstart: {tmp_path / 'out' / 'pixels.bin'}" in said
    assert f"prepare: {many(decoded, 'picture')} in " in said


def test_a_picture_that_is_damaged_is_not_learned_from(tmp_path: Path) -> None:
    prepared(plain_set(tmp_path / "set"), tmp_path / "out")
    file = PrepareFolder(tmp_path, "out").pixels
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    pixels = Pixels(tmp_path / "out")
    assert pixels[0].shape[2] == 3
    with pytest.raises(HeadstartError, match=r"pixels\.bin is damaged, at picture 23; run `dvc repro --force"):
        pixels[23]


def test_another_decoder_decodes_again_and_a_comment_does_not(project: Path, tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set")
    library = shutil.copytree(
        PROJECT / "headstart", tmp_path / "library" / "headstart", ignore=shutil.ignore_patterns("*c")
    )
    script = (
        "from headstart.base.artifacts import DATA; from headstart.base.params import Params; "
        "from headstart.data.prepare import run; "
        "run(Params.load(), DATA)"
    )
    (project / "params.yaml").write_text(f"data: {{source: {source}}}\n")
    fetch(Data(source=str(source)), Path("data/fetch/manifest.csv"))

    def decoded() -> int:
        """How many pictures are decoded by the library as it is now."""
        path = os.pathsep.join((str(library.parent), str(tmp_path)))
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        (count,) = re.findall(r"prepare: (\d+) pictures in ", done.stderr)
        return int(count)

    assert (decoded(), decoded()) == (24, 0)
    decode = library / "data" / "decode.py"
    decode.write_text(decode.read_text().replace("notes = []", "notes = []  # a remark"))
    assert decoded() == 0
    decode.write_text(decode.read_text().replace("RESIZE_ABOVE = 1.25", "RESIZE_ABOVE = 1.0"))
    before = PrepareFolder(project / "data/prepare").pixels.read_bytes()
    assert (decoded(), decoded()) == (24, 0)
    assert PrepareFolder(project / "data/prepare").pixels.read_bytes() == before, (
        "the pictures are smaller than any short side"
    )
    (tmp_path / "pillow-0.0.1.dist-info").mkdir()
    (tmp_path / "pillow-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 0.0.1\n")
    assert (decoded(), decoded()) == (24, 0)


def test_above_the_budget_pictures_are_kept_as_jpeg_that_looks_the_same(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set")
    prepared(source, tmp_path / "raw")
    manifest = prepared(source, tmp_path / "jpeg", SMALL.model_copy(update={"raw_gb": 0.0}))
    raw, packed = Pixels(tmp_path / "raw"), Pixels(tmp_path / "jpeg")
    sizes = {form: PrepareFolder(tmp_path, form).pixels.stat().st_size for form in ("raw", "jpeg")}
    assert sizes["jpeg"] < 0.7 * sizes["raw"]
    for row in range(len(manifest)):
        assert bytes(packed.raw(row)[:2]) == b"\xff\xd8"
        assert np.abs(packed[row].astype(int) - raw[row]).mean() < 3
    before = files(tmp_path / "jpeg")
    prepared(source, tmp_path / "jpeg", SMALL.model_copy(update={"raw_gb": 0.0}))
    assert files(tmp_path / "jpeg") == before
    prepared(source, tmp_path / "jpeg")  # back under the budget: nothing of the JPEG's loss may stay
    assert files(tmp_path / "jpeg") == files(tmp_path / "raw")


def test_a_jpeg_as_long_as_its_raw_pixels_is_still_a_jpeg(tmp_path: Path) -> None:
    image = photograph(1, (40, 40))
    jpeg = encoded(image, "JPEG").ljust(40 * 40 * 3, b"\0")
    assert len(jpeg) == 40 * 40 * 3
    files = PrepareFolder(tmp_path)
    files.pixels.write_bytes(jpeg)
    index = pa.table({"offset": [0], "length": [len(jpeg)], "height": [40], "width": [40]})
    pq.write_table(index.replace_schema_metadata({b"headstart": b'{"jpeg_quality": 95}'}), files.pixels_index)
    assert (Pixels(tmp_path)[0] == np.asarray(Image.open(io.BytesIO(jpeg)))).all()


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_bytes(b"")], ids=["missing", "empty"])
def test_missing_or_cut_files_say_which_stage_makes_them(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    files = PrepareFolder(tmp_path)
    files.pixels.write_bytes(b"123")
    pq.write_table(pa.table({"offset": [0], "length": [3], "height": [1], "width": [1]}), files.pixels_index)
    damage(files.pixels_index)
    with pytest.raises(HeadstartError, match="run `dvc repro --force --single-item prepare`"):
        Pixels(tmp_path)
    with pytest.raises(HeadstartError, match="run `dvc repro prepare`"):
        read_manifest(tmp_path)


# --- splits and groups ----------------------------------------------------------------------------------------------


def test_a_near_duplicate_across_a_given_split_leaves_training(tmp_path: Path) -> None:
    names = {
        f"{split}/{label}/{i}.png": 1000 * s + 100 * k + i
        for s, split in enumerate(("train", "val", "test"))
        for k, label in enumerate(("ants", "bees"))
        for i in range(4)
    }
    source = write_pictures(tmp_path / "set", names)
    (source / "train/ants/leak.jpg").write_bytes(encoded(photograph(2000), "JPEG", quality=85))  # as test/ants/0.png
    write_pictures(source, {"train/bees/copy.png": 1100})  # as val/bees/0.png
    manifest = prepared(source, tmp_path / "out")
    assert report(tmp_path / "out")["own_test"] is True
    assert {entry["path"]: entry["reason"] for entry in report(tmp_path / "out")["dropped"]} == {
        "train/ants/leak.jpg": "near-duplicate of test/ants/0.png, which is in test",
        "train/bees/copy.png": "exact duplicate of val/bees/0.png, which is in val",
    }
    assert manifest.set_index("path")["split"].to_dict() == {name: name.split("/")[0] for name in names}
    assert report(tmp_path / "out")["leaks"] == 0


def test_groups_of_a_table_stay_on_one_side_and_validation_is_cut_from_train(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set", each=16)
    paths = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.png"))
    frame = pd.DataFrame({"path": paths, "label": [p.split("/")[0] for p in paths]})
    frame["group"] = [f"student {i % 8}" for i in range(len(paths))]
    frame.to_csv(source / "set.csv", index=False)
    manifest = prepared(source / "set.csv", tmp_path / "out")
    assert (manifest.set_index("path")["group"] == frame.set_index("path")["group"]).all()
    assert manifest.groupby("group")["split"].nunique().tolist() == [1] * 8
    assert report(tmp_path / "out")["leaks"] == 0

    frame["split"] = ["test" if i % 8 == 0 else "train" for i in range(len(paths))]
    frame.to_csv(source / "set.csv", index=False)
    manifest = prepared(source / "set.csv", tmp_path / "out")
    assert set(manifest.loc[manifest["group"] == "student 0", "split"]) == {"test"}
    assert set(manifest.loc[manifest["group"] != "student 0", "split"]) == {"train", "val"}
    assert manifest.groupby("group")["split"].nunique().max() == 1


def one_part(folder: Path, splits: tuple[str, ...] = ("",), each: int = 30, noise: float = 6, kinds: int = 2) -> Path:
    """Pictures of one part from a fixed camera, in all classes but the first with scratches: all are near-duplicates."""
    part = np.asarray(photograph(999)).astype(float)
    for number, name in enumerate(f"{s}/{k}/{i:02d}.png" for s in splits for k in range(kinds) for i in range(each)):
        rng = np.random.default_rng(number)
        image = Image.fromarray(np.clip(part + rng.normal(0, noise, part.shape), 0, 255).astype(np.uint8))
        for _ in range(int(name.split("/")[-2])):
            x, y = rng.integers(0, 50), rng.integers(0, 70)
            ImageDraw.Draw(image).line((x, y, x + 40, y), fill="white")
        path = folder / name.strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    return folder


@pytest.mark.parametrize(
    ("splits", "each", "noise", "kinds"),
    [
        (("",), 30, 6, 2),
        (("",), 20, 2, 3),
        (("",), 30, 10, 2),
        (("train",), 30, 6, 2),
        (("train", "test"), 30, 6, 2),
        (("train", "val"), 20, 2, 3),
        (("train", "val", "test"), 20, 6, 2),
    ],
)
def test_pictures_that_all_look_alike_can_be_learned_from(
    tmp_path: Path, splits: tuple[str, ...], each: int, noise: float, kinds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source = one_part(tmp_path / "set", splits, each, noise, kinds)
    manifest = prepared(source, tmp_path / "out")
    assert len(manifest) == len(splits) * each * kinds
    counts = manifest.groupby(["label", "split"]).size()
    assert all(counts[str(label), split] >= 1 for label in range(kinds) for split in ("train", "val", "test"))
    audit = report(tmp_path / "out")
    assert audit["leaks"] > 0
    (warning,) = (w for w in audit["warnings"] if "are not kept in one split" in w)
    assert warning.startswith("near-duplicates of '0', '1'")
    assert f"headstart: {warning}" in capsys.readouterr().err
    again = prepared(source, tmp_path / "again", threads=2)
    assert again.equals(manifest)
    off = prepared(source, tmp_path / "off", split=EVEN.model_copy(update={"near_duplicate_bits": None}))
    assert off.equals(manifest)
    assert report(tmp_path / "off")["warnings"] == []


def test_a_class_that_looks_alike_costs_the_others_no_grouping(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set", each=30)
    one_part(source, kinds=1)
    for i in range(30):
        copy = encoded(photograph(i).resize((80, 60)), "JPEG", quality=85)
        (source / f"ants/{i:02d} small.jpg").write_bytes(copy)
    manifest = prepared(source, tmp_path / "out").set_index("path")
    assert set(manifest.loc[manifest["label"] == "0", "split"]) == {"train", "val", "test"}
    for i in range(30):
        assert manifest.loc[f"ants/{i:02d}.png", "split"] == manifest.loc[f"ants/{i:02d} small.jpg", "split"]
    (warning,) = (w for w in report(tmp_path / "out")["warnings"] if "not kept" in w)
    assert warning.startswith("near-duplicates of '0' are not kept in one split")


def test_a_class_stays_although_its_few_pictures_look_alike(tmp_path: Path) -> None:
    """With each seed the two fall elsewhere; where both would be out of training, they are told apart."""
    source = plain_set(tmp_path / "set", each=30)
    for name, quality in (("cats/1.jpg", 95), ("cats/2.jpg", 85), ("cats/3.jpg", 75)):
        (source / "cats").mkdir(exist_ok=True)
        (source / name).write_bytes(encoded(photograph(500), "JPEG", quality=quality))
    for seed in range(5):
        manifest = prepared(source, tmp_path / "out", seed=seed)
        alone = prepared(source, tmp_path / "off", split=EVEN.model_copy(update={"near_duplicate_bits": None}), seed=seed)
        kept, possible = (set(m.loc[m["label"] == "cats", "split"]) for m in (manifest, alone))
        assert ("train" in kept) == ("train" in possible)


@pytest.mark.parametrize("ground", [(0, 0, 0, 0), (255, 255, 255, 0)])
@pytest.mark.parametrize("ink", ["white", (250, 250, 250, 255), (255, 255, 255, 128), "black"])
def test_icons_on_transparency_are_seen_and_told_apart(
    tmp_path: Path, ground: tuple[int, ...], ink: str | tuple[int, ...]
) -> None:
    shapes = {"circle": ImageDraw.ImageDraw.ellipse, "box": ImageDraw.ImageDraw.rectangle}
    for k, (label, draw) in enumerate(shapes.items()):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(20):
            image, (x, y, size) = Image.new("RGBA", (64, 64), ground), np.random.default_rng(50 * k + i).integers(4, 30, 3)
            draw(ImageDraw.Draw(image), (x, y, x + size + 8, y + size + 8), fill=ink)
            (tmp_path / "set" / label / f"{i}.png").write_bytes(encoded(image))
    manifest = prepared(tmp_path / "set", tmp_path / "out")
    pixels = Pixels(tmp_path / "out")
    assert len(manifest) == 40
    assert all(np.ptp(pixels[row]) > 100 for row in range(40))
    assert manifest["group"].nunique() > 30
    assert not any("not kept in one split" in warning for warning in report(tmp_path / "out")["warnings"])


def test_links_that_lead_nowhere_are_in_the_audit(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set")
    for name in ("ants/moved.png", "bees/deep", "wasps"):
        (source / name).symlink_to("unplugged")
    (source / "ants/circle.png").symlink_to("circle.png")
    manifest = prepared(source, tmp_path / "out")
    assert len(manifest) == 24
    assert {entry["path"]: entry["reason"] for entry in report(tmp_path / "out")["dropped"]} == dict.fromkeys(
        ("ants/circle.png", "ants/moved.png", "bees/deep", "wasps"), "a link that leads nowhere"
    )


@pytest.mark.parametrize(
    ("rows", "kept_in", "warning"),
    [
        (["train", "train"], "train", None),
        (["train", "test"], "test", "ants/00.png is listed twice, which is in test; it counts once"),
        (["test", "train", "train"], "test", "ants/00.png is listed twice, which is in test; it counts once"),
    ],
)
def test_a_picture_in_two_rows_is_kept_once_and_not_dropped(
    tmp_path: Path, rows: list[str], kept_in: str, warning: str | None
) -> None:
    source = plain_set(tmp_path / "set")
    paths = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.png"))
    lines = [f"{path},{path.split('/')[0]},{'test' if i % 3 == 0 else 'train'}" for i, path in enumerate(paths) if i]
    lines += [f"ants/00.png,ants,{split}" for split in rows]
    (source / "set.csv").write_text("\n".join(["path,label,split", *lines]))
    manifest = prepared(source / "set.csv", tmp_path / "out").set_index("path")
    assert len(manifest) == 24
    assert manifest.loc["ants/00.png", "split"] in ((kept_in,) if kept_in == "test" else ("train", "val"))
    audit = report(tmp_path / "out")
    assert audit["dropped"] == []
    assert audit["warnings"] == ([warning] if warning else [])


def heic(number: int) -> bytes:
    return b"\0\0\0\x18ftypheic" + number.to_bytes(4, "big") * 30


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (
            {f"{label}/{i}.jpg": heic(10 * ord(label) + i) for label in "ab" for i in range(10)},
            "no class with usable training pictures is left, two are needed; add pictures; "
            "20 files were left out: 20 as a/0.jpg (not a picture that Pillow can read)",
        ),
        (
            {"a/1.png": encoded(photograph(1)), "a/2.png": encoded(photograph(2)), "b/1.png": encoded(photograph(1))},
            "no class with usable training pictures is left, two are needed; add pictures; 3 files were left out: "
            "2 as a/1.png (label conflict: the same file is 'b' in b/1.png), "
            "1 as a/2.png (class 'a' has no training picture)",
        ),
        (
            {"a/1.png": encoded(photograph(1)), "b/2.png": encoded(photograph(2)), "b/3.png": b"", "b/4.png": b"text"},
            "add pictures; ",
        ),
        (
            {f"{label}/{i}.png": encoded(photograph(i), "BMP") for label in "ab" for i in range(9)}
            | {f"a/{name}.png": content for name, content in (("empty", b""), ("text", b"text"), ("other", b"text 2"))},
            "21 files were left out: 18 as a/0.png (label conflict: the same file is 'b' in b/0.png), "
            "2 as a/other.png (not a picture that Pillow can read), 1 as a/empty.png (empty file (0 bytes))",
        ),
    ],
    ids=["all HEIC", "conflict", "few", "all kinds"],
)
def test_too_little_to_learn_from_is_told_with_the_reasons_and_their_counts(
    tmp_path: Path, contents: dict[str, bytes], sentence: str
) -> None:
    for name, content in contents.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    prepared(plain_set(tmp_path / "other"), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(HeadstartError) as caught:
        prepared(tmp_path / "set", tmp_path / "out")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "audit.json" not in str(caught.value)  # none is written, and an older run's is about other pictures
    assert files(tmp_path / "out") == before


def test_a_test_split_without_a_usable_picture_is_told_with_the_reason(tmp_path: Path) -> None:
    names = {f"train/{label}/{i}.png": 10 * k + i for k, label in enumerate("ab") for i in range(9)}
    source = write_pictures(tmp_path / "set", names)
    for label in "ab":
        (source / "test" / label).mkdir(parents=True)
        (source / "test" / label / "1.jpg").write_bytes(heic(ord(label)))
    with pytest.raises(HeadstartError) as caught:
        prepared(source, tmp_path / "out")
    assert str(caught.value) == (
        "no usable picture is in the source's test split; add pictures there; 2 files were left out: "
        "2 as test/a/1.jpg (not a picture that Pillow can read)"
    )


def test_groups_that_leave_a_split_empty_are_told(tmp_path: Path) -> None:
    source = plain_set(tmp_path / "set")
    paths = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.png"))
    (source / "set.csv").write_text("\n".join(["path,label,group", *(f"{p},{p.split('/')[0]},nest" for p in paths)]))
    sentence = "24 pictures \(related ones count as one: 1\) are too few for this split"
    with pytest.raises(HeadstartError, match=f"no picture fell into .*: {sentence}|no class with usable"):
        prepared(source / "set.csv", tmp_path / "out")


# The split alone, on fingerprints made here: prepare reads files, which takes too long for many examples.

RANDOM = np.random.default_rng(0)
NOISE: Array = RANDOM.integers(0, 256, (64, 768), dtype=np.uint8)


def usable(number: int, label: str, look: int, group: str, split: str = "") -> PackedPicture:
    """A picture that passed the audit; two with the same ``look`` are near-duplicates, with others never."""
    picture = Picture(f"{label}/{number:03d}.png", label, split, group, 1, f"digest {number}")
    stored = Stored(1, 1, 1, 1, int(PHASHES[look]), NOISE[look].tobytes(), ())
    return PackedPicture(**vars(stored), picture=picture, span=(0, 0), digest=b"")


PHASHES = RANDOM.integers(0, 2**64, 64, dtype=np.uint64)
pictures_in_sets = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 63), st.sampled_from(["", "", "g1", "g2", "g3"])),
    min_size=1,
    max_size=40,
)


@given(drawn=pictures_in_sets, seed=st.integers(0, 1000))
def test_no_split_leaks_and_near_duplicates_and_groups_are_one_side(drawn: list[tuple[str, int, str]], seed: int) -> None:
    settings, audit = Split(val=0.4, test=0.4), Audit()
    pictures = [usable(i, *what) for i, what in enumerate(drawn)]
    result = assign_splits(pictures, settings, seed, audit)
    assert len(result) == len(drawn)
    apart = assign_splits(pictures, settings.model_copy(update={"near_duplicate_bits": None}), seed, Audit())
    assert {u.split for u in apart} <= {u.split for u in result}
    assert {u.picture.label for u in apart if u.split == "train"} <= {u.picture.label for u in result if u.split == "train"}
    told_apart = any("not kept in one split" in warning for warning in audit.warnings)
    assert told_apart or count_leaks(result, Split()) == 0
    for key in ("group",) if told_apart else ("look", "group"):
        sides: dict[object, set[str]] = {}
        for (_, look, group), u in zip(drawn, result, strict=True):
            if key == "look" or group:
                sides.setdefault(look if key == "look" else group, set()).add(u.split)
        assert all(len(parts) == 1 for parts in sides.values())


def test_a_class_may_be_lost_through_the_near_duplicates_of_another() -> None:
    """The one picture of b is tied to a's near-duplicates by the user's groups alone."""
    settings = Split(val=0.3, test=0.3)
    for seed in range(200):
        many = [usable(i, "a", i, "") for i in range(20)]
        tied = [usable(30, "b", 30, "m"), usable(31, "a", 31, "m"), usable(32, "a", 31, "k")]
        alone = assign_splits(many + tied, settings.model_copy(update={"near_duplicate_bits": None}), seed, Audit())
        result = assign_splits(many + tied, settings, seed, Audit())
        assert {u.picture.label for u in alone if u.split == "train"} <= {
            u.picture.label for u in result if u.split == "train"
        }


@given(drawn=pictures_in_sets, seed=st.integers(0, 1000), keep=st.integers(1, 40))
def test_pictures_added_later_move_none_unless_they_tie_groups_together(
    drawn: list[tuple[str, int, str]], seed: int, keep: int
) -> None:
    # Added pictures are here unlike all others; groups may grow, and are known by their names.
    unlike = [(label, i, group) for i, (label, _, group) in enumerate(drawn)]
    everything = [usable(i, *what) for i, what in enumerate(unlike)]
    after = {u.picture.path: u.split for u in assign_splits(everything, EVEN, seed, Audit())}
    before = {u.picture.path: u.split for u in assign_splits(everything[:keep], EVEN, seed, Audit())}
    assert before.items() <= after.items()


def test_a_copy_added_later_joins_its_original_and_does_not_move_it() -> None:
    originals = [usable(i, "a", i, "") for i in range(40)]
    copies = [
        replace(u, picture=replace(u.picture, path=u.picture.path.replace(".png", " copy.png"), sha256=f"copy {i}"))
        for i, u in enumerate(originals)
    ]
    before = [u.split for u in assign_splits(originals, EVEN, 0, Audit())]
    after = [u.split for u in assign_splits(originals + copies, EVEN, 0, Audit())]
    assert after == before + before


def test_a_leak_is_counted_where_there_is_one() -> None:
    twins = [replace(usable(i, "a", 0, ""), split=part) for i, part in enumerate(("train", "test"))]
    group = [replace(usable(i, "a", i, "g"), split=part) for i, part in enumerate(("train", "test"))]
    assert (count_leaks(twins, Split()), count_leaks(group, Split())) == (1, 1)


def test_a_group_that_the_user_s_own_split_cuts_in_two_is_warned_of() -> None:
    audit = Audit()
    result = assign_splits([usable(0, "a", 0, "g", "train"), usable(1, "a", 1, "g", "test")], EVEN, 0, audit)
    assert audit.warnings == ["group 'g' is in test and train, as the source has it: a leak"]
    assert count_leaks(result, Split()) == 1
