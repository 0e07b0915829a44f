"""Each of the article's six goes through every stage and comes out as a model that predicts.

That DVC runs the stages of another backbone, and which, is shown in test_pipeline.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from headstart.base.sections import Data
from headstart.data.sources import locate
from headstart.inference.predictor import load_predictor
from tests.stages.conftest import Clone

pytestmark = [pytest.mark.slow]
WIDTHS = {
    "resnet18": 512,
    "alexnet": 4096,
    "squeezenet1_0": 512,
    "vgg16": 4096,
    "densenet161": 2208,
    "inception_v3": 2048,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six emoji of three classes each, in a folder: what a pass through VGG-16 takes counts here."""
    emoji = locate(Data(source="emoji"))
    for label in ("Animals & Nature", "Flags", "Objects"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for path in sorted(picture.path for picture in emoji.pictures if picture.label == label)[:6]:
            shutil.copy(emoji.root / path, tmp_path / "pictures" / label)
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", WIDTHS)
def test_one_of_the_articles_six_goes_from_pictures_to_a_model_and_a_complete_run(
    project: Callable[..., Clone], pictures: Path, name: str
) -> None:
    clone = project(
        data={"source": str(pictures)},
        backbone=name,
        weights="none",
        split={"val": 0.2, "test": 0.2},
        finetune={"unfreeze": "none"},
        evaluate={"bootstrap": 100, "mistakes": 0},
        tracking={"model": False},
    )
    clone.run_without_dvc()

    card = json.loads(clone.read("data/backbone/card.json"))
    assert (card["name"], card["features"], card["pretrained"]) == (name, WIDTHS[name], False)
    metrics = json.loads(clone.read("data/evaluate/metrics.json"))
    assert metrics["chosen"] == "head"
    assert metrics["test"]["chosen"]["n"] > 0

    client = mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("headstart-pictures")
    result = json.loads(clone.read("data/track/track.json"))["result"]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`headstart.result` = '{result}'")
    assert run.data.tags["headstart.complete"] == "true"
    assert run.data.params["backbone"] == name
    assert run.data.metrics["test/chosen/accuracy"] == metrics["test"]["chosen"]["accuracy"]

    predictions = pd.read_parquet(clone.folder / "data/evaluate/predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    row = test.iloc[0]
    (answer,) = load_predictor(clone.folder / "data/package/model").predict([pictures / row["image"]])
    assert set(answer.probabilities) == set(predictions["label"])
    assert answer.probabilities == pytest.approx({name: row[name] for name in answer.probabilities}, abs=0.02)
