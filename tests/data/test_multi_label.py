"""Sets whose pictures have several labels or none: what is read, what is refused, and what prepare makes of them."""

from __future__ import annotations

import csv
import json
import tempfile
import unicodedata
from collections import Counter
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
from headstart.base.artifacts.audit import AuditReport
from headstart.base.errors import HeadstartError
from headstart.base.sections import Data, Prepare, Split
from headstart.data.audit import Audit
from headstart.data.contact_sheet import write_contact_sheet
from headstart.data.decode import Array
from headstart.data.decoders import Stored
from headstart.data.fetch import fetch, read_manifest
from headstart.data.groups import assign_splits, count_leaks
from headstart.data.manifest import class_names, is_multi_label
from headstart.data.manifest import read_manifest as read_prepared
from headstart.data.pack import PackedPicture
from headstart.data.packed import Pixels
from headstart.data.picture import Picture, classes_of
from headstart.data.prepare import prepare
from headstart.data.user_tables import label_names
from tests.data.pictures import CANVAS_CLASSES, encoded, everything_below, photograph, write_canvases, write_pictures

MANIFEST = Path("data/fetch/manifest.csv")
SMALL, EVEN = Prepare(short_side=64), Split(val=0.3, test=0.3)


def write_table(folder: Path, rows: list[str], header: str = "path,labels") -> Path:
    """A table beside the pictures 0.png to 9.png."""
    write_pictures(folder, {f"{i}.png": i for i in range(10)})
    (folder / "set.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return folder / "set.csv"


def fetched(source: Path, **keys: object) -> dict[str, tuple[str, ...] | None]:
    return {p.path: p.labels for p in fetch(Data(source=str(source), **keys), MANIFEST)}  # type: ignore[arg-type]


def complaint(source: Path, **keys: object) -> str:
    with pytest.raises(HeadstartError) as caught:
        fetched(source, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tables -------------------------------------------------------------------------------------------------------------


def test_a_column_labels_gives_each_picture_its_classes_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, ["0.png,red; round;red", "1.png,", "2.png,round", "3.png, ; round ;"])
    assert fetched(table) == {"0.png": ("red", "round"), "1.png": (), "2.png": ("round",), "3.png": ("round",)}
    with MANIFEST.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["path", "labels", "split", "group", "size", "sha256"]
    assert [row["labels"] for row in rows] == ["red;round", "", "round", "round"]
    pictures = read_manifest(MANIFEST)
    assert [(p.label, p.labels) for p in pictures[:2]] == [("red;round", ("red", "round")), ("", ())]
    assert pictures == fetch(Data(source=str(table)), MANIFEST)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("separator", "cell"), [("|", "a b|c"), (" ", "a  b c"), (" / ", "a / b / c"), ("\t", "a\tb")])
def test_another_separator_is_taken_as_told(tmp_path: Path, separator: str, cell: str) -> None:
    table = write_table(tmp_path, [f'0.png,"{cell}"', "1.png,c", "2.png,c"])
    expected = {"|": ("a b", "c"), " ": ("a", "b", "c"), " / ": ("a", "b", "c"), "\t": ("a", "b")}[separator]
    assert fetched(table, label_separator=separator)["0.png"] == expected


def test_a_parquet_may_have_lists_of_names(tmp_path: Path) -> None:
    write_pictures(tmp_path, {f"{i}.png": i for i in range(3)})
    columns = {"path": ["0.png", "1.png", "2.png"], "labels": pa.array([["b", "a"], [], ["a"]], pa.list_(pa.string()))}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    assert fetched(tmp_path / "set.parquet") == {"0.png": ("a", "b"), "1.png": (), "2.png": ("a",)}


