"""Where the network was trained several times, figures say how far the trainings lie apart, and intervals hold that."""

from __future__ import annotations

from pathlib import Path
from statistics import stdev, variance

import numpy as np
import pytest
import torch

from headstart.base.artifacts import DataFolder, PackageFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.params import Params
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation import report
from headstart.evaluation.summary import headline
from headstart.inference.export import export
from headstart.inference.package import package
from headstart.inference.predictor import Predictor
from headstart.tracking.gate import _training
from headstart.tracking.judge import NO_CHANCE
from headstart.tracking.track import stage_metrics
from headstart.training import repeats
from tests.inference.test_package import PARAMS, stages_run

TRAINING = PARAMS["finetune"] | {"repeats": 3, "lr": 0.02, "head_lr": 0.02, "warmup": 0.0, "ema": 0.0}  # type: ignore[operator]
REPEATED = Params.model_validate(PARAMS | {"head": {"kind": "linear"}, "finetune": TRAINING})


@pytest.mark.parametrize("place", [0, 1], ids=["soup", "average"])
def test_evaluated_and_packaged_it_is_what_was_kept_with_the_chance_that_the_trainings_show(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repeats, "_pays", lambda *_: bool(place))
    data = stages_run(REPEATED)
    _check_metrics(data)
    manifest, pixels = read_manifest(data / "prepare"), Pixels(data / "prepare")
    seen = [pixels[int(row)] for row in np.flatnonzero(manifest["split"] == "test")]
    networks = 3 if place else 1
    assert FinetuneDetails.read(data.finetune.details).networks == networks
    classifiers = report._classifiers(data)
    candidates = report._candidates(data, manifest, pixels, torch.device("cpu"))
    names: tuple[Name, ...] = ("head", "finetune", "ensemble")
    for chosen in names:
        Metrics.read(data.evaluate.metrics).model_copy(update={"chosen": chosen}).write(data.evaluate.metrics)
        package(data, REPEATED, PackageFolder(data, chosen))
        packed = Predictor(PackageFolder(data, chosen).model.classifier)
        model = packed.model
        with torch.inference_mode():
            found = model.probabilities(model(model.trunk.view.batch(seen)).double()).numpy()
        expected = candidates.scores[chosen]["test"].probabilities
        np.testing.assert_allclose(found, expected, atol=1e-4)
        chance = _training(packed, "log_loss")
        if chosen == "head":
            assert chance == NO_CHANCE
        else:
            each = Metrics.read(data.evaluate.metrics).repeats
            assert each is not None
            assert chance is not None
            assert chance.variance == pytest.approx(variance(each.each[chosen]["test"]["log_loss"]) / 3)
            assert chance.degrees == 2
    tensors = {name: len(list(classifiers[name].trunk.parameters())) for name in ("head", "finetune")}
    assert tensors["finetune"] == networks * tensors["head"]
    told = export(PackageFolder(data, "ensemble").model, "onnx", data, tmp_path / "onnx", 0.9)  # or it refuses
    assert "onnx" in told


def _check_metrics(data: DataFolder) -> None:
    measured = Metrics.read(data.evaluate.metrics)
    assert measured.repeats is not None
    assert measured.gain is not None
    kept = FinetuneDetails.read(data.finetune.details)
    assert kept.repeats is not None
    of_val = measured.repeats.each["finetune"]["val"]
    assert of_val["accuracy"] == pytest.approx(kept.repeats.val_accuracy)
    assert of_val["log_loss"] == pytest.approx(kept.repeats.val_log_loss, abs=1e-4)
    accuracies = measured.repeats.each["finetune"]["test"]["accuracy"]
    assert len(accuracies) == 3
    assert f"{min(accuracies):.3f} to {max(accuracies):.3f}" in headline(measured)
    assert "other trainings" in headline(measured)
    assert stage_metrics(data)["repeats/finetune/accuracy_std"] == stdev(accuracies)
    page = data.evaluate.report.read_text()
    assert "trained 3 times with other seeds" in page
    assert "each training alone" in page


def test_trained_once_the_sentence_says_what_the_interval_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = stages_run(Params.model_validate(PARAMS))
    measured = Metrics.read(data.evaluate.metrics)
    assert measured.repeats is None
    assert "not for another training" in headline(measured)
    assert not (data.finetune / "repeats").exists()
    package(data, Params.model_validate(PARAMS), data.package)
    packed = Predictor(data.package.model.classifier)
    assert _training(packed, "accuracy") == (NO_CHANCE if measured.chosen == "head" else None)
