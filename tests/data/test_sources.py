"""Every kind of data.source becomes the same manifest, and the user's pictures stay as they are."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of
from headstart.base.sections import Data
from headstart.data import fetch as fetch_module
from headstart.data import sources
from headstart.data.fetch import fetch, read_manifest
from headstart.data.picture import Listing, Picture, Source
from headstart.data.sources_hymenoptera import CONTENT, content_digest
from headstart.data.sources_torchvision import TORCHVISION_SETS
from tests.data.pictures import encoded, everything_below, photograph, write_pictures

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "hymenoptera_data"
ANTS_AND_BEES = {"ants/1.png": 1, "ants/2.png": 2, "bees/3.png": 3, "bees/deep/4.png": 4}
MANIFEST = Path("data/fetch/manifest.csv")


def listed(source: str | Path, **more: object) -> list[Picture]:
    return fetch(Data(source=str(source), **more), MANIFEST)  # type: ignore[arg-type]


def rows(pictures: list[Picture]) -> list[tuple[str, str, str]]:
    return [(p.path, p.label, p.split) for p in pictures]


def complaint(source: str | Path, **more: object) -> str:
    with pytest.raises(HeadstartError) as caught:
        listed(source, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes_gives_each_picture_the_name_of_its_first_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    pictures = listed(folder)
    assert rows(pictures) == [
        ("ants/1.png", "ants", ""),
        ("ants/2.png", "ants", ""),
        ("bees/3.png", "bees", ""),
        ("bees/deep/4.png", "bees", ""),
    ]
    for picture in pictures:
        content = (folder / picture.path).read_bytes()
        assert (picture.size, picture.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert read_manifest(MANIFEST) == pictures


@pytest.mark.parametrize("source", ["set", "./set", "{absolute}", "~/set"])
def test_a_relative_folder_is_found_from_the_checkout(project: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    write_pictures(project / "set", ANTS_AND_BEES)
    monkeypatch.setenv("HOME", str(project))
    assert len(listed(source.format(absolute=project / "set"))) == 4


def test_inside_a_temporary_experiment_folder_a_relative_folder_is_the_user_s(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(project / "set", ANTS_AND_BEES)
    experiment = project / ".dvc" / "tmp" / "exps" / "tmpx"
    experiment.mkdir(parents=True)
    monkeypatch.chdir(experiment)
    monkeypatch.setenv("DVC_ROOT", str(experiment))
    assert len(listed("set")) == 4
    assert (project / ".headstart" / "hashes").is_dir()
    assert not (experiment / ".headstart").exists()


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), ["test", "train", "val"]),
        (("Training", "valid", "testing"), ["train", "test", "val"]),
        (("train", "validation"), ["train", "test"]),  # val/ alone is what such sets are reported on
        (("train", "test"), ["test", "train"]),
        (("train",), [""]),  # nothing is held out, so there is no split to keep
        (("Training",), [""]),
    ],
)
def test_a_split_that_the_folder_has_is_kept(tmp_path: Path, folders: tuple[str, ...], splits: list[str]) -> None:
    names = {f"{folder}/{label}/{i}.png": i for folder in folders for label in ("ants", "bees") for i in range(2)}
    pictures = listed(write_pictures(tmp_path / "set", names))
    assert list(dict.fromkeys(p.split for p in pictures)) == splits
    assert Counter(p.label for p in pictures) == {"ants": 2 * len(folders), "bees": 2 * len(folders)}


def test_folders_beside_the_split_folders_are_not_silently_left_out(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", {"train/ants/1.png": 1, "val/ants/2.png": 2, "bees/3.png": 3})
    assert "others beside them (bees); move the classes into the split folders" in complaint(folder)
    flat = write_pictures(tmp_path / "flat", {"train/cat.0.jpg": 1, "test1/1.jpg": 2})
    assert "others beside them (test1)" in complaint(flat)


def test_val_and_test_without_train_are_not_taken_for_classes(tmp_path: Path) -> None:
    names = {f"{split}/{label}/1.png": 1 for split in ("trian", "val", "test") for label in ("ants", "bees")}
    assert "class folders in test, val and no train folder beside" in complaint(write_pictures(tmp_path / "set", names))


def test_a_split_folder_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", {f"train/{label}/1.png": 1 for label in ("ants", "bees")})
    (folder / "test").symlink_to(tmp_path / "unplugged")
    assert complaint(folder) == f"{folder / 'test'} is a link that leads nowhere; mend or remove it"


def test_classes_may_be_called_test_and_val(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", {"test/1.png": 1, "val/2.png": 2, "other/3.png": 3})
    assert [p.label for p in listed(folder)] == ["other", "test", "val"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", {"train/1.png": 1, "bus/2.png": 2})
    assert [(p.label, p.split) for p in listed(folder)] == [("bus", ""), ("train", "")]


def test_test_pictures_without_classes_are_no_part_of_a_split(tmp_path: Path) -> None:
    names = {f"{split}/{label}/1.png": 1 for split in ("train", "val") for label in ("ants", "bees")}
    folder = write_pictures(tmp_path / "set", names | {"test/1.png": 3, "test/2.png": 4})
    assert {(p.path.split("/")[0], p.split) for p in listed(folder)} == {("train", "train"), ("val", "test")}
    shutil.rmtree(folder / "val")
    assert {p.split for p in listed(folder)} == {""}


def test_names_that_are_no_text_are_said_and_a_folder_s_icon_passed_over(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    (folder / "ants" / "Icon\r").write_bytes(b"")
    assert [p.path for p in listed(folder)] == sorted(ANTS_AND_BEES)
    Path(os.fsdecode(os.fsencode(folder / "ants") + b"/caf\xe9.png")).write_bytes(b"")
    assert r"a file whose name is no proper text, 'ants/caf\udce9.png'; rename it" in complaint(folder)


def test_a_class_with_the_name_of_a_column_is_refused(tmp_path: Path) -> None:
    for name in ("image", "probability"):
        folder = write_pictures(tmp_path / name, {"text/1.png": 1, f"{name}/2.png": 2})
        assert f"has a class called '{name}'" in complaint(folder)


def test_one_folder_around_everything_is_stepped_into_and_hidden_files_passed_over(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set" / "inner" / "most", ANTS_AND_BEES)
    write_pictures(folder, {".thumbnails/1.png": 1, "ants/.hidden.png": 2, "__MACOSX/ants/1.png": 3})
    assert [p.path for p in listed(tmp_path / "set")] == sorted(ANTS_AND_BEES)


@pytest.mark.parametrize("beside", ["README", "LICENSE.txt", "labels.csv", "preview.png"])
def test_files_beside_the_one_folder_are_no_reason_not_to_step_in(tmp_path: Path, beside: str) -> None:
    folder = write_pictures(tmp_path / "set" / "images", ANTS_AND_BEES)
    (tmp_path / "set" / beside).write_bytes(b"...")
    assert [p.path for p in listed(tmp_path / "set")] == sorted(ANTS_AND_BEES)
    split = {f"{split}/{name}": seed for split in ("train", "test") for name, seed in ANTS_AND_BEES.items()}
    shutil.rmtree(folder)
    write_pictures(folder, split)
    assert Counter(p.split for p in listed(tmp_path / "set")) == {"train": 4, "test": 4}


def test_the_folders_of_one_class_are_not_taken_for_classes_while_another_is_unplugged(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", {"ants/2019/1.png": 1, "ants/2020/2.png": 2})
    (folder / "bees").symlink_to(tmp_path / "unplugged")
    assert "has one class only ('ants')" in complaint(folder)


CAFE = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


def test_a_class_is_one_whether_its_accents_are_composed_or_not(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", {f"{CAFE['NFC']}/1.png": 1, f"{CAFE['NFD']}/2.png": 2, "tea/3.png": 3})
    assert Counter(p.label for p in listed(folder)) == {CAFE["NFC"]: 2, "tea": 1}
    assert {p.path for p in listed(folder)} == {f"{name}/{i}.png" for i, name in enumerate((*CAFE.values(), "tea"), 1)}


@pytest.mark.parametrize("written", CAFE)
def test_a_table_may_write_a_path_with_other_accents_than_the_disk(tmp_path: Path, written: str) -> None:
    on_disk = {**CAFE}["NFD" if written == "NFC" else "NFC"]
    write_pictures(tmp_path, {f"{on_disk}.png": 1, "2.png": 2})
    (tmp_path / "set.csv").write_text(f"path,label\n{CAFE[written]}.png,{CAFE[written]}\n2.png,tea\n", encoding="utf-8")
    assert [(p.path, p.label) for p in listed(tmp_path / "set.csv")] == [("2.png", "tea"), (f"{on_disk}.png", CAFE["NFC"])]


def test_a_link_that_leads_nowhere_is_in_the_manifest_without_a_digest(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    for name in ("ants/0.png", "bees/deep/dir", "wasps"):
        (folder / name).symlink_to("gone")
    (folder / "ants/circle.png").symlink_to("circle.png")
    links = {p.path: p for p in listed(folder) if not p.sha256}
    assert {path: p.label for path, p in links.items()} == {
        "ants/0.png": "ants", "ants/circle.png": "ants", "bees/deep/dir": "bees", "wasps": "wasps",
    }  # fmt: skip
    assert len(listed(folder)) == 4 + 4
    assert Counter(p.label for p in listed(folder, limit=1) if p.sha256) == {"ants": 1, "bees": 1}
    shutil.rmtree(folder / "bees")
    assert "has one class only ('ants')" in complaint(folder)


def test_folders_that_all_link_to_each_other_end_in_a_sentence(tmp_path: Path) -> None:
    """There are 12! ways through them."""
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    rooms = [folder / "ants" / f"room{n}" for n in range(12)]
    for room in rooms:
        room.mkdir()
        for number, other in enumerate(rooms):
            (room / f"to{number}").symlink_to(other)
    assert re.search(r"links lead to .*/ants/room\d+ in more than 100 ways; remove links", complaint(folder))
    for room in rooms[3:]:
        shutil.rmtree(room)  # the links to it lead nowhere now
    assert {p.label for p in listed(folder)} == {"ants", "bees"}


def test_folders_deeper_than_python_recurses_end_in_a_sentence(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    subprocess.run(["mkdir", "-p", f"ants/{'d/' * 1200}"], cwd=folder, check=True)
    try:
        assert "folders are more than 100 deep in each other at " in complaint(folder)
    finally:
        subprocess.run(["rm", "-r", folder], check=True)  # on which shutil fails
    pictures = write_pictures(tmp_path / "set", ANTS_AND_BEES | {f"ants/{'d/' * 90}5.png": 5})
    assert len(listed(pictures)) == 5


def test_a_limit_takes_so_many_of_each_class_whatever_their_names(tmp_path: Path) -> None:
    names = {f"{label}/{i}.png": 10 * k + i for k, label in enumerate(("ants", "bees")) for i in range(6)}
    first = listed(write_pictures(tmp_path / "set", names), limit=3)
    assert Counter(p.label for p in first) == {"ants": 3, "bees": 3}
    renamed = tmp_path / "renamed"
    for p in sorted((tmp_path / "set").rglob("*.png")):
        target = renamed / p.parent.name / f"{9 - int(p.stem)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, target)
    assert {p.sha256 for p in listed(renamed, limit=3)} == {p.sha256 for p in first}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({}, "holds no files in class folders; expected one folder per class"),
        ({"1.png": 1, "2.png": 2}, "holds files but no class folders; put each class's pictures in a folder of its own"),
        ({"ants/1.png": 1}, "has one class only ('ants'); at least two are needed"),
    ],
)
def test_a_folder_that_nothing_can_be_learned_from_says_why(tmp_path: Path, names: dict[str, int], sentence: str) -> None:
    (tmp_path / "set").mkdir()
    assert sentence in complaint(write_pictures(tmp_path / "set", names))


def test_an_unknown_source_names_what_is_near_and_where_it_looked(project: Path) -> None:
    assert "did you mean 'hymenoptera'?" in complaint("hymenoptra")
    assert "did you mean 'torchvision:NAME'?" in complaint("torchvison:CIFAR10")
    message = complaint("a folder")  # what only describes a kind of source is no name to put there
    assert "did you mean" not in message
    assert f"{project / 'a folder'} is not there" in message
    assert complaint("emojy").endswith("; did you mean 'emoji'?")  # a question ends the sentence
    assert "emoji, hymenoptera, torchvision:NAME, an address with ://, an existing folder of .parquet shards " in message


# --- a kind of source of one's own, added as CONTRIBUTING.md says ------------------------------------------------------


class Stripes(Source):
    form = "stripes:NUMBER"

    def takes(self, source: str) -> bool:
        return source.startswith("stripes:")

    def listing(self, data: Data) -> Listing:
        number = int(data.source.removeprefix("stripes:"))
        write_pictures(Path("drawn"), {f"{label}-{i}.png": i for label in ("broad", "thin") for i in range(number)})
        paths = sorted(path.name for path in Path("drawn").iterdir())
        return Listing(Path("drawn"), [Picture(path, path.split("-")[0]) for path in paths])


@pytest.mark.usefixtures("project")
def test_a_class_in_the_list_is_a_kind_of_source(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean" not in complaint("stripes")
    monkeypatch.setattr(sources, "SOURCES", [Stripes(), *sources.SOURCES])
    pictures = listed("stripes:3", limit=2)
    assert Counter(p.label for p in pictures) == {"broad": 2, "thin": 2}
    assert read_manifest(MANIFEST) == pictures
    assert "did you mean 'stripes:NUMBER'?" in complaint("stripes")


# --- what is written, and what is left alone -------------------------------------------------------------------------


def test_the_manifest_is_the_same_bytes_when_only_times_change_and_the_folder_is_never_written(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    before = everything_below(folder)
    listed(folder)
    first = MANIFEST.read_bytes()
    assert everything_below(folder) == before
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    listed(folder)
    assert MANIFEST.read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_only_touched_files_are_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    old = {p.path: p.sha256 for p in listed(folder)}
    read: list[str] = []
    monkeypatch.setattr(fetch_module, "sha256_of", lambda path: [read.append(path.name), sha256_of(path)][1])
    assert {p.path: p.sha256 for p in listed(folder)} == old
    assert read == []
    for name, same_time in (("ants/1.png", True), ("ants/2.png", False)):  # the first as cp -p or rsync -t would leave it
        stat, content = (folder / name).stat(), bytearray((folder / name).read_bytes())
        content[-1] ^= 255
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if same_time else 1)))
    new = {p.path: p.sha256 for p in listed(folder)}
    assert read == ["1.png", "2.png"]
    assert [path for path in old if old[path] != new[path]] == ["ants/1.png", "ants/2.png"]


def test_a_damaged_hash_index_is_made_anew(project: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    first = listed(folder)
    (index,) = (project / ".headstart" / "hashes").iterdir()
    index.write_text("{half")
    assert listed(folder) == first


def test_looking_at_a_folder_imports_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, headstart.data.sources; print([m for m in ('torch', 'mlflow', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_pictures(Path(name), ANTS_AND_BEES)
        folder.chmod(0o777)
        (folder / "ants" / "1.png").chmod(0o000)
        # root may read everything, so that it is given up, in a process of its own and after the imports.
        code = (
            "import os; from pathlib import Path; from headstart.data.fetch import fetch; "
            "from headstart.base.sections import Data\n"
            f"os.chdir({name!r}); os.geteuid() or os.seteuid(65534)\n"
            f"fetch(Data(source={name!r}), Path('manifest.csv'))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    sentence = f"{name}/ants/1.png cannot be read: Permission denied; mend its permissions or move it away"
    assert done.stderr.strip().splitlines()[-1].endswith(sentence)


# --- tables -------------------------------------------------------------------------------------------------------


def table(folder: Path, kind: str, columns: dict[str, list[object]]) -> Path:
    frame = pd.DataFrame(columns)
    path = folder / f"set.{kind}"
    folder.mkdir(exist_ok=True, parents=True)
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_labels_splits_and_groups_with_paths_from_its_folder(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path / "tables", ANTS_AND_BEES)
    write_pictures(tmp_path / "elsewhere", {"4.png": 4})
    columns: dict[str, list[object]] = {
        "path": ["ants/1.png", str(tmp_path / "tables/ants/2.png"), "../elsewhere/4.png"],
        "label": ["ant", "ant", "bee"],
        "split": ["train", "Validation", "test"],
        "group": ["nest 1", "nest 2", None],
        "remark": ["not", "of", "interest"],
    }
    pictures = listed(table(tmp_path / "tables", kind, columns))
    assert [(p.path, p.label, p.split, p.group) for p in pictures] == [
        ("../elsewhere/4.png", "bee", "test", ""),
        ("ants/1.png", "ant", "train", "nest 1"),
        ("ants/2.png", "ant", "val", "nest 2"),
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["train", "val", "train"], ["train", "test", "train"]),
        (["train", "train", "train"], ["", "", ""]),
        (["", "", ""], ["", "", ""]),
        ([None, None, None], ["", "", ""]),
    ],
)
def test_a_table_with_train_and_val_only_reports_on_val(
    tmp_path: Path, kind: str, given: list[object], kept: list[str]
) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    columns: dict[str, list[object]] = {
        "path": ["ants/1.png", "ants/2.png", "bees/3.png"],
        "label": ["a", "a", "b"],
        "split": given,
    }
    assert [p.split for p in listed(table(tmp_path, kind, columns))] == kept


def test_a_number_s_label_is_its_text_and_a_spreadsheet_s_byte_order_mark_is_no_part_of_the_first_column(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    (tmp_path / "set.csv").write_text("\ufeffpath,label\nants/1.png,0\nbees/3.png,1\n", encoding="utf-8")
    assert [p.label for p in listed(tmp_path / "set.csv")] == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,label\na.png,a\n", "has no column 'path' (it has file, label); needed: path, label; optional: split, group"),
        ("path,class\nants/1.png,a\n", "has no column 'label' (it has path, class)"),
        ("", "has no column 'path' (it has no rows)"),
        ("path,label\nants/1.png,a\n\nbees/3.png,\n", ", line 4: empty label"),
        ("path,label\n,a\n", ", line 2: empty path"),
        ('path,label,note\nants/1.png,a,"two\nlines"\n9.png,a,\n', ", line 4: 9.png is not there; paths are relative to"),
        ("path,label,split\nants/1.png,a,trian\n", ", line 2: split 'trian'; allowed: train, val, test or empty"),
        ("path,label,split\nants/1.png,a,train\nbees/3.png,b,\n", "some rows have a split and others none"),
        ("path,label,split\nants/1.png,a,val\nbees/3.png,b,test\n", "no 'train' row; there is nothing to learn from"),
        ("path,label\nants/1.png,a\n", "has one class only ('a')"),
        ("path,label\nants/1.png,a\nbees/3.png,rock, paper\n", ", line 3: 3 cells, and there are 2 columns; put a text"),
        ("path,label,split\nants/1.png,a,train,x\n", ", line 2: 4 cells, and there are 3 columns"),
        ("path\nants/1.png,a\n", ", line 2: 2 cells, and there are 1 columns"),
        ('path,label\nants/1.png,"a\nbees/3.png,b\n', ", line 3: unexpected end of data; look at its quotation marks"),
        ('path,label\nants/1.png,"a"b\n', ", line 2: ',' expected after"),
        ("path,label,label\nants/1.png,a,b\n", "has 2 columns called 'label'; keep one of them"),
        ("path,label\nants/1.png\n", ", line 2: empty label"),
        (f"path,label,group\nants/1.png,a,{'g' * 10_001}\n", ", line 2: a group of 10,001 characters; at most 10,000"),
        ("path;label\nants/1.png;a\n", "has no column 'path' (it has path;label); needed: path, label; optional: "),
        ("path\tlabel\nants/1.png\ta\n", "; its columns have to be separated by commas"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_csv_is_told_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    (tmp_path / "set.csv").write_text(text)
    message = complaint(tmp_path / "set.csv")
    assert sentence in message
    assert "set.csv" in message


def test_commas_that_hold_nothing_and_those_between_quotation_marks_are_read(tmp_path: Path) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    (tmp_path / "set.csv").write_text('\npath, label,,\nants/1.png,"rock, paper",,\n,,,\nbees/3.png, 12" nails,,,, \n , \n')
    assert [p.label for p in listed(tmp_path / "set.csv")] == ["rock, paper", '12" nails']


def test_a_row_listed_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    (tmp_path / "set.csv").write_text("path,label\nants/1.png,a\nbees/3.png,b\n./ants/1.png,a\nants/1.png, a\n")
    assert [p.path for p in listed(tmp_path / "set.csv")] == ["ants/1.png", "bees/3.png"]
    assert "set.csv lists 2 rows twice; each counts once" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["real", "link"])
@pytest.mark.parametrize("at", ["real", "link"])
def test_a_table_with_absolute_paths_works_through_links(tmp_path: Path, named: str, at: str) -> None:
    folders = {"real": tmp_path / "very" / "deep" / "real", "link": tmp_path / "link"}
    write_pictures(folders["real"], ANTS_AND_BEES)
    folders["link"].symlink_to(folders["real"])
    lines = [f"{folders[named] / name},{name[0]}" for name in ANTS_AND_BEES]
    (folders["real"] / "set.csv").write_text("\n".join(["path,label", *lines]))
    assert rows(listed(folders[at] / "set.csv")) == [(name, name[0], "") for name in sorted(ANTS_AND_BEES)]


def test_a_table_in_a_linked_folder_finds_what_is_outside_of_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "very" / "deep" / "pictures", ANTS_AND_BEES)
    (tmp_path / "very" / "deep" / "tables").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "very" / "deep" / "tables")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "very" / "deep" / "pictures")
    absolute = [str(tmp_path / path) for path in ("very/deep/pictures/ants/2.png", "elsewhere/bees/3.png")]
    names = ["../pictures/ants/1.png", *absolute]
    (tmp_path / "link" / "set.csv").write_text("\n".join(["path,label", *(f"{name},{i}" for i, name in enumerate(names))]))
    pictures = listed(tmp_path / "link" / "set.csv")
    assert [p.path for p in pictures] == ["../pictures/ants/1.png", "../pictures/ants/2.png", "../pictures/bees/3.png"]
    assert all((tmp_path / "link" / p.path).is_file() for p in pictures)


def test_what_is_wrong_in_a_parquet_is_told_with_its_row(tmp_path: Path) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    path = table(tmp_path, "parquet", {"path": ["ants/1.png", "ants/2.png"], "label": [1.0, float("nan")]})
    assert ", row 2: empty label" in complaint(path)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([2**31 - 1] * 2, pa.date32()),  # a date of the year 5,881,580: OverflowError
        pa.array([0] * 2, pa.timestamp("us", tz="Nowhere/Land")),
        pa.array([2**62] * 2, pa.timestamp("us", tz="UTC")),
        pa.array([b"\xff"] * 2),
    ],
    ids=["date", "zone", "time", "bytes"],
)
def test_columns_of_a_parquet_that_python_has_no_values_for(tmp_path: Path, labels: pa.Array) -> None:
    write_pictures(tmp_path, ANTS_AND_BEES)
    paths = pa.array(["ants/1.png", "bees/3.png"])
    pq.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "set.parquet")
    assert "set.parquet" in complaint(tmp_path / "set.parquet")
    pq.write_table(pa.table({"path": paths, "label": ["ants", "bees"], "else": labels}), tmp_path / "set.parquet")
    assert [p.label for p in listed(tmp_path / "set.parquet")] == ["ants", "bees"]


def test_a_small_parquet_of_very_many_rows_is_refused(tmp_path: Path) -> None:
    nothing = pa.nulls(10_000_001)
    pq.write_table(pa.table({"path": nothing, "label": nothing}), tmp_path / "set.parquet")
    assert (tmp_path / "set.parquet").stat().st_size < 100_000
    assert "set.parquet has 10,000,001 rows; at most 10,000,000 are read" in complaint(tmp_path / "set.parquet")


@pytest.mark.parametrize(("name", "content"), [("set.csv", b"path,label\n\xff\xfe,a\n"), ("set.parquet", b"no parquet")])
def test_a_table_that_cannot_be_read_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} cannot be read as a table: " in complaint(tmp_path / name)


# --- archives and addresses -----------------------------------------------------------------------------------------


def zipped(folder: Path, archive: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(path, f"{inside}{path.relative_to(folder).as_posix()}")
    return archive


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_an_archive_is_the_folder_inside_it(tmp_path: Path, kind: str) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    archive = tmp_path / f"archive{kind}"
    if kind == ".zip":
        zipped(folder, archive, "set/")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, "set")
    before = archive.read_bytes()
    assert listed(archive) == listed(folder)
    assert archive.read_bytes() == before


def test_a_changed_archive_is_unpacked_anew(tmp_path: Path, project: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    assert len(listed(zipped(folder, tmp_path / "set.zip"))) == 4
    write_pictures(folder, {"ants/5.png": 5})
    assert len(listed(zipped(folder, tmp_path / "set.zip"))) == 5
    assert len([path for path in (project / ".headstart" / "downloads").iterdir() if path.is_dir()]) == 1


def corrected(archive: Path) -> None:
    """Other pictures under the old names, in an archive of the old size and time, in which all times are the same too."""
    pictures = {f"set/{name}": encoded(photograph(100 * seed), "BMP") for name, seed in ANTS_AND_BEES.items()}
    before = archive.stat() if archive.exists() else None
    with tarfile.open(archive, "w") as tar:
        contents = list(pictures.values()) if before is None else list(pictures.values())[::-1]
        for name, content in zip(pictures, contents, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if before is not None:
        assert archive.stat().st_size == before.st_size
        os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))


def digests(pictures: list[Picture]) -> list[str]:
    return [p.sha256 for p in pictures]


@pytest.mark.parametrize("source", ["{folder}/set.tar", "file://{folder}/set.tar", "{address}/set.tar"])
def test_pictures_corrected_in_an_archive_of_the_same_size_are_seen(
    tmp_path: Path, serve: Callable[[Path], str], source: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    source = source.format(folder=site, address=serve(site))
    corrected(site / "set.tar")
    first = listed(source)
    assert digests(listed(source)) == digests(first)
    corrected(site / "set.tar")
    assert digests(listed(source)) == digests(first)[::-1]


def test_an_archive_at_an_address_is_fetched_again_only_when_it_has_changed(
    tmp_path: Path, serve: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    site = tmp_path / "site"
    site.mkdir()
    archive = zipped(folder, site / "set.zip")
    os.utime(archive, (1_000_000_000, 1_000_000_000))
    address = f"{serve(site)}/set.zip"
    first = listed(address)
    assert first == listed(folder)
    capsys.readouterr()
    assert listed(address) == first
    assert "download" not in capsys.readouterr().err
    archive.unlink()
    assert listed(address) == first
    assert "going on with what was fetched before" in capsys.readouterr().out


def test_between_fetch_and_prepare_an_address_is_not_asked_again(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    data = Data(source=f"{serve(tmp_path)}/{zipped(folder, tmp_path / 'set.zip', 'set/').name}")
    source = sources.source_of(data)
    root, pictures = source.listing(data).root, listed(data.source)
    (tmp_path / "set.zip").unlink()
    assert source.root(data) == root
    assert isinstance(root, Path)
    assert [hashlib.sha256((root / p.path).read_bytes()).hexdigest() for p in pictures] == digests(pictures)


def test_an_archive_made_on_windows_has_folders(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as out:
        for name in ANTS_AND_BEES:
            out.writestr("set\\" + name.replace("/", "\\"), (folder / name).read_bytes())
    assert listed(tmp_path / "set.zip") == listed(folder)


def test_an_address_of_something_else_than_an_archive_is_named(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "set.zip").write_bytes(b"<html>sign in first</html>")
    message = complaint(f"{serve(tmp_path / 'site')}/set.zip?token=1")
    assert message.endswith("-set.zip could not be unpacked: is it a whole zip or tar file?")


def test_a_google_bucket_without_gcsfs_says_what_to_install() -> None:
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        assert "install gcsfs to access Google Storage, with pip" in complaint("gs://bucket/set")
    else:
        pytest.skip("gcsfs is installed here")


# --- sets known by name -----------------------------------------------------------------------------------------------


def test_the_default_needs_no_network_and_has_1884_pictures_in_9_classes() -> None:
    pictures = listed("emoji")
    assert len(pictures) == 1884
    assert Counter(p.label for p in pictures).keys() == {
        "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities",
        "Objects", "Symbols", "Flags",
    }  # fmt: skip


def test_ants_and_bees_come_from_a_mirror_and_are_checked(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the tutorial's photographs are not in ../shared/data")
    assert content_digest(PHOTOGRAPHS) == CONTENT
    (tmp_path / "site").mkdir()
    zipped(PHOTOGRAPHS, tmp_path / "site" / "hymenoptera_data.zip", "hymenoptera_data/")
    pictures = listed("hymenoptera", mirror=serve(tmp_path / "site") + "/")
    assert Counter(p.split for p in pictures) == {
        "train": 245,
        "test": 153,
    }  # 244 and a stray .gif; val/ is what is reported
    assert {p.label for p in pictures} == {"ants", "bees"}
    (tmp_path / "site" / "hymenoptera_data.zip").unlink()
    assert listed("hymenoptera") == pictures


def test_other_pictures_under_the_tutorial_s_name_are_refused(
    project: Path, tmp_path: Path, serve: Callable[[Path], str]
) -> None:
    folder = write_pictures(tmp_path / "set", {"train/ants/1.png": 1, "train/bees/2.png": 2, "val/ants/3.png": 3})
    (tmp_path / "site").mkdir()
    zipped(folder, tmp_path / "site" / "hymenoptera_data.zip", "hymenoptera_data/")
    for _ in range(2):  # nor does the refused set stay for the next time
        assert "holds other pictures than the tutorial's" in complaint("hymenoptera", mirror=serve(tmp_path / "site"))
    assert not (project / ".headstart" / "downloads" / "hymenoptera").exists()


def test_a_mirror_that_does_not_answer_leaves_three_ways_out() -> None:
    message = complaint("hymenoptera", mirror="http://127.0.0.1:1")
    assert "http://127.0.0.1:1/hymenoptera_data.zip could not be fetched: " in message
    for way in ("set data.mirror", "unpack the archive yourself", "data.source: emoji"):
        assert way in message


# --- torchvision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_every_torchvision_set_exists_and_takes_what_it_is_given(name: str) -> None:
    import torchvision

    kind = getattr(torchvision.datasets, name)
    for arguments in TORCHVISION_SETS[name].values():
        # EMNIST and QMNIST hand **kwargs on to MNIST.
        accepted = set(inspect.signature(kind).parameters) | set(inspect.signature(kind.__mro__[1]).parameters)
        assert {"root", "download", *arguments} <= accepted


@pytest.mark.parametrize(("name", "hint"), [("CIFAR01", "'CIFAR10'"), ("nonsense", "known: CIFAR10, CIFAR100, MNIST")])
def test_an_unknown_torchvision_name_gets_a_hint(name: str, hint: str) -> None:
    message = complaint(f"torchvision:{name}")
    assert f"'torchvision:{name}' is not a labelled set that torchvision can download" in message
    assert hint in message


def idx(values: np.ndarray) -> bytes:
    """The MNIST family's file format."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


