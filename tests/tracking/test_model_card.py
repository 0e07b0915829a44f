"""What the model card says of a result, from the stages' files, whatever people named their classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport, Dropped
from headstart.base.artifacts.card import Card, Preprocessing, WeightsSource
from headstart.base.artifacts.classifier import ClassifierDetails, FamiliarityDetails, Passed
from headstart.base.artifacts.engine import EngineChoice, FeaturesDetails
from headstart.base.artifacts.finetune import FinetuneDetails, PrecisionChoice
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.metrics import Folds, Heat, Metrics, Subgroup, Subgroups
from headstart.base.files import write_text
from headstart.base.params import Params
from headstart.evaluation.metrics import METRICS, metrics_of
from headstart.models.task import MULTI_LABEL
from headstart.tracking import model_card
from headstart.tracking.model_card import card, lineage, plain

MEASURED = {
    key + end: value
    for key in METRICS
    for end, value in {"": 0.8, "_low": 0.7, "_high": 0.9}.items()
}  # fmt: skip
CLASSES = ["NA", "a|b", "<script>"]
VIEW = Preprocessing(size=224, crop=0.875, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DETAILS = ClassifierDetails(
    backbone="resnet18", weights="default", preprocessing=VIEW, classes=CLASSES, temperature=1.0, chosen="finetune",
    max_megapixels=100.0,
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """The stages' files that a card is made from."""
    monkeypatch.setattr(model_card, "_images_per_s", lambda *_: 123.4)  # a time: what it is does not matter here
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    data = DataFolder(tmp_path, "data")
    Metrics(chosen="finetune", val={}, test={"chosen": MEASURED | {"n": 30}}).write(data.evaluate.metrics)
    rows = "".join(f"{name},0.5,0.25,0.3,10\n" for name in CLASSES)
    write_text(data / "evaluate/figures/per_class.csv", f"class,precision,recall,f1,pictures\n{rows}")
    write_text(data / "evaluate/figures/confusion.csv", "true,predicted\nNA,a|b\nNA,a|b\na|b,a|b\n<script>,NA\n")
    counts = {name: {"train": 20, "val": 5, "test": 10} for name in CLASSES}
    dropped = [
        Dropped(path="1.jpg", reason="exact duplicate of 2.jpg, which is in train"),
        Dropped(path="3.jpg", reason="exact duplicate of 4.jpg"),
        Dropped(path="5.jpg", reason="truncated or damaged"),
    ]
    warnings = ["class 'NA' is thin"]
    AuditReport(kept=105, dropped=dropped, warnings=warnings, leaks=0, converted={}, classes=counts).write(
        data.prepare.audit
    )
    write_text(data / "prepare/manifest.parquet", "pictures")
    Card(
        name="resnet18", library="torchvision", weights="default", pretrained=True,
        source=WeightsSource(origin="file resnet18.pth", digest="0", licence="unknown: a local file"), sha256="f" * 64,
        parameters=11176512, gmacs=1.8136, features=512, blocks=10, preprocessing=VIEW,
    ).write(data.backbone.card)  # fmt: skip
    FeaturesDetails(engine="openvino", why="", processor="x86_64 AVX2", threads=2).write(data.features.details)
    FinetuneDetails(
        ran=True, scratch=False, size=224, blocks_unfrozen=5, frozen_part=EngineChoice(engine="torch", why=""),
        precision=PrecisionChoice(precision="fp32", why=""),
        processor="x86_64 AVX2", threads=2, epochs=4, best_epoch=3, averaged_epochs=[3], trained_share=1.0, mixtures=[],
        temperature=1.0, classes=CLASSES,
    ).write(data.finetune.details)  # fmt: skip
    packaged = data.package.model.classifier
    write_text(packaged.weights, "x" * 2_000_000)
    write_text(packaged.network, "")
    DETAILS.write(packaged.details)
    return data


def params(**more: Any) -> Params:
    return Params.model_validate({"backbone": "resnet18", "data": {"source": "~/pictures/birds"}} | more)


def test_the_card_says_what_people_ask(data: DataFolder) -> None:
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


def test_the_card_says_which_figure_to_quote(data: DataFolder) -> None:
    assert "folds" not in card(data, params(), {})
    head = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9, "n": 105}
    folds = Folds(count=5, head=head, quote="test", reason="it is about the packaged model")
    measured = Metrics.read(data.evaluate.metrics)
    measured.model_copy(update={"folds": folds}).write(data.evaluate.metrics)
    said = "In 5 folds over all 105 pictures, heads made like this one from 4/5 of them reach accuracy 0.800 (0.700–0.900)."
    assert f"\n\n{said} Quote the test figure: it is about the packaged model.\n\n" in card(data, params(), {})


