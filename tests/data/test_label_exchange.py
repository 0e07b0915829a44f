"""Labels in the files of labelling tools: read as their own libraries write them, and written as those read them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from headstart.base.artifacts import DATA
from headstart.base.artifacts.labels import Counts, LabelIssues, Suspect
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.data.fetch import fetch
from headstart.data.label_exchange import Names, export_labels, import_labels
from headstart.data.label_formats import read_labels
from headstart.data.sources_coco import annotated
from tests.data.pictures import write_pictures

NAMES = {"ants/000.png": 0, "bees/001.png": 1, "wasps/002.png": 2, "ants/003.png": 3, "bees/004.png": 4}
CLASSES = ["ants", "bees", "wasps"]

# Of datumaro 1.13.12, Dataset.export(format="cvat"), with pictures ants/000, bees/001 and wasps/002 and labels of
# dm.Label. The meta of its labels is shortened.
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id></id>
      <name>default</name>
      <size>3</size>
      <labels>
        <label>
          <name>ants</name>
          <attributes>
          </attributes>
        </label>
      </labels>
    </task>
  </meta>
  <image id="0" name="ants/000.png" width="16" height="16">
    <tag label="bees">
    </tag>
  </image>
  <image id="1" name="bees/001.png" width="16" height="16">
    <tag label="bees">
    </tag>
  </image>
  <image id="2" name="wasps/002.png" width="16" height="16">
  </image>
</annotations>
"""
# Of the same, format="coco_labels".
COCO = """{"licenses":[{"name":"","id":0,"url":""}],"info":{"contributor":"","date_created":"","description":"",
"url":"","version":"","year":""},"categories":[{"id":1,"name":"ants","supercategory":""},{"id":2,"name":"bees","supercategory":""},
{"id":3,"name":"(leave out)","supercategory":""}],
"images":[{"id":1,"width":16,"height":16,"file_name":"ants/000.png","license":0,"flickr_url":"","coco_url":"","date_captured":0},
{"id":2,"width":16,"height":16,"file_name":"bees/001.png","license":0,"flickr_url":"","coco_url":"","date_captured":0},
{"id":3,"width":16,"height":16,"file_name":"wasps/002.png","license":0,"flickr_url":"","coco_url":"","date_captured":0}],
"annotations":[{"id":1,"image_id":1,"category_id":2},{"id":2,"image_id":2,"category_id":2}]}"""
# Of label-studio-sdk 2.1.2, Converter.convert(..., "JSON"), with tasks of this kind: local files, an upload, a skipped one
# in a bucket, and one without choices.
LABEL_STUDIO = json.dumps(
    [
        {
            "id": number, "data": {"image": image},
            "annotations": [
                {
                    "id": number, "completed_by": {"id": 1, "email": "a@b.c"}, "was_cancelled": skipped,
                    "created_at": f"2026-01-0{number}T00:00:00Z", "updated_at": f"2026-01-0{number}T00:00:00Z",
                    "lead_time": 3.1,
                    "result": [
                        {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": choices}}
                    ] if choices else [],
                }
            ],
        }
        for number, image, choices, skipped in (
            (1, "/data/local-files/?d=ants/000.png", ["bees"], False),
            (2, "/data/upload/3/4fbc3a1e-001.png", ["bees"], False),
            (3, "s3://bucket/set/wasps/002.png", ["ants"], True),
            (5, "x/bees/004.png", [], False),
        )
    ]
)  # fmt: skip
# Of the same, "JSON_MIN".
JSON_MIN = r"""[
{
  "image": "\/data\/local-files\/?d=ants\/000.png",
  "path": "ants\/000.png",
  "id": 1,
  "choice": "bees",
  "annotator": "a@b.c",
  "annotation_id": 1,
  "created_at": "2026-01-01T00:00:00Z",
  "updated_at": "2026-01-01T00:00:00Z",
  "lead_time": 3.1
},
{
  "image": "\/data\/upload\/3\/4fbc3a1e-001.png",
  "id": 2,
  "choice": "bees",
  "annotator": "a@b.c",
  "annotation_id": 2,
  "created_at": "2026-01-02T00:00:00Z",
  "updated_at": "2026-01-02T00:00:00Z",
  "lead_time": 3.1
},
{
  "image": "x\/bees\/004.png",
  "id": 5,
  "annotator": "a@b.c",
  "annotation_id": 5,
  "created_at": "2026-01-05T00:00:00Z",
  "updated_at": "2026-01-05T00:00:00Z",
  "lead_time": 3.1
}
]"""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Fetch pictures in the current folder, and write the manifest of prepare."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_pictures(tmp_path / "set", NAMES)

    def prepare(table: str = "") -> None:
        source = "set"
        if table:
            source = "set/table.csv"
            Path(source).write_text(table)
        Path("params.yaml").write_text(f"data: {{source: {source}}}\n")
        pictures = fetch(Params.load().data, DATA.fetch.manifest)
        columns = {"path": [p.path for p in pictures], "label": [p.label for p in pictures]}
        labels = {"labels": [[*p.classes] for p in pictures]} if table else {}
        DATA.prepare.mkdir(parents=True)
        frame = pd.DataFrame({**columns, **labels, "split": "train", "width": 96, "height": 72})
        frame.to_parquet(DATA.prepare.manifest, index=False)

    return prepare


def rows(name: str) -> list[tuple[str, ...]]:
    with Path(name).open(encoding="utf-8", newline="") as stream:
        return [tuple(row) for row in csv.reader(stream)][1:]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.xml", CVAT, "(CVAT) has 3 pictures, 1 of them with another label, 0 to be left out, 1 without a label"),
        ("a.json", COCO, "(COCO) has 3 pictures, 1 of them with another label, 0 to be left out, 1 without a label"),
        (
            "b.json",
            LABEL_STUDIO,
            "(Label Studio) has 3 pictures, 1 of them with another label, 0 to be left out, 1 without",
        ),
        ("c.json", JSON_MIN, "(Label Studio) has 3 pictures, 1 of them with another label, 0 to be left out, 1 without"),
    ],
)
def test_what_somebody_has_changed_in_a_tool_becomes_a_correction(
    name: str, text: str, said: str, prepared: Callable[..., None]
) -> None:
    prepared()
    Path(name).write_text(text, encoding="utf-8")
    sentence = import_labels(DATA, Path(name))
    assert said in sentence
    assert sentence.endswith(
        "Written to relabel.csv (data.relabel: relabel.csv in params.yaml); `dvc repro` takes it into account."
    )
    assert rows("relabel.csv") == [("ants/000.png", "ants", "bees")]
    assert {p.path: p.label for p in fetch(Params.load().data, DATA.fetch.manifest)}["ants/000.png"] == "bees"
    # Once more changes nothing, before and after the pipeline has run.
    assert "0 of them with another label" in import_labels(DATA, Path(name))


