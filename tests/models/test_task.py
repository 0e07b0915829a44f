"""What a label is, the loss and the decision are the task's alone: another kind of task needs no other module to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, log_loss
from torch import Tensor, nn

import headstart
from headstart.base.arrays import Bools, Floats, Ints
from headstart.data.packed import Pixels
from headstart.evaluation.metrics import METRICS, Metric, Scores, choose, gain, measured
from headstart.inference.predictor import Predictor
from headstart.models.backbones import architecture
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.task import SINGLE_LABEL, Task
from headstart.training import finetuned, trainer
from headstart.training.recipe import TrainingSetup
from tests.inference.test_predictor import plain, put_model
from tests.training.test_finetune import CPU, SMALL, network, pictures, recipe

__all__ = ["network", "pictures"]  # fixtures

LOGITS = arrays.arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(2, 6)), elements=st.floats(-10, 10))


@given(LOGITS)
@settings(max_examples=50, deadline=None)
def test_arrays_and_tensors_get_the_same_probabilities_and_answers(logits: Floats) -> None:
    probabilities = SINGLE_LABEL.probabilities(logits)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert SINGLE_LABEL.probabilities(torch.from_numpy(logits)).numpy() == pytest.approx(probabilities)
    answers = SINGLE_LABEL.predict(logits)
    assert answers.tolist() == SINGLE_LABEL.predict(torch.from_numpy(logits)).tolist()
    confidence = SINGLE_LABEL.confidence(probabilities)
    assert probabilities[np.arange(len(logits)), answers] == pytest.approx(confidence)
    assert SINGLE_LABEL.confidence(torch.from_numpy(probabilities)).tolist() == confidence.tolist()
    names = [f"class {number}" for number in range(logits.shape[1])]
    label, probability = SINGLE_LABEL.answer(probabilities[0], names)
    assert (names.index(label), probability) == (int(SINGLE_LABEL.decide(probabilities)[0]), confidence[0])


@given(LOGITS)
@settings(max_examples=50, deadline=None)
def test_its_losses_are_scikit_learns_and_those_of_training(logits: Floats) -> None:
    labels, classes = np.arange(len(logits)) % logits.shape[1], np.arange(logits.shape[1])
    losses = SINGLE_LABEL.losses(logits, labels)
    expected = log_loss(labels, SINGLE_LABEL.probabilities(logits), labels=classes)
    assert losses.mean() == pytest.approx(expected, abs=1e-6)
    assert SINGLE_LABEL.losses_of_probabilities(SINGLE_LABEL.probabilities(logits), labels) == pytest.approx(losses)
    of_training = SINGLE_LABEL.training_loss()(torch.from_numpy(logits), torch.from_numpy(labels))
    assert losses.mean() == pytest.approx(float(of_training))


def test_labels_are_numbers_of_the_classes() -> None:
    assert SINGLE_LABEL.encode(["b", "a", "b", "new"], ("a", "b")).tolist() == [1, 0, 1, -1]


# --- another task -----------------------------------------------------------------------------------------------------


class SeveralLabels(Task):
    """Any number of classes per picture, each told by itself: a class is there where its probability is a half or more."""

    def encode(self, labels: Iterable[Any], classes: Sequence[str]) -> Ints:
        return np.array([[name in found for name in classes] for found in labels], np.float32)  # type: ignore[return-value]

    def training_loss(self, class_weight: Tensor | None = None, label_smoothing: float = 0.0) -> nn.Module:
        return nn.BCEWithLogitsLoss(pos_weight=class_weight)

    def probabilities(self, logits: Any) -> Any:
        return 1 / (1 + np.exp(-logits)) if isinstance(logits, np.ndarray) else logits.sigmoid()

    def decide(self, probabilities: Any) -> Any:
        return probabilities >= 0.5

    def predict(self, logits: Any) -> Any:
        return logits >= 0

    def correct(self, predicted: Ints, labels: Ints) -> Bools:
        return np.asarray((predicted == (labels > 0)).all(axis=1))

    def confidence(self, probabilities: Any) -> Any:
        return np.maximum(probabilities, 1 - probabilities).min(-1)

    def losses(self, logits: Floats, labels: Ints) -> Floats:
        return self.losses_of_probabilities(self.probabilities(logits), labels)

    def losses_of_probabilities(self, probabilities: Floats, labels: Ints) -> Floats:
        p = np.clip(np.where(labels > 0, probabilities, 1 - probabilities), 1e-15, 1)
        return np.asarray(-np.log(p).mean(axis=1))

    def answer(self, probabilities: Floats, classes: Sequence[str]) -> tuple[str, float]:
        there = [name for name, found in zip(classes, self.decide(probabilities), strict=True) if found]
        return ", ".join(there), float(self.confidence(probabilities))


SEVERAL = SeveralLabels()


def test_another_task_trains_is_calibrated_and_is_measured_by_its_own_metrics(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, manifest = pictures
    assert SMALL in network.read_text()
    manifest["label"] = [{"red", "noisy"} if label == "red" else {"noisy"} for label in manifest["label"]]
    trunk = architecture("small.py:net", network).trunk(seed=1)
    head = FittedHead(LinearHead.of(torch.zeros(2, 8), torch.zeros(2)), 1.0, ("noisy", "red"), task=SEVERAL)
    setup = TrainingSetup(trunk, head, pixels, manifest, recipe(epochs=8, unfreeze="all", lr=0.01, head_lr=0.1), CPU)
    trainer.finetune(setup, tmp_path / "tuned", tmp_path / "resume")
    logits = finetuned.load_val_logits(tmp_path / "tuned").numpy()
    labels = SEVERAL.encode(manifest.loc[manifest["split"] == "val", "label"], head.classes)
    assert SEVERAL.correct(SEVERAL.predict(logits), labels).all()

    temperature = fit_temperature(logits, labels, SEVERAL)
    assert calibrated_losses(logits, labels, SEVERAL).mean() <= SEVERAL.losses(logits, labels).mean()
    probabilities = Classifier(trunk, head).probabilities(torch.from_numpy(logits) / temperature).numpy()
    assert not np.allclose(probabilities.sum(axis=1), 1)

    monkeypatch.setitem(METRICS, "average_precision", Metric(
        "average_precision", "average precision", task=SeveralLabels,
        measure=lambda scores, rows: float(average_precision_score(scores.labels[rows], scores.probabilities[rows])),
    ))  # fmt: skip
    monkeypatch.setitem(METRICS, "exact_matches", Metric(
        "exact_matches", "exact matches", lambda scores, rows: float(scores.correct[rows].mean()),
        is_proportion=True, task=SeveralLabels,
    ))  # fmt: skip
    tuned, untrained = Scores(probabilities, labels, SEVERAL), Scores(np.full((8, 2), 0.4), labels, SEVERAL)
    found = measured(tuned, 100, 0)
    assert {key for key in found if "_low" not in key and "_high" not in key} == {"average_precision", "exact_matches", "n"}
    assert (found["exact_matches"], found["average_precision"]) == (1, pytest.approx(1))
    assert choose({"head": untrained, "finetune": tuned}) == "finetune"
    assert gain(untrained, tuned)["accuracy"] == 1


def test_another_task_answers_in_its_own_words(tmp_path: Path) -> None:
    predictor = Predictor(put_model(tmp_path / "model"))
    predictor.model.task = SEVERAL
    white, red = predictor.predict([np.full((20, 20, 3), 255, np.uint8), np.asarray(plain("red"))])
    assert white.label == "blue, green, red"
    assert red.label.split(", ")[-1] == "red"


def test_softmax_and_the_decision_stand_nowhere_else() -> None:
    """Elsewhere there are only the fits of single-label heads, and the code that goes out with an export."""
    root = Path(headstart.__file__).parent
    strange = re.compile(r"softmax\(|(?<!np)\.argmax\(|cross_entropy|CrossEntropy")
    found = {
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if strange.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"models/task.py", "models/logistic.py", "models/heads.py", "inference/export.py"}