def test_the_card_says_where_it_looks_only_if_that_is_the_edge_and_names_bad_subgroups(data: DataFolder) -> None:
    measured, inside = Metrics.read(data.evaluate.metrics), Interval(value=0.5, low=0.45, high=0.55)
    heat = Heat(pictures=96, centre=inside, even=0.39, at_edge=[])
    measured.model_copy(update={"heat": heat, "subgroups": Subgroups(looked_at=3, found=[])}).write(data.evaluate.metrics)
    assert "edge" not in (text := card(data, params(), {}))
    assert "wrong more often" not in text
    heat = heat.model_copy(update={"centre": Interval(value=0.3, low=0.27, high=0.33)})
    bad = Subgroup(
        pictures=24, accuracy=Interval(value=0.25, low=0.1, high=0.5), others=0.83, p=0.002, labels={"a|b": 20, "NA": 4},
        nearest=["1.jpg"],
    )  # fmt: skip
    worse = measured.model_copy(update={"heat": heat, "subgroups": Subgroups(looked_at=3, found=[bad])})
    worse.write(data.evaluate.metrics)
    text = card(data, params(), {})
    assert "\n\nIt looks mostly at the edge of pictures: 70% (67–73) of the heat lies outside the centre, where an" in text
    assert "even map would have 61%.\n" in text
    assert "\n- 24 test pictures (a\\|b 20, NA 4): accuracy 0.250 (0.100–0.500), 0.830 on the others\n\nMost often" in text


def test_the_card_states_from_when_on_a_picture_is_unfamiliar(data: DataFolder) -> None:
    assert "It does not say which pictures are unlike anything learned" in card(data, params(), {})
    FamiliarityDetails(
        neighbour=5, threshold=0.63361, share=0.95, val=Passed(pictures=40, familiar=39),
        test=Passed(pictures=153, familiar=149), images=["a.png"],
    ).write(data.package.model.classifier.familiarity)  # fmt: skip
    text = " ".join(card(data, params(), {}).split())
    assert "farther than 0.634 (one minus the cosine) from those of the training picture that is number 5 among" in text
    assert "95% of pictures like those of validation are meant to pass; of the test pictures 149 of 153 do" in text


def test_the_card_of_a_multi_label_model_names_its_thresholds_and_its_own_metrics(data: DataFolder) -> None:
    details = DETAILS.model_copy(update={"task": "multi-label", "thresholds": [0.3, 0.45, 0.5]})
    details.write(data.package.model.classifier.details)
    measured = {f"{m.name}{end}": 0.8 for m in metrics_of(MULTI_LABEL) for end in ("", "_low", "_high")}
    Metrics(chosen="finetune", val={}, test={"chosen": measured | {"n": 30}}).write(data.evaluate.metrics)
    write_text(data / "evaluate/figures/confusion.csv", "true,predicted\nNA,(none)\nNA,(none)\n(none),a|b\nNA,NA\n")
    text = card(data, params(), {})
    for said in (
        "which of 3 classes a picture has, any number of them or none (multi-label)",
        "| mean average precision | 0.800 | 0.800–0.800 |",
        "which the validation pictures chose: NA 0.30, a\\|b 0.45, \\<script\\> 0.50.\n",
        "Most often wrong: NA missed (2), a\\|b seen in vain (1).",
    ):
        assert said in text, said
    assert "Matthews" not in text
    assert "none of these" not in text


def test_the_same_network_is_measured_once(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(model_card, "_images_per_s", lambda *_: next(times))
    packaged = data.package.model.classifier
    assert model_card.images_per_s(data, 1) == 10.0
    DETAILS.model_copy(update={"temperature": 2.0, "chosen": "head"}).write(packaged.details)
    assert model_card.images_per_s(data, 1) == 10.0
    assert model_card.images_per_s(data, 2) == 20.0
    DETAILS.model_copy(update={"preprocessing": VIEW.model_copy(update={"size": 160})}).write(packaged.details)
    assert model_card.images_per_s(data, 1) == 30.0
    write_text(packaged.network, "def factory(): ...")
    assert model_card.images_per_s(data, 1) == 40.0


def test_the_licence_of_the_emoji_is_known(data: DataFolder) -> None:
    assert "CC-BY 4.0" in card(data, params(data={"source": "emoji"}), {})


def test_without_a_mistake_that_is_said(data: DataFolder) -> None:
    write_text(data / "evaluate/figures/confusion.csv", "true,predicted\nNA,NA\n")
    assert "No test picture was taken for another class." in card(data, params(), {})


def test_the_weakest_classes_come_first_and_the_others_are_left_out(data: DataFolder) -> None:
    rows = "".join(f"class-{n},0.5,{n / 20},0.3,{n % 19}\n" for n in range(20))
    write_text(data / "evaluate/figures/per_class.csv", f"class,precision,recall,f1,pictures\n{rows}")
    shown = [line.split(" ")[1] for line in card(data, params(), {}).splitlines() if line.startswith("| class-")]
    assert shown == [f"class-{n}" for n in range(1, 1 + model_card.WEAKEST)]  # class-0 has no test picture


def test_the_lineage_names_pictures_and_outputs_but_none_of_tracks_own(data: DataFolder) -> None:
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