@given(
    names=st.lists(st.text("ab\u00e9\u0301_", min_size=1, max_size=5)),
    separator=st.sampled_from([";", "|", ",", " ", "--", " / "]),
    spaces=st.sampled_from(["", " ", "  "]),
)
def test_names_that_are_joined_are_the_names_that_are_read(names: list[str], separator: str, spaces: str) -> None:
    cell = (spaces + separator + spaces).join(names)
    assert label_names(cell, separator, "line 2") == [unicodedata.normalize("NFC", name) for name in names]


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        ("path,label,labels", ["0.png,a,b"], "set.csv has a column 'label' and a column 'labels'; keep 'label' if every"),
        ("path,labels,labels", ["0.png,a,b"], "set.csv has 2 columns called 'labels'; keep one of them"),
        ("path,labels", ["0.png,a", "no.png,a"], "set.csv, line 3: no.png is not there; paths are relative to"),
        ("path,labels", [",a"], "set.csv, line 2: empty path"),
        ("path,labels", ["0.png,a;b", "1.png,b", "0.png,a"], "line 4: 0.png has other labels here than in line 2; put all"),
        ("path,labels,split", ["0.png,a,trian"], "set.csv, line 2: split 'trian'; allowed: train, val, test or empty"),
        ("path,labels", ["0.png,", "1.png,;"], "has a label; at least one class is needed"),
        ("path,labels", ["0.png,a;b", "1.png,b;a"], "has the same labels ('a', 'b'); pictures without them are needed too"),
        (
            "path,labels",
            ["0.png,a;b", "1.png,c"],
            "has two pictures ('a', 'b', 'c'); at least one is needed that has; in a",
        ),
        (
            "path,labels",
            ["0.png,label", "1.png,label", "2.png,"],
            "has a class called 'label', which has a meaning of its own",
        ),
        (
            "path,labels",
            ["0.png,labels", "1.png,labels", "2.png,"],
            "has a class called 'labels', which has a meaning of its",
        ),
        ("path,labels", [], "set.csv has no rows"),
    ],
)
def test_what_is_wrong_in_labels_is_told_with_its_line(tmp_path: Path, header: str, rows: list[str], sentence: str) -> None:
    assert sentence in complaint(write_table(tmp_path, rows, header))


@pytest.mark.parametrize("sign", [";", "\N{GREEK QUESTION MARK}"])  # the second becomes a semicolon when composed
def test_a_name_may_not_hold_what_stands_between_names_in_the_manifest(tmp_path: Path, sign: str) -> None:
    table = write_table(tmp_path, ["0.png,a", f"1.png,a|b{sign}c"])
    assert complaint(table, label_separator="|") == (
        f"{table}, line 3: the class 'b;c' holds ';', which headstart itself puts between names; rename it, or tell by "
        "data.label_separator what stands between the names"
    )


@pytest.mark.parametrize(
    ("cells", "likely"),
    [
        (["a|b", "a|c", "b|c", "a"], "|"),
        (["a b", "a b c", "b c", "a", "a c", "b"], " "),
        (['"a, b"', '"a, c"', '"b, c"', "a"], ","),
        (["No finding", "No finding", "Pleural effusion"], None),
        (["a;b", "a|c"], None),
        (["a", "b", "a", ""], None),
    ],
)
def test_a_separator_that_seems_to_be_another_is_said(
    tmp_path: Path, cells: list[str], likely: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path, [f"{i}.png,{cell}" for i, cell in enumerate([*cells, "same", "same"])])
    fetched(table)
    said = f"headstart: {table}: no cell of the column labels holds ';', so none has two class names; if {likely!r} stands"
    assert capsys.readouterr().err.startswith(said) if likely else capsys.readouterr().err == ""


def test_a_limit_takes_pictures_while_one_of_their_classes_has_too_few(tmp_path: Path) -> None:
    table = write_canvases(tmp_path / "set", 80, 0)
    everything, taken = fetch(Data(source=str(table)), MANIFEST), fetch(Data(source=str(table), limit=5), MANIFEST)
    counts = Counter(name for p in taken for name in p.classes or ("",))
    assert set(counts) == {*CANVAS_CLASSES, ""}
    assert all(count >= 5 or name == "" for name, count in counts.items())
    assert len(taken) <= 5 * len(counts)
    assert [p for p in everything if p in taken] == taken


# --- COCO ---------------------------------------------------------------------------------------------------------------

GOOD: dict[str, list[Any]] = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in range(4)],
    "categories": [{"id": 1, "name": " cat "}, {"id": 7, "name": "dog"}, {"id": "x", "name": "never seen"}],
    "annotations": [
        {"image_id": 0, "category_id": 7}, {"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"image_id": 2, "category_id": 7}, {"image_id": 2, "category_id": 7}, {"image_id": 3, "category_id": 1},
    ],
}  # fmt: skip


