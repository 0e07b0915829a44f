"""What the model card says of a result, from the stages' files, whatever people named their classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from headstart.base.files import read_json, write_json, write_text
from headstart.base.params import Params
from headstart.evaluation.metrics import METRICS
from headstart.tracking import model_card
from headstart.tracking.model_card import card, lineage, plain

MEASURED = {
    key + end: value
    for key in METRICS
    for end, value in {"": 0.8, "_low": 0.7, "_high": 0.9}.items()
}  # fmt: skip
CLASSES = ["NA", "a|b", "<script>"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stages' files that a card is made from."""
    monkeypatch.setattr(model_card, "_images_per_s", lambda *_: 123.4)  # a time: what it is does not matter here
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    data = tmp_path / "data"
    write_json(data / "evaluate/metrics.json", {"chosen": "finetune", "test": {"chosen": MEASURED | {"n": 30}}})
    rows = "".join(f"{name},0.5,0.25,0.3,10\n" for name in CLASSES)
    write_text(data / "evaluate/figures/per_class.csv", f"class,precision,recall,f1,pictures\n{rows}")
    write_text(data / "evaluate/figures/confusion.csv", "true,predicted\nNA,a|b\nNA,a|b\na|b,a|b\n<script>,NA\n")
    counts = {name: {"train": 20, "val": 5, "test": 10} for name in CLASSES}
    dropped = [
        {"path": "1.jpg", "reason": "exact duplicate of 2.jpg, which is in train"},
        {"path": "3.jpg", "reason": "exact duplicate of 4.jpg"},
        {"path": "5.jpg", "reason": "truncated or damaged"},
    ]
    audit = {"kept": 105, "dropped": dropped, "warnings": ["class 'NA' is thin"], "classes": counts}
    write_json(data / "prepare/audit.json", audit)
    write_text(data / "prepare/manifest.parquet", "pictures")
    source: dict[str, Any] = {"origin": "file resnet18.pth", "licence": "unknown: a local file"}
    backbone = {"name": "resnet18", "library": "torchvision", "pretrained": True, "source": source, "sha256": "f" * 64}
    backbone |= {"parameters": 11176512, "gmacs": 1.8136, "preprocessing": {"size": 224}}
    write_json(data / "backbone/card.json", backbone)
    here = {"processor": "x86_64 AVX2", "threads": 2}
    write_json(data / "features/features.json", {"engine": "openvino"} | here)
    tuned = {"ran": True, "scratch": False, "best_epoch": 3, "epochs": 4, "frozen_part": {"engine": "torch"}}
    write_json(data / "finetune/finetune.json", tuned | here)
    packaged = data / "package/model/artifacts/classifier"
    write_text(packaged / "classifier.safetensors", "x" * 2_000_000)
    write_text(packaged / "network.py", "")
    write_json(packaged / "classifier.json", {"backbone": "resnet18", "preprocessing": {"size": 224}, "classes": CLASSES})
    return data


def params(**more: Any) -> Params:
    return Params.model_validate({"backbone": "resnet18", "data": {"source": "~/pictures/birds"}} | more)


def test_the_card_says_what_people_ask(data: Path) -> None:
    text = card(data, params(), {"MLflow run": "abc"})
    for said in (
        "# resnet18 on birds\n",
        "which of 3 classes",
        "105 kept (60 train, 15 validation, 30 test), 3 left out",
        "  - 2: exact duplicate\n  - 1: truncated or damaged\n",
        "- class 'NA' is thin",
        f"Licence of the pictures: {model_card.UNKNOWN_PICTURES}",
        "| accuracy | 0.800 | 0.700–0.900 |",
        "| calibration error | 0.800 | 0.700–0.900 |",
        "| Matthews' correlation | 0.800 | 0.700–0.900 |",
        "Validation chose the fine-tuned network",
        "| NA | 0.25 | 0.50 | 10 |",
        "Most often confused: NA taken for a\\|b (2), \\<script\\> taken for NA (1).",
        "11,176,512 parameters, 1.81 GMACs a picture at 224 pixels, 2.0 MB; 123 pictures a second",
        "Licence: unknown: a local file",
        "Trained further: 3 of 4 epochs, half of its blocks",
        "- MLflow run: `abc`",
    ):
        assert said in text, said
    assert "<script>" not in text


def test_the_same_network_is_measured_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(model_card, "_images_per_s", lambda *_: next(times))
    packaged = data / "package/model/artifacts/classifier"
    details = read_json(packaged / "classifier.json")
    assert model_card.images_per_s(data, 1) == 10.0
    write_json(packaged / "classifier.json", details | {"temperature": 2.0, "chosen": "head"})
    assert model_card.images_per_s(data, 1) == 10.0
    assert model_card.images_per_s(data, 2) == 20.0
    write_json(packaged / "classifier.json", details | {"preprocessing": {"size": 160}})
    assert model_card.images_per_s(data, 1) == 30.0
    write_text(packaged / "network.py", "def factory(): ...")
    assert model_card.images_per_s(data, 1) == 40.0


def test_the_licence_of_the_emoji_is_known(data: Path) -> None:
    assert "CC-BY 4.0" in card(data, params(data={"source": "emoji"}), {})


def test_without_a_mistake_that_is_said(data: Path) -> None:
    write_text(data / "evaluate/figures/confusion.csv", "true,predicted\nNA,NA\n")
    assert "No test picture was taken for another class." in card(data, params(), {})


def test_the_weakest_classes_come_first_and_the_others_are_left_out(data: Path) -> None:
    rows = "".join(f"class-{n},0.5,{n / 20},0.3,{n % 19}\n" for n in range(20))
    write_text(data / "evaluate/figures/per_class.csv", f"class,precision,recall,f1,pictures\n{rows}")
    shown = [line.split(" ")[1] for line in card(data, params(), {}).splitlines() if line.startswith("| class-")]
    assert shown == [f"class-{n}" for n in range(1, 1 + model_card.WEAKEST)]  # class-0 has no test picture


def test_the_lineage_names_pictures_and_outputs_but_none_of_tracks_own(data: Path) -> None:
    lock = data.parent / "dvc.lock"
    write_text(
        lock,
        "stages:\n  prepare:\n    outs:\n    - path: data/prepare\n      md5: 1234.dir\n"
        "  track:\n    outs:\n    - path: data/track\n      md5: 5678.dir\n",
    )
    tags = lineage(data, "r" * 64, lock)
    assert tags["headstart.result"] == "r" * 64
    assert tags["headstart.data"] == hashlib.sha256(b"pictures").hexdigest()
    assert json.loads(tags["headstart.dvc"]) == {"data/prepare": "1234.dir"}
    made = "x86_64 AVX2, 2 threads; features by openvino; fine-tuning, its frozen layers by torch"
    assert tags["headstart.arithmetic"] == made
    assert json.loads(lineage(data, "r", data / "none")["headstart.dvc"]) == {}


@pytest.mark.parametrize(
    ("name", "shown"), [("a|b", "a\\|b"), ("two\nlines", "two lines"), ("*new*", "\\*new\\*"), ("Ärger", "Ärger"), (7, "7")]
)
def test_names_stand_in_a_table_as_they_are(name: object, shown: str) -> None:
    assert plain(name) == shown
