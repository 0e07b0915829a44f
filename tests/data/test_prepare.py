"""prepare leaves out what harms, says so, never leaks, and writes the same bytes however it got there."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.base.params import Data, Prepare, Split
from headstart.data import decoders
from headstart.data.audit import Audit
from headstart.data.decode import Array
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
    with pytest.raises(HeadstartError, match="run `dvc repro prepare`"):
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


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"ants/1.png": 1, "ants/2.png": 2, "bees/1.png": 1}, "needed; see data/prepare/audit.json"),
        ({"ants/1.png": 1, "bees/2.png": 2}, "see data/prepare/audit.json"),
    ],
)
def test_too_little_to_learn_from_stops_with_a_sentence(tmp_path: Path, names: dict[str, int], sentence: str) -> None:
    with pytest.raises(HeadstartError, match=sentence):
        prepared(write_pictures(tmp_path / "set", names), tmp_path / "out")


# The split alone, on fingerprints made here: prepare reads files, which takes too long for many examples.

RANDOM = np.random.default_rng(0)
NOISE: Array = RANDOM.integers(0, 256, (64, 768), dtype=np.uint8)


def usable(number: int, label: str, look: int, group: str, split: str = "") -> PackedPicture:
    """A picture that passed the audit; two with the same ``look`` are near-duplicates, with others never."""
    picture = Picture(f"{label}/{number:03d}.png", label, split, group, 1, f"digest {number}")
    return PackedPicture(picture, (0, 0), 1, 1, 1, 1, int(PHASHES[look]), NOISE[look].tobytes(), ())


PHASHES = RANDOM.integers(0, 2**64, 64, dtype=np.uint64)
pictures_in_sets = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 63), st.sampled_from(["", "", "g1", "g2", "g3"])),
    min_size=1,
    max_size=40,
)


@given(drawn=pictures_in_sets, seed=st.integers(0, 1000))
@settings(deadline=None)
def test_no_split_leaks_and_near_duplicates_and_groups_are_one_side(drawn: list[tuple[str, int, str]], seed: int) -> None:
    result = assign_splits([usable(i, *what) for i, what in enumerate(drawn)], Split(val=0.4, test=0.4), seed, Audit())
    assert len(result) == len(drawn)
    assert count_leaks(result, Split()) == 0
    for key in ("look", "group"):
        sides: dict[object, set[str]] = {}
        for (_, look, group), u in zip(drawn, result, strict=True):
            if key == "look" or group:
                sides.setdefault(look if key == "look" else group, set()).add(u.split)
        assert all(len(parts) == 1 for parts in sides.values())


@given(drawn=pictures_in_sets, seed=st.integers(0, 1000), keep=st.integers(1, 40))
@settings(deadline=None)
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