def test_pictures_are_left_out_by_a_label_and_stay_so(prepared: Callable[..., None]) -> None:
    prepared()
    Path("out.xml").write_text(CVAT.replace('label="bees"', 'label="(leave out)"', 1))
    assert "0 of them with another label, 1 to be left out" in import_labels(DATA, Path("out.xml"))
    assert rows("exclude.csv") == [("ants/000.png",)]
    Path("old.xml").write_text(CVAT)  # exported before
    assert "1 that are left out already and stay so" in import_labels(DATA, Path("old.xml"))
    assert rows("exclude.csv") == [("ants/000.png",)]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.xml", CVAT.replace('"bees"', '"moths"'), "a.xml, image 0: data.source has no class 'moths'; it has ants, bees"),
        ("a.xml", CVAT.replace('"bees"', '"wasp"'), "data.source has no class 'wasp'; did you mean 'wasps'?"),
        ("a.xml", CVAT.replace("ants/000", "ants/999"), "a.xml has 1 picture that data.source does not have, or more"),
        (
            "a.xml", CVAT.replace('<tag label="bees">', '<tag label="ants"></tag><tag label="bees">', 1),
            "image 0: ants/000.png has ants and bees; keep one of them",
        ),
        ("a.xml", CVAT.replace("bees/001", "ants/000").replace('"bees"', '"ants"', 1), "ants/000.png has another label"),
        ("a.xml", CVAT[:500], "a.xml cannot be read as XML: "),
        ("a.xml", "<annotations></annotations>", "a.xml has no images; export the task as CVAT for images 1.1"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "a.xml has a document type"),
        ("a.json", JSON_MIN[:300], "a.json cannot be read as JSON"),
        ("a.json", '[{"text": "no picture"}]', "a.json, task 0: {'text': 'no picture'} is no task of Label Studio's"),
        ("a.json", "[3]", "a.json, task 0: 3 is no task of Label Studio's"),
        ("a.json", '{"images": []}', "a.json has no 'categories'"),
        ("a.csv", "path,label\n", "a.csv is no labels of a known format"),
        ("gone.json", None, "gone.json cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence_and_changes_nothing(
    name: str, text: str | None, complaint: str, prepared: Callable[..., None]
) -> None:
    prepared()
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(HeadstartError, match=re.escape(complaint)):
        import_labels(DATA, Path(name))
    assert not [table for table in ("relabel.csv", "exclude.csv") if Path(table).exists()]