def write_coco(folder: Path, content: object = GOOD, pictures: str = "", name: str = "marks.json") -> Path:
    write_pictures(folder / pictures, {f"{i}.png": i for i in range(4)})
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("pictures", "name"),
    [
        ("", "marks.json"),
        ("marks", "marks.json"),
        ("images", "marks.json"),
        ("val2017", "annotations/marks_val2017.json"),
    ],
)
def test_the_labels_of_a_coco_file_are_the_categories_that_are_annotated(tmp_path: Path, pictures: str, name: str) -> None:
    source = write_coco(tmp_path, pictures=pictures, name=name)
    assert fetched(source) == {"0.png": ("cat", "dog"), "1.png": (), "2.png": ("dog",), "3.png": ("cat",)}


BAD_COCO: list[tuple[dict[str, Any] | str | list[object], str]] = [
    ("{", "marks.json cannot be read as JSON: Expecting property name"),
    ("[" * 100_000, "marks.json cannot be read as JSON: "),
    ("[]", "marks.json has no 'images', where COCO's format has a list"),
    ({"images": None}, "has no 'images'"),
    ({"annotations": {"a": 1}}, "has {'a': 1}, where COCO's format has a list"),
    ({"images": []}, "marks.json has no images"),
    ({"images": ["a.png"]}, "marks.json, images[0]: 'a.png' is no object with keys"),
    ({"images": [{"id": 0}]}, "images[0]: file_name has to be a text, and it is not there"),
    ({"images": [{"id": 0, "file_name": 5}]}, "images[0]: file_name has to be a text, found 5"),
    ({"images": [{"id": 0, "file_name": "\ud800.png"}]}, "images[0]: file_name '\\ud800.png' is no proper text"),
    ({"images": [{"id": 0, "file_name": "a" * 20_000}]}, "images[0]: a file_name of 20,000 characters"),
    ({"images": [{"id": True, "file_name": "0.png"}]}, "images[0]: id has to be a number or a text, found True"),
    ({"images": [{"file_name": "0.png"}]}, "images[0]: id has to be a number or a text, and it is not there"),
    ({"images": [*GOOD["images"], {"id": 0, "file_name": "0.png"}]}, "images[4]: the id 0 is that of images[0] too"),
    ({"images": [*GOOD["images"], {"id": 9, "file_name": "./1.png"}]}, "images[4]: './1.png' is the picture of images[1]"),
    ({"images": [*GOOD["images"], {"id": 9, "file_name": "9.png"}]}, "images[4]: '9.png' is not there; paths are relative"),
    (
        {"images": [{"id": i, "file_name": f"no/{i}.png"} for i in range(4)]},
        "images[0]: 'no/0.png' is not there; looked",
    ),
    ({"categories": [{"id": 1}]}, "categories[0]: name has to be a text, and it is not there"),
    ({"categories": [{"id": 1, "name": " "}]}, "categories[0]: name has to be a text, found ' '"),
    ({"categories": [{"id": 1, "name": "a;b"}]}, "categories[0]: the name 'a;b' holds ';', which headstart itself puts"),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "categories[1]: the id 1 is that of categories[0]"),
    (
        {"annotations": [{"image_id": 8, "category_id": 1}]},
        "[0]: no entry of images has the id 8 of its image_id",
    ),
    ({"annotations": [{"image_id": 0, "category_id": "1"}]}, "no entry of categories has the id '1' of its category_id"),
    ({"annotations": [{"image_id": [0], "category_id": 1}]}, "image_id has to be a number or a text, found [0]"),
    ({"annotations": []}, "has a label; at least one class is needed"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_COCO)
