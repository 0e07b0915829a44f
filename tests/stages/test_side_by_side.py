"""Networks side by side through the whole pipeline: a transformer at its own size and at 224 pixels, and one more."""

from __future__ import annotations

import json
from collections.abc import Callable

import mlflow
import pytest

from headstart.inference.predictor import load_predictor
from tests.stages.conftest import SLICE, Clone

pytestmark = pytest.mark.slow

TRANSFORMERS = ["test_vit@224", "test_vit"]


def test_a_transformer_at_two_sizes_goes_through_every_stage_and_one_more_network_costs_itself_alone(
    project: Callable[..., Clone],
) -> None:
    clone = project(
        **SLICE
        | {
            "backbone": TRANSFORMERS,
            "weights": "none",
            "view": {"size": None},
            "finetune": {"scratch_epochs": 1, "scratch_passes": 1, "size_ratio": 0.5},
        }
    )
    clone.repro()
    card = json.loads(clone.read("data/backbone/card.json"))
    assert (card["name"], card["preprocessing"]["size"]) == ("test_vit@224+test_vit", 224)
    assert [view["size"] for view in card["preprocessing"]["beside"]] == [160]
    metrics = json.loads(clone.read("data/evaluate/metrics.json"))
    assert set(metrics["test"]) == {"head", "finetune", "ensemble", "chosen"}
    client = mlflow.MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("headstart-emoji")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["backbone"] == "test_vit@224+test_vit"
    picture = next((clone.folder / "data/prepare").glob("sheet.png"))
    (answer,) = load_predictor(clone.folder / "data/package/model").predict([picture])
    assert sum(answer.probabilities.values()) == pytest.approx(1)

    lock = clone.read("dvc.lock")
    clone.repro("--force")
    assert clone.read("dvc.lock") == lock

    kept = {file: file.stat().st_mtime_ns for file in (clone.folder / ".headstart/answers").glob("*/features")}
    assert len(kept) == 2
    clone.set(backbone=[*TRANSFORMERS, "test_resnet"])
    assert clone.stages_run() == ["backbone", "features", "head", "finetune", "evaluate", "package", "track"]
    assert (
        kept.items()
        <= {file: file.stat().st_mtime_ns for file in (clone.folder / ".headstart/answers").glob("*/features")}.items()
    )
    assert len(list((clone.folder / ".headstart/answers").glob("*/features"))) == 3
