"""Pictures in tar shards and in Parquet, here and in a bucket, have their labels; what is wrong is said in a sentence."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json
from headstart.base.sections import Data
from headstart.data import sources, sources_parquet
from headstart.data.in_place import Place
from headstart.data.picture import InPlace, Picture
from tests.data.pictures import encoded, everything_below, photograph
from tests.data.test_in_place import prepared, reads, uploaded  # noqa: F401 - reads is a fixture
from tests.data.test_sources import complaint, listed, rows

Members = Iterable[tuple[str, bytes]]
NAMES = ["ant", "bee"]


def png(seed: int) -> bytes:
    return encoded(photograph(seed))


def write_tar(file: Path, members: Members) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def samples(first: int, count: int = 6, kind: str = "cls") -> list[tuple[str, bytes]]:
    """Pictures numbered from ``first``, of two classes in turn, with labels of a kind."""
    label = {"cls": "{}", "txt": "{}\n", "json": '{{"id": 7, "label": "{}"}}'}[kind]
    return [
        member
        for n in range(first, first + count)
        for member in ((f"{n:04}.png", png(n)), (f"{n:04}.{kind}", label.format(NAMES[n % 2]).encode()))
    ]


HF = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}}}


def write_parquet(file: Path, numbers: list[int], kind: str = "hf", **more: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    contents = [png(n) for n in numbers]
    if kind == "hf":
        image = pa.array([{"bytes": content, "path": f"{n}.png"} for n, content in zip(numbers, contents, strict=True)])
        table = pa.table({"image": image, "label": pa.array([n % 2 for n in numbers], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(HF)})
    else:
        table = pa.table({"img": pa.array(contents, pa.large_binary()), "label": [NAMES[n % 2] for n in numbers]})
    pq.write_table(table, file, **more)
    return file


def contents(source: str | Path, pictures: list[Picture]) -> list[bytes]:
    data = Data(source=str(source))
    root = pickle.loads(pickle.dumps(sources.source_of(data).root(data)))
    assert isinstance(root, InPlace)
    assert all(root.read(p.path, 3, 9) == root.read(p.path)[3:9] for p in pictures)
    return [root.read(p.path) for p in pictures]


# --- WebDataset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
@pytest.mark.parametrize("at", ["here", "there", "one file here", "one file there"])
def test_the_samples_of_tar_shards_are_pictures_with_labels(tmp_path: Path, bucket: str, kind: str, at: str) -> None:
    folder = tmp_path / "set"
    write_tar(folder / "0000.tar", samples(0, kind=kind))
    if not at.startswith("one"):
        write_tar(folder / "0001.tar", [*samples(6, kind=kind), ("._x.png", b"of macOS"), ("notes.md", b"more")])
        (folder / "README.md").write_text("about it")
    where: Any = {
        "here": lambda: folder, "there": lambda: uploaded(folder, bucket, "set"),
        "one file here": lambda: folder / "0000.tar",
        "one file there": lambda: f"{uploaded(folder, bucket, 'set')}/0000.tar",
    }[at]()  # fmt: skip
    pictures = listed(where)
    count = 6 if at.startswith("one") else 12
    assert rows(pictures) == [(f"{n // 6:04}.tar/{n:04}.png", NAMES[n % 2], "") for n in range(count)]
    assert contents(where, pictures) == [png(n) for n in range(count)]
    assert [p.size for p in pictures] == [len(png(n)) for n in range(count)]


def test_shards_of_splits_and_one_that_is_added(tmp_path: Path, bucket: str, reads: Counter[str]) -> None:  # noqa: F811
    folder = tmp_path / "set"
    write_tar(folder / "train-0.tar", samples(0, 12))
    write_tar(folder / "val-0.tar", samples(12, 12))
    write_tar(folder / "test-0.tar", samples(24, 12))
    where = Data(source=uploaded(folder, bucket, "set"))
    assert len(prepared(where, tmp_path / "out")) == 36
    assert Counter(p.split for p in listed(where.source)) == {"train": 12, "val": 12, "test": 12}
    reads.clear()
    write_tar(folder / "train-1.tar", samples(36, 4))
    where = Data(source=uploaded(folder, bucket, "set"))
    assert len(prepared(where, tmp_path / "out")) == 40
    assert reads == {"train-1.tar": 4 * 3}


def test_shards_go_through_prepare_like_a_folder_and_a_broken_picture_is_left_out(tmp_path: Path, project: Path) -> None:
    write_tar(tmp_path / "tars/0.tar", [*samples(0, 24), ("a.png", b"no picture"), ("a.cls", b"ant"), ("b.cls", b"bee"), ("b.png", b"")])  # fmt: skip  # noqa: E501
    for n in range(24):
        file = tmp_path / f"set/{NAMES[n % 2]}/{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(n))
    prepared(Data(source=str(tmp_path / "set")), tmp_path / "of folder")
    prepared(Data(source=str(tmp_path / "tars")), tmp_path / "of tars")
    audit = read_json(PrepareFolder(tmp_path / "of tars").audit)
    assert [one["path"] for one in audit["dropped"]] == ["0.tar/a.png", "0.tar/b.png"]
    of_folder, of_tars = (
        {row["sha256"]: row for row in pq.read_table(PrepareFolder(tmp_path / name).manifest).to_pylist()}
        for name in ("of folder", "of tars")
    )
    for sha256, row in of_folder.items():
        assert {key: row[key] for key in ("label", "split")} == {key: of_tars[sha256][key] for key in ("label", "split")}
    assert not any(png(3) in content for content, _ in everything_below(project).values())


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("1.png", png(1))], "key '1': the picture has no label; put the class into a .cls, a .txt, or a .json with"),
        ([("1.png", png(1)), ("1.cls", b"\xff")], "key '1': its .cls cannot be read"),
        ([("1.png", png(1)), ("1.json", b"{")], "key '1': its .json cannot be read"),
        ([("1.png", png(1)), ("1.json", b"[" * 100_000)], "key '1': its .json cannot be read"),
        ([("1.png", png(1)), ("1.json", b'{"label": [1]}')], "key '1': the picture has no label"),
        ([("1.png", png(1)), ("1.txt", b"a walk\nin the park")], "key '1': its .txt is a longer text and no label"),
        ([("1.png", png(1)), ("1.cls", b"x" * 2_000_000)], "'1.cls' has 2,000,000 bytes, too many for a label"),
        ([("1.png", png(1)), ("1.jpg", png(2)), ("1.cls", b"a")], "'1.png' and '1.jpg', two pictures with one key"),
        ([("1.png", png(1)), ("1.png", png(2)), ("1.cls", b"a")], "'1.png' and '1.png', two pictures with one key"),
        ([("2.cls", b"a")], "has a label of the key '2' and no picture"),
        ([("../1.png", png(1)), ("../1.cls", b"a")], "the entry '../1.png' would land outside its folder"),
        ([("/1.png", png(1)), ("/1.cls", b"a")], "the entry '/1.png' would land outside its folder"),
        ([("1\n.png", png(1)), ("1\n.cls", b"a")], "has a picture whose name is no proper text"),
        ([("notes.md", b"a")], "holds no pictures"),
    ],
)
def test_what_is_wrong_in_a_shard_is_told_with_its_key(tmp_path: Path, members: Members, sentence: str) -> None:
    write_tar(tmp_path / "set/0.tar", samples(10))
    write_tar(tmp_path / "set/1.tar", members)
    (tmp_path / "set/0.tar").unlink()
    assert sentence in complaint(tmp_path / "set")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_in_a_shard_is_refused(tmp_path: Path, kind: bytes) -> None:
    file = write_tar(tmp_path / "set/0.tar", samples(0))
    with tarfile.open(file, "a") as tar:
        info = tarfile.TarInfo("9.png")
        info.type, info.linkname = kind, "0000.png"
        tar.addfile(info)
    assert "0.tar: the entry '9.png' is " in complaint(tmp_path / "set")


def test_a_shard_that_is_damaged_or_compressed_is_named(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(0)).read_bytes()
    (tmp_path / "set").mkdir()
    file = tmp_path / "set/7.tar"
    said = set()
    header = 512 + -(-len(png(0)) // 512) * 512  # of the second entry
    for damaged in (
        b"", b"no tar" * 200, whole[:700], whole[: len(whole) // 2], whole[:header] + b"\1" * 512 + whole[header + 512 :],
    ):  # fmt: skip
        file.write_bytes(damaged)
        sentence = complaint(tmp_path / "set")
        assert "7.tar" in sentence or "holds no pictures" in sentence
        said.add(sentence.split("(")[0])
    file.write_bytes(__import__("gzip").compress(whole))
    assert "7.tar cannot be read (no tar); is it a whole, uncompressed tar?" in complaint(tmp_path / "set")
    assert any("is cut short" in sentence for sentence in said)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=6), end=st.integers(0, 4096)
)
def test_any_bytes_are_a_listing_or_a_sentence(tmp_path: Path, changes: list[tuple[int, int]], end: int) -> None:
    whole = write_tar(
        tmp_path / "whole.tar", [("1.png", b"picture"), ("1.cls", b"ant"), ("2.png", b"p"), ("2.json", b'{"label": 1}')]
    )
    content = bytearray(whole.read_bytes()[:4096])
    for at, value in changes:
        content[at] = value
    (tmp_path / "set").mkdir(exist_ok=True)
    (tmp_path / "set/0.tar").write_bytes(content if end == 4096 else content[:end])
    with suppress(HeadstartError):
        listing = sources.locate(Data(source=str(tmp_path / "set")))
        assert isinstance(listing.root, InPlace)
        assert all(len(listing.root.read(p.path)) == p.size for p in listing.pictures)


def test_a_tar_of_class_folders_is_unpacked_as_before(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "set.tar", [(f"{name}/{n}.png", png(n)) for n, name in enumerate(NAMES * 2)])
    assert [p.label for p in listed(file)] == ["ant", "ant", "bee", "bee"]


# --- Parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "bytes"])
@pytest.mark.parametrize("at", ["here", "there", "one file here"])
def test_the_rows_of_parquet_are_pictures_with_labels(tmp_path: Path, bucket: str, kind: str, at: str) -> None:
    folder = tmp_path / "set/data"
    write_parquet(folder / "train-00000-of-00002.parquet", list(range(7)), kind, row_group_size=3)
    write_parquet(folder / "train-00001-of-00002.parquet", [*range(7, 12)], kind)
    where: Any = {
        "here": lambda: tmp_path / "set", "there": lambda: uploaded(tmp_path / "set", bucket, "set"),
        "one file here": lambda: folder / "train-00000-of-00002.parquet",
    }[at]()  # fmt: skip
    pictures = listed(where)
    numbers = range(7) if at == "one file here" else range(12)
    assert [p.label for p in pictures] == [NAMES[n % 2] for n in numbers]
    assert {p.split for p in pictures} == {""}  # nothing but train
    assert contents(where, pictures) == [png(n) for n in numbers]
    first = "data/" * (at != "one file here") + "train-00000-of-00002.parquet/00000001"
    assert pictures[0].path == first


def test_parquet_with_splits_goes_through_prepare_and_an_empty_cell_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split, first in (("train", 0), ("validation", 16), ("test", 32)):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", list(range(first, first + 16)), row_group_size=5)
    table = pq.read_table(folder / "train-00000-of-00001.parquet")
    cells = table["image"].to_pylist()
    cells[3], cells[4] = None, {"bytes": b"no picture", "path": None}
    table = table.set_column(0, "image", pa.array(cells, table.schema.field("image").type))
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    assert len(prepared(Data(source=str(folder)), tmp_path / "out")) == 46
    dropped = read_json(PrepareFolder(tmp_path / "out").audit)["dropped"]
    assert [one["path"][-2:] for one in dropped] == ["04", "05"]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"image": [b"1"], "kind": ["a"]}, "has no column label, among image, kind; call the one of the classes label"),
        ({"image": [b"1"], "label": [None]}, "row 1: label is None; the name or number of a class is needed"),
        ({"image": [b"1"], "label": [[1]]}, "row 1: label is [1]; the name or number of a class is needed"),
        ({"image": [b"1"], "label": [0.5]}, "row 1: label is 0.5; the name or number of a class is needed"),
        ({"a": [b"1"], "b": [b"2"], "label": ["x"]}, "has several columns of bytes (a, b); the pictures have to be in"),
        ({"text": ["1"], "label": ["x"]}, "has no column of bytes; the pictures have to be in a column called image"),
    ],
)
def test_what_is_wrong_in_parquet_is_told_with_its_row(tmp_path: Path, table: dict[str, Any], sentence: str) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(table), tmp_path / "set/0.parquet")
    assert sentence in complaint(tmp_path / "set")


def test_what_a_schema_says_of_classes_is_not_believed_blindly(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = pa.table({"image": [png(1), png(2)], "label": [0, -1]})
    for told, sentence in (
        (HF, "row 2: label -1 is none of the 2 classes; leave out unlabelled shards"),
        ({"info": {"features": 3}}, ""),
        ({"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}, ""),
        ([], ""),
    ):
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), tmp_path / "set/0.parquet")
        if sentence:
            assert sentence in complaint(tmp_path / "set")
        else:
            assert [p.label for p in listed(tmp_path / "set")] == ["0", "-1"]


def test_a_shard_of_parquet_that_is_damaged_is_named(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "set/3.parquet", list(range(4))).read_bytes()
    for damaged in (b"", whole[:100], whole[:-20], b"PAR1" + b"x" * 100 + b"PAR1"):
        (tmp_path / "set/3.parquet").write_bytes(damaged)
        sentence = complaint(tmp_path / "set")
        assert "3.parquet cannot be read (" in sentence
        assert "is it a whole Parquet file?" in sentence


def test_a_row_group_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "set/0.parquet", list(range(4)))
    monkeypatch.setattr(sources_parquet, "MOST_BYTES", 1000)
    assert "0.parquet has a row group of 0.0 GB; write it with smaller ones" in complaint(tmp_path / "set")


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_bytes_that_the_file_holds_once_take_memory_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "set").mkdir()
    noise, count = np.random.default_rng(0).bytes(1_000_000), 2000
    image: Any = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([noise], pa.binary()))
    if kind == "struct":
        image = pa.StructArray.from_arrays([image, pa.array(["x.png"] * count)], ["bytes", "path"])
    table = pa.table({"image": image, "label": [NAMES[n % 2] for n in range(count)]})
    pq.write_table(table, tmp_path / "set/0.parquet", store_schema=False)
    assert (tmp_path / "set/0.parquet").stat().st_size < 3_000_000
    rows_of = sources_parquet.ParquetRows(Place(str(tmp_path / "set")))
    assert rows_of.read("0.parquet/00002000") == noise
    assert sum(group.nbytes for group in rows_of._groups.values()) < 3_000_000


def test_a_table_of_paths_is_still_a_table(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    pq.write_table(pa.table({"path": [f"{n}.png" for n in range(4)], "label": NAMES * 2}), tmp_path / "table.parquet")
    assert rows(listed(tmp_path / "table.parquet")) == [(f"{n}.png", NAMES[n % 2], "") for n in range(4)]