def test_what_is_wrong_in_a_coco_file_is_told_with_its_place(
    tmp_path: Path, change: dict[str, Any] | str, sentence: str
) -> None:
    assert sentence in complaint(write_coco(tmp_path, change if isinstance(change, str) else GOOD | change))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 8) | st.floats() | st.sampled_from(["0.png", "cat", "", "\0", "a;b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "name", "file_name", "image_id", "category_id"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, JSON | st.lists(JSON, max_size=3))))
@settings(max_examples=60)
def test_whatever_stands_in_a_coco_file_ends_in_a_listing_or_a_sentence(change: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = write_coco(Path(folder), GOOD | change)
        try:
            pictures = fetch(Data(source=str(source)), Path(folder) / "manifest.csv")
        except HeadstartError as error:
            assert "\n" not in str(error)
        else:
            assert read_manifest(Path(folder) / "manifest.csv") == pictures


def test_a_coco_file_of_too_many_entries_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_coco(tmp_path)
    monkeypatch.setattr("headstart.data.sources_coco.MOST_ROWS", 4)
    assert "marks.json has 5 annotations; at most 4 are read" in complaint(source)
    monkeypatch.setattr("headstart.data.sources_coco.MOST_BYTES", 100)
    assert "GB are read" in complaint(source)


# --- corrections --------------------------------------------------------------------------------------------------------


def test_relabel_gives_pictures_other_labels_and_exclude_takes_some_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path, ["0.png,a|b", "1.png,b", "2.png,", "3.png,b"])
    Path("right.csv").write_text("path,labels\n0.png,b\n1.png,\n2.png,b|a\n")
    Path("out.csv").write_text("path\n3.png\n")
    found = fetched(table, label_separator="|", relabel="right.csv", exclude="out.csv")
    assert found == {"0.png": ("b",), "1.png": (), "2.png": ("a", "b")}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "path,label\n0.png,a\n",
            "data.relabel 'right.csv' has a column 'label' and needs 'labels': pictures of",
        ),
        ("path\n0.png\n", "right.csv has no column 'labels'"),
        ("path,labels\n0.png,a;cc\n", "data.relabel 'right.csv', line 2: data.source has no class 'cc'; it has a, b"),
        ("path,labels\n0.png,a\n0.png,a;b\n", "line 3: 0.png becomes 'a;b' here and 'a' above; keep one of them"),
    ],
)
def test_a_relabel_table_that_does_not_fit_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    table = write_table(tmp_path, ["0.png,a;b", "1.png,b", "2.png,"])
    Path("right.csv").write_text(text)
    assert sentence in complaint(table, relabel="right.csv")


def test_a_relabel_table_with_labels_is_refused_where_each_picture_has_one(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "set", {"a/0.png": 0, "b/1.png": 1})
    Path("right.csv").write_text("path,labels\na/0.png,b\n")
    expected = "data.relabel 'right.csv' has a column 'labels' and needs 'label': each picture of data.source has one label"
    assert complaint(source, relabel="right.csv") == expected


def test_a_correction_without_effect_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, ["0.png,a;b", "1.png,b", "2.png,"])
    Path("right.csv").write_text("path,labels\n0.png,b;a\n")
    fetched(table, relabel="right.csv")
    assert "data.relabel gives 0.png the label that the source has" in capsys.readouterr().err


# --- prepare ------------------------------------------------------------------------------------------------------------


def prepared(table: Path, folder: Path, split: Split = EVEN, seed: int = 0) -> tuple[pd.DataFrame, AuditReport]:
    pictures = fetch(Data(source=str(table)), MANIFEST)
    prepare(pictures, table.parent, SMALL, split, seed, 1, folder)
    return read_prepared(folder), AuditReport.read(PrepareFolder(folder).audit)


