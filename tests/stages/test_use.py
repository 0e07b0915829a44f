"""What came out of the pipeline is used: thresholds that keep what they promise, and exports that a stranger can run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.classifier import ClassifierDetails, FamiliarityDetails
from headstart.inference.selective import thresholds
from tests.stages.conftest import Clone

pytestmark = [pytest.mark.slow]


def test_the_package_knows_what_answering_only_when_sure_would_have_meant(finished: Clone) -> None:
    classifier = DataFolder(finished.folder, "data").package.model.classifier
    details, compared = ClassifierDetails.read(classifier.details), FamiliarityDetails.read(classifier.familiarity)
    table = pd.read_parquet(finished.folder / "data/evaluate/predictions.parquet")
    val = table[table["split"] == "val"]
    right = (val["label"] == val["predicted"]).to_numpy()
    assert compared.val.familiar == len(val)  # so few that the farthest of them is the threshold
    assert details.answering == thresholds(val[details.classes].to_numpy().max(axis=1), right)
    assert details.answering
    assert details.answering.thresholds[0].error == pytest.approx(1 - right.mean())
    assert details.short_side == 384


@pytest.mark.parametrize("to", ["onnx", "int8"])
def test_the_default_network_is_exported_within_its_bounds(to: str, finished: Clone, tmp_path: Path) -> None:
    done = finished.measured.run("headstart", "export", "--to", to, "--output", str(tmp_path / to), "--max-cost", "0.5")
    assert "validation pictures" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    checked = json.loads((tmp_path / to / "classifier.json").read_text())["checked"]
    if to == "onnx":
        assert checked["largest_difference"] <= 1e-3
    else:
        assert checked["cost"]["low"] <= checked["cost"]["accuracy"] <= checked["cost"]["high"]
        assert abs(checked["cost"]["accuracy"]) <= 1 - checked["same_answer"] < 1