def test_labels_of_several_are_sets_and_none_is_said(prepared: Callable[..., None]) -> None:
    prepared("path,labels\nants/000.png,ants;bees\nbees/001.png,bees\nwasps/002.png,\nbees/004.png,ants\n")
    Path("a.json").write_text(LABEL_STUDIO)
    assert "3 pictures, 2 of them with another label" in import_labels(DATA, Path("a.json"))
    # A submitted task without a choice has no label; of a picture without a tag in CVAT nobody knows.
    assert rows("relabel.csv") == [("ants/000.png", "ants;bees", "bees"), ("bees/004.png", "ants", "")]
    Path("a.xml").write_text(CVAT.replace('label="bees"', 'label="(none)"', 1))
    import_labels(DATA, Path("a.xml"))
    assert rows("relabel.csv")[0] == ("ants/000.png", "ants;bees", "")
    Path("b.xml").write_text(CVAT.replace('<tag label="bees">', '<tag label="bees"/><tag label="(none)">', 1))
    with pytest.raises(HeadstartError, match=r"has \(none\) and bees; keep one of them"):
        import_labels(DATA, Path("b.xml"))


@pytest.mark.parametrize(("to", "file"), [("coco", "a.json"), ("cvat", "a.xml"), ("label-studio", "a.json")])
@pytest.mark.parametrize("table", ["", "path,labels\nants/000.png,ants;bees\nbees/001.png,bees\nwasps/002.png,\n"])
def test_what_is_exported_comes_back_unchanged(to: str, file: str, table: str, prepared: Callable[..., None]) -> None:
    prepared(table)
    said = export_labels(DATA, to, Path(file), "https://example.org/")
    pictures = 3 if table else 5
    assert said.startswith(f"The labels of {pictures} pictures are in {file}")
    assert f"has {pictures} pictures, 0 of them with another label, 0 to be left out" in import_labels(DATA, Path(file))
    assert len(read_labels(Path(file))[1]) == pictures


def test_an_export_has_every_judgement_and_what_each_tool_needs(prepared: Callable[..., None]) -> None:
    prepared()
    Path("a.xml").write_text(CVAT.replace('"bees"', '"(leave out)"', 1))
    import_labels(DATA, Path("a.xml"))
    Path("relabel.csv").write_text("path,label\nbees/001.png,wasps\n")
    Path("params.yaml").write_text("data: {source: set, exclude: exclude.csv, relabel: relabel.csv}\n")
    suspect = Suspect(
        path="ants/003.png", label="ants", suggested="bees", quality=0.1, probability=0.1, suggested_probability=0.8
    )
    counts = Counts(
        pictures=5, judged=5, suspects=1, label_issues=1, outliers=0, duplicates=0, duplicates_under_two_labels=0
    )
    LabelIssues(counts=counts, left_out=[], suspects=[suspect], outliers=[], duplicates=[]).write(DATA.labels.details)

    export_labels(DATA, "coco", Path("coco.json"), "")
    files, labels = annotated(Path("coco.json"))
    found = {name: {*labels[number]} for number, (_, name) in files.items()}
    assert found == {
        "ants/003.png": {"ants"},
        "bees/001.png": {"wasps"},
        "bees/004.png": {"bees"},
        "wasps/002.png": {"wasps"},
    }

    export_labels(DATA, "cvat", Path("cvat.xml"), "")
    offered = [name.text for name in ElementTree.parse("cvat.xml").iterfind("meta/task/labels/label/name")]
    assert offered == [*CLASSES, "(leave out)"]

    said = export_labels(DATA, "label-studio", Path("tasks.json"), "/data/local-files/?d=birds/")
    assert said.endswith("tasks.json, and tasks.interface.xml for the project's labelling interface")
    choices = [choice.get("value") for choice in ElementTree.parse("tasks.interface.xml").iter("Choice")]
    assert choices == [*CLASSES, "(leave out)"]
    first, *others = json.loads(Path("tasks.json").read_text())
    assert first["data"] == {"image": "/data/local-files/?d=birds/ants/003.png", "path": "ants/003.png"}
    (prediction,) = first["predictions"]
    assert prediction["score"] == 0.8
    assert prediction["result"][0]["value"] == {"choices": ["bees"]}
    assert not any(task["predictions"] for task in others)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/1.png", "a/1.png"),
        ("/a/1.png", "a/1.png"),
        ("s3://bucket/set/a/1.png", "a/1.png"),
        ("https://example.org/set/b%20c/1.png?signature=x", "b c/1.png"),
        ("/data/local-files/?d=set/b%20c/1.png", "b c/1.png"),
        ("/data/upload/7/0123abcd-2.png", "a/2.png"),
        ("2.png", "a/2.png"),
        ("1.png", None),  # there are two
        ("/data/upload/7/0123abcd-1.png", None),
        ("aa/1.png", None),
        ("../a/../1.png", None),
        ("http://[", None),
        ("", None),
    ],
)
def test_a_picture_is_found_by_what_a_tool_calls_it(name: str, path: str | None) -> None:
    assert Names(["a/1.png", "b c/1.png", "a/2.png"])(name) == path
