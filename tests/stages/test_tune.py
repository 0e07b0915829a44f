"""`dvc repro studies/dvc.yaml:tune`: a branch off the main path that goes on where it was."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.stages.conftest import Clone
from tests.stages.test_pipeline import runs_of

pytestmark = [pytest.mark.slow]

BRANCH = "studies/dvc.yaml:tune"
TUNE = {"minutes": 5, "trials": 2, "space": {"lr": [0.0003, 0.03], "augment": ["none", "light"]}}


def test_killed_it_goes_on_where_it_was_and_the_best_can_be_applied(copy_of: Clone) -> None:
    copy_of.set(tune=TUNE)
    kept = copy_of.folder / ".headstart/tune"
    copy_of.killed_when(lambda: any(kept.glob("*/*/resume/epoch.pt")), "dvc", "repro", BRANCH)
    assert sorted(copy_of.folder.glob(".headstart/tune/*/study.kept"))  # trial 0 is over
    output = copy_of.measured.repro(BRANCH).stdout
    assert "finetune: going on after epoch" in output  # trial 1; what the pipeline has trained is not trained again
    assert [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")] == [
        "fetch", BRANCH
    ]  # fmt: skip
    found = json.loads(copy_of.read("data/tune/tune.json"))
    assert sorted(row["trial"] for row in found["trials"]) == [0, 1]
    assert found["present"] == {"lr": 0.001, "augment": "light"}
    assert found["sentence"] in " ".join(output.split())
    assert "<svg" in copy_of.read("data/tune/tune.html")

    runs = runs_of(copy_of)
    nested = [tags["mlflow.runName"] for tags in runs["tags"] if "mlflow.parentRunId" in tags]
    assert sorted(nested) == ["trial 0", "trial 1"]
    assert len([tags for tags in runs["tags"] if tags["mlflow.runName"].startswith("tune ")]) == 1

    output = copy_of.measured.run("headstart", "tune", "--apply").stdout
    assert found["sentence"] in " ".join(output.split())
    assert found["trials"][0]["knobs"].items() <= yaml.safe_load(copy_of.read("params.yaml"))["finetune"].items()
