"""Pictures with several labels through the whole pipeline, and what comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable

import mlflow
import pandas as pd
import pytest

from tests.data.pictures import CANVAS_CLASSES, write_canvases
from tests.stages.conftest import SLICE, Clone

pytestmark = pytest.mark.slow


def test_pictures_with_several_labels_go_through_every_stage(project: Callable[..., Clone]) -> None:
    clone = project(**SLICE)
    table = write_canvases(clone.folder / "canvases", 160, 0)
    clone.set(data={"source": str(table), "limit": None}, view={"size": 160}, gate={"metric": "mean_average_precision"})
    clone.measured.repro()
    metrics = json.loads(clone.read("data/evaluate/metrics.json"))
    assert set(metrics["test"]) == {"head", "finetune", "ensemble", "chosen"}
    found = metrics["test"]["chosen"]
    assert found["mean_average_precision_low"] <= found["mean_average_precision"] <= found["mean_average_precision_high"]
    assert found["mean_average_precision"] > 0.6  # by chance it is about 0.35
    assert len(metrics["thresholds"]) == len(CANVAS_CLASSES)
    predictions = pd.read_parquet(clone.folder / "data/evaluate/predictions.parquet")
    assert set(";".join(predictions["predicted"]).split(";")) <= {*CANVAS_CLASSES, ""}
    assert predictions["label"].str.contains(";").any()
    report = clone.read("data/evaluate/report.html")
    assert "mean average precision" in report
    assert all(name in report for name in CANVAS_CLASSES)
    client = mlflow.MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("headstart-table")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["test/chosen/mean_average_precision"] == found["mean_average_precision"]

    lock = clone.read("dvc.lock")
    clone.repro("--force")
    assert clone.read("dvc.lock") == lock

    pictures = [f"canvases/{number:04d}.png" for number in range(4)]
    rows = [
        json.loads(line) for line in clone.run("headstart", "predict", *pictures, "--format", "json").stdout.splitlines()
    ]
    assert [row["label"] for row in rows] == [";".join(row["labels"]) for row in rows]
    assert all(0 <= value <= 1 for row in rows for value in row["probabilities"].values())
    clone.run("headstart", "export", "--to", "onnx")
    exported = json.loads(clone.read("data/export/onnx/classifier.json"))
    assert exported["thresholds"] == pytest.approx(metrics["thresholds"])
    assert exported["checked"]["largest_difference"] < 1e-3
    labels = clone.run("dvc", "repro", "studies/dvc.yaml:labels").stdout
    assert "have a label that the others contradict" in " ".join(labels.split())
    refused = clone.run("dvc", "repro", "studies/dvc.yaml:why", check=False)
    assert "why draws its learning curves with the same number of pictures of each class" in refused.stderr
    assert "Traceback" not in refused.stderr

    gated = clone.run("headstart", "gate")
    assert "mean average precision" in gated.stdout.lower()
    table.write_text(table.read_text(encoding="utf-8").replace("path,labels", "path,tags"), encoding="utf-8")
    bad = clone.repro(check=False)
    assert "no column 'label'" in bad.stderr
    assert "Traceback" not in bad.stderr