def test_a_generated_set_is_prepared_from_end_to_end(tmp_path: Path) -> None:
    table = write_canvases(tmp_path / "set", 90, 3)
    assert table.read_bytes() == write_canvases(tmp_path / "again", 90, 3).read_bytes()
    manifest, audit = prepared(table, tmp_path / "out")
    frame = pd.read_csv(table, keep_default_na=False).set_index("path")["labels"]
    rows = manifest.set_index("path")
    assert list(manifest.columns) == ["path", "label", "labels", "split", "group", "sha256", "width", "height"]
    assert pq.read_schema(PrepareFolder(tmp_path / "out").manifest).field("labels").type == pa.list_(pa.string())
    assert is_multi_label(manifest)
    assert class_names(manifest) == sorted(CANVAS_CLASSES)
    assert (rows["label"] == frame).all()
    assert all(";".join(labels) == text for labels, text in zip(rows["labels"], rows["label"], strict=True))
    assert (rows["label"] == "").any()
    assert audit.kept == len(manifest) == 90
    assert audit.classes == {
        name: {split: int((rows["label"].str.contains(name) & (rows["split"] == split)).sum()) for split in EVEN_SPLITS}
        for name in CANVAS_CLASSES
    }
    for counts in audit.classes.values():
        total = sum(counts.values())
        assert all(abs(counts[split] - share * total) <= 3 for split, share in EVEN_SPLITS.items())
    before = {name: content for name, (content, _) in everything_below(tmp_path / "out").items()}
    prepared(table, tmp_path / "fresh")
    assert {name: content for name, (content, _) in everything_below(tmp_path / "fresh").items()} == before
    write_contact_sheet(Pixels(tmp_path / "out"), manifest, tmp_path / "sheet.png", per_split=1)


EVEN_SPLITS = {"train": 0.4, "val": 0.3, "test": 0.3}


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    table = write_canvases(tmp_path / "set", 60, 0)
    one, other = (prepared(table, tmp_path / str(seed), seed=seed)[0] for seed in (0, 1))
    assert (one["split"] != other["split"]).mean() > 0.3


def test_the_same_picture_or_a_near_duplicate_with_other_labels_is_told(tmp_path: Path) -> None:
    table = write_canvases(tmp_path / "set", 30, 0)
    for copy, (number, labels) in {"same": (0, "flags"), "equal": (1, ""), "near": (2, ""), "none": (3, "")}.items():
        source = table.parent / f"{number:04d}.png"
        data = photograph(99 - number) if copy == "none" else None
        if copy == "near":
            Image.open(source).resize((150, 150)).save(table.parent / "near.png")
        else:
            (table.parent / f"{copy}.png").write_bytes(encoded(data) if data else source.read_bytes())
        table.write_text(table.read_text() + f"{copy}.png,{labels}\n")
    labels = dict(line.split(",") for line in table.read_text().splitlines()[1:])
    assert labels["0000.png"] != "flags"
    assert labels["0001.png"] == ""
    assert labels["0002.png"] != ""
    manifest, audit = prepared(table, tmp_path / "out")
    assert {(d.path, d.reason) for d in audit.dropped} == {
        ("0000.png", "label conflict: the same file is 'flags' in same.png"),
        ("same.png", f"label conflict: the same file is {labels['0000.png']!r} in 0000.png"),
        ("equal.png", "exact duplicate of 0001.png"),
    }
    (warning,) = (w for w in audit.warnings if w.startswith("near"))
    assert warning == f"near-duplicates with two labels: 0002.png ({labels['0002.png']}) and near.png (none)"
    assert manifest.set_index("path").loc[["0002.png", "near.png"], "split"].nunique() == 1


def with_splits(folder: Path, labels: dict[str, list[str]]) -> Path:
    """A table with a picture for each text of labels of each split."""
    rows = [(split, text) for split, texts in labels.items() for text in texts]
    write_pictures(folder, {f"{i:02d}.png": i for i in range(len(rows))})
    lines = [f"{i:02d}.png,{text},{split}" for i, (split, text) in enumerate(rows)]
    (folder / "set.csv").write_text("\n".join(["path,labels,split", *lines]))
    return folder / "set.csv"


def test_a_class_without_training_picture_is_taken_off_and_its_pictures_stay(tmp_path: Path) -> None:
    table = with_splits(tmp_path, {"train": ["a", "", "a;b", "b"], "val": ["a;rare", "b"], "test": ["rare", "a;b"]})
    manifest, audit = prepared(table, tmp_path / "out")
    assert class_names(manifest) == ["a", "b"]
    assert manifest["label"].tolist() == ["a", "", "a;b", "b", "a", "b", "", "a;b"]
    assert manifest["split"].tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert audit.warnings == ["class 'rare' is left out: it has no training picture"]
    assert audit.dropped == []


