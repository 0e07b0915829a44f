"""The files that stages write: their names, what stands in the JSON files, and what is said of one that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstart.base.artifacts import DATA, DataFolder, ModelFolder
from headstart.base.artifacts.card import Card, Preprocessing, WeightsSource
from headstart.base.artifacts.drift import Drift
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.metrics import Gain, Metrics
from headstart.base.artifacts.schemas import JSON_FILES, write_schemas
from headstart.base.errors import HeadstartError

CARD = Card(
    name="resnet18", library="torchvision", weights="default", pretrained=True,
    source=WeightsSource(origin="torchvision", digest="0", licence="BSD"), sha256="0", parameters=1, gmacs=1.8,
    features=512, blocks=10,
    preprocessing=Preprocessing(size=224, crop=0.875, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)),
)  # fmt: skip


def test_a_folder_is_a_path_whose_attributes_are_its_files() -> None:
    assert Path("data/evaluate/figures/confusion.png") == DATA.evaluate.figures.confusion
    assert DataFolder("/a", "data").package.model.classifier.details == Path(
        "/a/data/package/model/artifacts/classifier/classifier.json"
    )
    assert ModelFolder("moved").mlmodel == Path("moved/MLmodel")
    assert DATA.features.split("val") == DATA / "features" / "val.safetensors"


def test_what_is_written_is_read_and_gives_the_same_bytes(tmp_path: Path) -> None:
    CARD.write(tmp_path / "card.json")
    read = Card.read(tmp_path / "card.json")
    assert read == CARD
    read.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "card.json").read_bytes()


def test_numbers_of_pictures_stay_whole_and_keys_without_a_value_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    Metrics(chosen="head", val={"head": {"accuracy": 0.5, "n": 2}}, test={}).write(path)
    assert json.loads(path.read_text()) == {"chosen": "head", "val": {"head": {"accuracy": 0.5, "n": 2}}, "test": {}}
    assert '"n": 2\n' in path.read_text()
    Metrics(chosen="head", val={}, test={}, gain={"val": Gain(accuracy=0.1, low=0, high=0.2)}).write(path)
    assert json.loads(path.read_text())["gain"] == {"val": {"accuracy": 0.1, "low": 0.0, "high": 0.2}}
    FinetuneDetails(ran=False).write(path)
    assert json.loads(path.read_text()) == {"ran": False}
    Drift(real=False, sentence="", new=None, incoming=None).write(path)
    assert list(json.loads(path.read_text())) == ["real", "sentence"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "card.json is not there; run `dvc repro backbone`"),
        ('{"name": ', "card.json: Invalid JSON: "),
        ('{"name": "resnet18"}', "card.json: library: Field required; run `dvc repro --force --single-item backbone`"),
        (CARD.model_dump_json().replace("512", '"many"'), "card.json: features: Input should be a valid integer; run"),
        ("[]", "card.json: Input should be an object; run"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_with_the_command(
    text: str | None, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "card.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HeadstartError) as raised:
        Card.read(path)
    assert expected in str(raised.value)
    options = "" if text is None else "--force --single-item "  # or DVC need not see that there is anything to do
    assert str(raised.value).endswith(f"run `dvc repro {options}backbone`")
    assert "\n" not in str(raised.value)


def test_a_fine_tuning_that_ran_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "finetune.json"
    path.write_text('{"ran": true, "scratch": false}')
    with pytest.raises(HeadstartError, match=r"finetune\.json: .*size is missing; run `dvc repro .*finetune`"):
        FinetuneDetails.read(path)


def test_the_schemas_in_docs_are_those_of_the_models(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    shipped = Path(__file__).parents[2] / "docs" / "schemas"
    assert sorted(path.name for path in shipped.iterdir()) == sorted(path.name for path in JSON_FILES)
    for path in tmp_path.iterdir():
        assert path.read_text() == (shipped / path.name).read_text(), "run `make schemas`"