def test_an_array_set_is_downloaded_checked_and_becomes_png_files_once(
    project: Path, tmp_path: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision
    from PIL import Image

    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (20, 28, 28)), "t10k": rng.integers(0, 256, (10, 28, 28))}
    resources = []
    (tmp_path / "site").mkdir()
    for part, pixels in images.items():
        for what, values in (
            (f"{part}-images-idx3-ubyte", pixels),
            (f"{part}-labels-idx1-ubyte", np.arange(len(pixels)) % 10),
        ):
            content = idx(values)
            (tmp_path / "site" / f"{what}.gz").write_bytes(content)
            resources.append((f"{what}.gz", hashlib.md5(content).hexdigest()))
    # The publisher's address and digests are replaced by those of this small set; the code that fetches and checks is real.
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [serve(tmp_path / "site") + "/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    pictures = listed("torchvision:FashionMNIST")
    assert Counter(p.split for p in pictures) == {"train": 20, "test": 10}
    assert {p.label for p in pictures} == set(torchvision.datasets.FashionMNIST.classes)
    root = project / ".headstart" / "downloads" / "torchvision-FashionMNIST"
    first = next(p for p in pictures if p.split == "train")
    assert first.label == "T-shirt/top"
    assert (np.asarray(Image.open(root / first.path)) == images["train"][0]).all()
    shutil.rmtree(tmp_path / "site")
    assert listed("torchvision:FashionMNIST") == pictures


def test_files_put_in_place_by_hand_are_used_without_a_network_and_are_not_copied(project: Path) -> None:
    root = project / ".headstart" / "downloads" / "torchvision-Food101"
    names = {f"{label}/{i}": i for label in ("apple_pie", "baklava") for i in range(4)}
    write_pictures(root / "food-101" / "images", {f"{name}.jpg": seed for name, seed in names.items()}, "JPEG")
    (root / "food-101" / "meta").mkdir()
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        meta = {label: [f"{label}/{i}" for i in numbers] for label in ("apple_pie", "baklava")}
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(meta))
    pictures = listed("torchvision:Food101")
    assert {p.path for p in pictures} == {f"food-101/images/{name}.jpg" for name in names}
    assert Counter((p.label, p.split) for p in pictures) == {
        (label, split): n for label in ("apple_pie", "baklava") for split, n in (("train", 3), ("test", 1))
    }