def test_classes_that_cannot_be_learned_or_measured_are_warned_of(tmp_path: Path) -> None:
    table = with_splits(tmp_path, {"train": ["a;b", "a", "a;c"], "val": ["a;b", ""], "test": ["b", "a"]})
    _, audit = prepared(table, tmp_path / "out")
    assert audit.warnings == [
        "class 'c' has 1 pictures only; add more or leave it out",
        "class 'a' is on every training picture; what it looks like cannot be learned",
    ]


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (["a;b", "a;b"], "every training picture has the same labels ('a', 'b'), which leaves nothing to tell apart; add"),
        (["", ""], "no class with usable training pictures is left, one is needed; add pictures"),
    ],
)
def test_training_pictures_without_anything_to_tell_apart_are_an_error(
    tmp_path: Path, train: list[str], sentence: str
) -> None:
    table = with_splits(tmp_path, {"train": train, "val": ["a", "a"], "test": ["", "a"]})
    with pytest.raises(HeadstartError) as caught:
        prepared(table, tmp_path / "out")
    assert str(caught.value).startswith(sentence)


def test_validation_pictures_are_taken_from_training_with_all_classes(tmp_path: Path) -> None:
    train = ["rare", "rare", *["common"] * 20, *["common;other"] * 10, ""]
    table = with_splits(tmp_path, {"train": train, "test": ["common", "other", "rare"]})
    manifest, audit = prepared(table, tmp_path / "out", Split(val=0.2))
    assert {name: counts["val"] for name, counts in audit.classes.items()} == {"common": 6, "other": 2, "rare": 1}
    assert manifest.loc[manifest["split"] == "test", "path"].tolist() == ["33.png", "34.png", "35.png"]


RANDOM = np.random.default_rng(0)
PHASHES = RANDOM.integers(0, 2**64, 64, dtype=np.uint64)
NOISE: Array = RANDOM.integers(0, 256, (64, 768), dtype=np.uint8)


def usable(number: int, labels: set[str], look: int, group: str) -> PackedPicture:
    """A picture that passed the audit; two with the same ``look`` are near-duplicates, with others never."""
    picture = Picture(f"{number:03d}.png", "", "", group, 1, f"digest {number}").with_labels(labels)
    stored = Stored(1, 1, 1, 1, int(PHASHES[look]), NOISE[look].tobytes(), ())
    return PackedPicture(**vars(stored), picture=picture, span=(0, 0), digest=b"")


@given(
    drawn=st.lists(
        st.tuples(st.sets(st.sampled_from("abcd")), st.integers(0, 63), st.sampled_from(["", "", "g1", "g2", "g3"])),
        min_size=1, max_size=40,
    ),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_groups_and_near_duplicates_stay_together_unless_a_split_would_be_empty(
    drawn: list[tuple[set[str], int, str]], seed: int
) -> None:
    pictures, audit = [usable(i, *what) for i, what in enumerate(drawn)], Audit()
    result = assign_splits(pictures, EVEN, seed, audit)
    apart = assign_splits(pictures, EVEN.model_copy(update={"near_duplicate_bits": None}), seed, Audit())
    assert {u.split for u in apart} <= {u.split for u in result}
    assert any("not kept in one split" in warning for warning in audit.warnings) or count_leaks(result, Split()) == 0
    by_group: dict[str, set[str]] = {}
    for u in result:
        by_group.setdefault(u.picture.group or u.group, set()).add(u.split)
    assert all(len(splits) == 1 for splits in by_group.values())


def test_a_set_of_one_label_each_has_the_columns_that_it_always_had(tmp_path: Path) -> None:
    write_pictures(tmp_path, {f"{i}.png": i for i in range(30)})
    single = write_table(tmp_path, [f"{i}.png,{'ab'[i % 2]}" for i in range(30)], "path,label")
    assert set(fetched(single).values()) == {None}
    assert MANIFEST.read_text().splitlines()[0] == "path,label,split,group,size,sha256"
    manifest = prepare(read_manifest(MANIFEST), tmp_path, SMALL, EVEN, 0, 1, tmp_path / "out")
    assert list(manifest.columns) == ["path", "label", "split", "group", "sha256", "width", "height"]
    assert not is_multi_label(manifest)
    assert classes_of(read_manifest(MANIFEST)) == {"a", "b"}
