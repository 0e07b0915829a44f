"""`finetune.repeats` in the pipeline: killed between trainings, evaluated, packaged and tracked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.metrics import Metrics
from tests.stages.conftest import Clone
from tests.stages.test_pipeline import digests


def test_killed_after_the_first_of_three_trainings_the_others_are_trained_and_the_result_tells_of_all(
    copy_of: Clone,
) -> None:
    copy_of.set(finetune={"repeats": 3})
    once = digests(copy_of.folder / "data/finetune")
    kept = copy_of.folder / ".headstart/finetune"
    copy_of.killed_when(lambda: any(kept.glob("*/repeat-1/finished.json")), "dvc", "repro", "finetune")
    output = copy_of.repro().stdout
    assert "finetune, repeat 1 of 3: an earlier run finished it" in output
    assert "finetune, repeat 1 of 3: epoch" not in output
    assert "finetune, repeat 3 of 3: epoch 2/2" in output
    assert not list(kept.glob("*"))
    found = digests(copy_of.folder / "data/finetune")
    for name in ("weights.safetensors", "val_logits.safetensors", "finetune.json"):
        assert found[f"repeats/1/{name}"] == once[name]
    measured = Metrics.read(DataFolder(copy_of.folder, "data").evaluate.metrics)
    assert measured.repeats is not None
    assert measured.repeats.count == 3
    assert "the interval is for other pictures and other trainings" in output
    _check_run(copy_of, measured)
    shutil.rmtree(copy_of.folder / ".headstart/answers")
    copy_of.repro("--force", "--single-item", "finetune")
    assert digests(copy_of.folder / "data/finetune") == found


def _check_run(clone: Clone, measured: Metrics) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    result = json.loads(clone.read("data/track/track.json"))["result"]
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "headstart-emoji"]
    (run,) = client.search_runs([experiment], f"tags.`headstart.result` = '{result}'")
    for prefix in ("finetune/", "finetune/repeat-2/", "finetune/repeat-3/"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, f"{prefix}val_log_loss")] == [1, 2]
    assert {key for key in run.data.metrics if key.startswith("repeats/finetune/")} >= {"repeats/finetune/accuracy_std"}
    details = json.loads(Path(clone.folder, "data/package/model/artifacts/classifier/classifier.json").read_text())
    assert ("training" in details) == (measured.chosen != "head")