def test_a_set_whose_publisher_is_gone_is_read_from_files_put_in_place(project: Path) -> None:
    import scipy.io

    root = project / ".headstart" / "downloads" / "torchvision-StanfordCars"
    base = root / "stanford_cars"
    write_pictures(base, {f"cars_{part}/{i}.jpg": i for part in ("train", "test") for i in range(2)}, "JPEG")
    (base / "devkit").mkdir()
    rows = [{"fname": f"{i}.jpg", "class": i + 1, "bbox_x1": 0, "bbox_y1": 0, "bbox_x2": 1, "bbox_y2": 1} for i in range(2)]
    scipy.io.savemat(base / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    scipy.io.savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    names = np.array(["Audi TT", "BMW M3"], dtype=object)
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    pictures = listed("torchvision:StanfordCars")
    assert Counter(p.split for p in pictures) == {"train": 2, "test": 2}
    assert {p.label for p in pictures} == {"Audi TT", "BMW M3"}


def test_a_set_without_class_names_is_labelled_by_its_numbers(project: Path) -> None:
    root = project / ".headstart" / "downloads" / "torchvision-GTSRB" / "gtsrb"
    for folder in ("GTSRB/Training/00000", "GTSRB/Training/00001", "GTSRB/Final_Test/Images"):
        (root / folder).mkdir(parents=True)
        (root / folder / "1.ppm").write_bytes(encoded(photograph(len(folder)), "PPM"))
    (root / "GT-final_test.csv").write_text("Filename;ClassId\n1.ppm;1\n")
    assert Counter((p.label, p.split) for p in listed("torchvision:GTSRB")) == {
        ("0", "train"): 1, ("1", "train"): 1, ("1", "test"): 1,
    }  # fmt: skip


def test_a_set_that_cannot_be_downloaded_says_why_and_what_to_do(
    tmp_path: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    (tmp_path / "site").mkdir()
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [serve(tmp_path / "site") + "/"])
    message = complaint("torchvision:FashionMNIST")
    assert message.startswith("torchvision could not give FashionMNIST: ")
    assert "the set's files placed in " in message
