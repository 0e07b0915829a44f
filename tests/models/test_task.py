"""What a label is, the loss and the decision are the task's alone: another kind of task needs no other module to change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss
from timm.loss import BinaryCrossEntropy
from torch import nn

import headstart
from headstart.base.arrays import Floats, Ints
from headstart.base.sections import Head
from headstart.data.packed import Pixels
from headstart.data.picture import SEPARATOR
from headstart.evaluation.metrics import (
    METRICS,
    Scores,
    choose,
    gain,
    measured,
    metrics_of,
)
from headstart.evaluation.tables import answers, per_class, reliability, worst_mistakes
from headstart.models import logistic
from headstart.models.backbones import architecture
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.task import LABEL_SEPARATOR, MULTI_LABEL, SINGLE_LABEL, Task, task_of
from headstart.training import finetuned, trainer
from headstart.training.head_files import load_head
from headstart.training.linear_probe import train_head
from headstart.training.recipe import TrainingSetup
from tests.training.test_finetune import CPU, SMALL, network, pictures, recipe

__all__ = ["network", "pictures"]  # fixtures

LOGITS = arrays.arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(2, 6)), elements=st.floats(-10, 10))


@given(LOGITS)
@settings(max_examples=50)
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
@settings(max_examples=50)
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


# --- several labels ---------------------------------------------------------------------------------------------------

NAMES = ("ant", "bee", "wasp")


@st.composite
def several(draw: st.DrawFn) -> tuple[Floats, Ints]:
    """(N, classes) logits, of which some are equal, and labels."""
    shape = draw(st.tuples(st.integers(2, 30), st.integers(1, 5)))
    logits = draw(arrays.arrays(np.float64, shape, elements=st.integers(-8, 8).map(lambda n: n / 2)))
    return logits, draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 1)))


@given(several())
@settings(max_examples=50)
def test_several_labels_are_lost_and_answered_class_by_class(drawn: tuple[Floats, Ints]) -> None:
    logits, labels = drawn
    losses, probabilities = MULTI_LABEL.losses(logits, labels), MULTI_LABEL.probabilities(logits)
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    assert MULTI_LABEL.probabilities(tensors[0]).numpy() == pytest.approx(probabilities)
    assert MULTI_LABEL.predict(logits).tolist() == MULTI_LABEL.predict(tensors[0]).tolist()
    assert MULTI_LABEL.confidence(tensors[0].sigmoid()).numpy() == pytest.approx(MULTI_LABEL.confidence(probabilities))
    assert losses.mean() == pytest.approx(
        float(nn.functional.binary_cross_entropy_with_logits(tensors[0], tensors[1].double()))
    )
    assert losses.mean() == pytest.approx(float(MULTI_LABEL.training_loss()(*tensors)))
    assert MULTI_LABEL.losses_of_probabilities(probabilities, labels) == pytest.approx(losses)


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_slopes_are_the_derivatives_of_the_losses(task: Task) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(6, 3))).requires_grad_()
    labels = rng.integers(0, 3, 6) if task is SINGLE_LABEL else rng.integers(0, 2, (6, 3))
    (task.training_loss()(logits, torch.from_numpy(labels)) * len(logits)).backward()
    assert logits.grad is not None
    assert task.slopes(logits.detach().numpy(), labels) == pytest.approx(logits.grad.numpy())


@given(several())
@settings(max_examples=100)
def test_metrics_of_several_labels_are_scikit_learns(drawn: tuple[Floats, Ints]) -> None:
    logits, labels = drawn
    scores = Scores(MULTI_LABEL.probabilities(logits), labels, MULTI_LABEL)
    rows = np.random.default_rng(len(labels)).integers(0, len(labels), len(labels))  # as the bootstrap draws them
    found = {metric.name: metric.measure(scores, rows) for metric in metrics_of(MULTI_LABEL)}
    truth, probabilities, predicted = labels[rows], scores.probabilities[rows], scores.predicted[rows]
    assert np.isfinite(list(found.values())).all()
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["micro_f1"] == pytest.approx(f1_score(truth.ravel(), predicted.ravel(), zero_division=0))
    seen = truth.any(0)
    precisions = [average_precision_score(truth[:, c], probabilities[:, c]) for c in np.flatnonzero(seen)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions) if precisions else 0)
    assert {"balanced_accuracy", "matthews_corrcoef"}.isdisjoint(found)
    assert {metric.name for metric in metrics_of(SINGLE_LABEL)}.isdisjoint({"micro_f1", "mean_average_precision"})


def test_a_label_that_is_no_class_counts_for_nothing_and_a_picture_may_have_none() -> None:
    encoded = MULTI_LABEL.encode([["bee", "ant"], [], np.array(["hornet", "wasp"])], NAMES)
    assert encoded.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert MULTI_LABEL.answer(np.array([0.6, 0.4, 0.9]), NAMES) == ("ant;wasp", pytest.approx(0.6 * 0.6 * 0.9))
    assert MULTI_LABEL.answer(np.array([0.1, 0.4, 0.2]), NAMES)[0] == ""


def test_names_are_joined_by_what_no_class_may_have_in_its_name() -> None:
    assert LABEL_SEPARATOR == SEPARATOR


def test_labels_are_smoothed_towards_a_share_that_rare_classes_can_have() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
    expected = BinaryCrossEntropy(smoothing=0.1)(logits, torch.tensor([0, 0, 0, 0]))
    ours = MULTI_LABEL.training_loss(label_smoothing=0.1)
    assert float(ours(logits, torch.eye(3)[[0, 0, 0, 0]])) == pytest.approx(float(expected))
    weighted = MULTI_LABEL.training_loss(torch.tensor([9.0, 1.0, 1.0]))
    assert float(weighted(-logits.abs(), labels)) > float(MULTI_LABEL.training_loss()(-logits.abs(), labels))


def test_thresholds_suit_a_class_with_pictures_and_one_with_few_follows_the_others() -> None:
    rng = np.random.default_rng(0)
    present = rng.random((400, 3)) < [0.3, 0.3, 0.005]
    sure = np.where(present, rng.beta(8, 3, present.shape), rng.beta(3, 8, present.shape))
    sure[:, 1] = sure[:, 1] / 4  # a class whose probabilities are all low
    task = MULTI_LABEL.with_thresholds(sure, present.astype(int))
    assert task.thresholds is not None
    assert task.thresholds[1] < 0.25 < task.thresholds[0]
    scores = [Scores(sure, present.astype(int), each) for each in (MULTI_LABEL, task)]
    macro = METRICS["macro_f1"].measure
    assert macro(scores[1], np.arange(400)) > macro(scores[0], np.arange(400)) + 0.2
    assert SINGLE_LABEL.with_thresholds(sure, present) is SINGLE_LABEL
    together = MULTI_LABEL.with_thresholds(sure[:, :1], present[:, :1].astype(int)).thresholds
    assert together is not None
    assert task.thresholds[2] == pytest.approx(together[0], abs=0.35)


@given(several())
@settings(max_examples=50)
def test_a_threshold_of_one_class_has_the_best_f1_of_all(drawn: tuple[Floats, Ints]) -> None:
    logits, labels = drawn
    probabilities, labels = MULTI_LABEL.probabilities(logits)[:, :1], labels[:, :1]
    (chosen,) = MULTI_LABEL.with_thresholds(probabilities, labels).thresholds or ()
    steps = np.round(np.arange(0.02, 0.99, 0.01), 2)
    said, there = probabilities >= steps, labels == 1  # scikit-learn would take a minute for all of them
    scores = 2 * (said & there).sum(0) / np.maximum(said.sum(0) + there.sum(), 1)
    assert f1_score(labels[:, 0], probabilities[:, 0] >= chosen, zero_division=0) == pytest.approx(scores.max())


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_head_for_several_labels_is_scikit_learns_one_vs_rest(weights: str | None) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 12)).astype(np.float32)
    x -= x.mean(0)
    y = ((x @ rng.normal(size=(12, 3)) + 2 * rng.normal(size=(200, 3))) > 1.5).astype(int)
    class_weight = torch.from_numpy((len(y) - y.sum(0)) / y.sum(0)) if weights else None
    path = logistic.fit_path(torch.from_numpy(x), torch.from_numpy(y), 3, [0.003, 0.1], class_weight)
    for strength, (weight, bias, _) in zip([0.003, 0.1], path, strict=True):
        for number in range(3):
            given_weight = None if class_weight is None else {0: 1.0, 1: float(class_weight[number])}
            exact = LogisticRegression(C=strength, tol=1e-8, max_iter=1000, class_weight=given_weight).fit(x, y[:, number])
            ours = 1 / (1 + np.exp(-(x @ weight[number].numpy() + float(bias[number]))))
            assert ours == pytest.approx(exact.predict_proba(x)[:, 1], abs=2e-3)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_for_several_labels_is_chosen_averaged_and_stored(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(240, 8)).astype(np.float32))
    y = (x[:, :3] + 0.5 * torch.from_numpy(rng.normal(size=(240, 3)).astype(np.float32)) > 0.8).long()
    y[:, 2] = 0  # a class that hardly ever occurs
    y[0, 2] = 1
    settings_ = Head.model_validate({"kind": kind, "C": [0.01, 0.1, 1.0]})
    head = train_head((x[:160], y[:160]), (x[160:], y[160:]), list(NAMES), settings_, tmp_path, None, MULTI_LABEL)
    assert head.task == MULTI_LABEL
    refit = load_head(tmp_path, refit=True)
    fresh = torch.from_numpy(rng.normal(size=(500, 8)).astype(np.float32))
    probabilities = MULTI_LABEL.probabilities(refit.logits(fresh) / refit.temperature).numpy()
    for number in range(2):
        assert average_precision_score(fresh[:, number] > 0.8, probabilities[:, number]) > 0.9
    assert probabilities[:, 2].mean() < 0.1


def test_a_class_that_every_training_picture_has_is_said_to_be_there(tmp_path: Path) -> None:
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(120, 6)).astype(np.float32))
    y = torch.stack([(x[:, 0] > 0).long(), torch.ones(120, dtype=torch.long)], dim=1)
    for number, weights in enumerate((None, "balanced")):
        settings_ = Head.model_validate({"C": [0.1, 1.0], "class_weight": weights})
        head = train_head(
            (x[:80], y[:80]), (x[80:], y[80:]), ["right", "all"], settings_, tmp_path / str(number), None, MULTI_LABEL
        )
        assert (MULTI_LABEL.probabilities(head.logits(x) / head.temperature)[:, 1] > 0.9).all()


def test_several_labels_are_fine_tuned_and_calibrated(
    network: Path, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    pixels, manifest = pictures
    assert SMALL in network.read_text()
    manifest["labels"] = [["noisy", "red"] if label == "red" else ["noisy"] for label in manifest["label"]]
    trunk = architecture("small.py:net", network).trunk(seed=1)
    head = FittedHead(LinearHead.of(torch.zeros(2, 8), torch.zeros(2)), 1.0, ("noisy", "red"), task=task_of(manifest))
    setup = TrainingSetup(trunk, head, pixels, manifest, recipe(epochs=8, unfreeze="all", lr=0.01, head_lr=0.1), CPU)
    trainer.finetune(setup, tmp_path / "tuned", tmp_path / "resume")
    logits = finetuned.load_val_logits(tmp_path / "tuned").numpy()
    labels = MULTI_LABEL.labels_of(manifest[manifest["split"] == "val"], head.classes)
    assert MULTI_LABEL.correct(MULTI_LABEL.predict(logits), labels).all()

    temperature = fit_temperature(logits, labels, MULTI_LABEL)
    assert calibrated_losses(logits, labels, MULTI_LABEL).mean() <= MULTI_LABEL.losses(logits, labels).mean()
    probabilities = Classifier(trunk, head).probabilities(torch.from_numpy(logits) / temperature).numpy()
    tuned, untrained = Scores(probabilities, labels, MULTI_LABEL), Scores(np.full((8, 2), 0.4), labels, MULTI_LABEL)
    assert measured(tuned, 100, 0)["accuracy"] == 1
    assert choose({"head": untrained, "finetune": tuned}) == "finetune"
    assert gain(untrained, tuned)["accuracy"] == 1


def test_tables_of_several_labels_name_what_was_missed_and_what_is_not_there() -> None:
    probabilities = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.95], [0.1, 0.2, 0.3]])
    scores = Scores(probabilities, np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]]), MULTI_LABEL)
    true, predicted = answers(scores)
    assert sorted(zip(true.tolist(), predicted.tolist(), strict=True)) == [(0, 0), (0, 3), (1, 1), (3, 2)]
    (mistake,) = worst_mistakes(scores, 5)
    assert (mistake.position, mistake.shown, mistake.confidence) == (1, 2, 0.95)
    rows = {row["class"]: row for row in per_class(scores, list(NAMES))}
    assert (rows["ant"]["recall"], rows["bee"]["average_precision"], rows["wasp"]["pictures"]) == (0.5, 1, 0)
    assert sum(row["pictures"] for row in reliability(scores)) == 9


def test_softmax_and_the_decision_stand_nowhere_else() -> None:
    """Elsewhere there are only the fits of heads, the loss of training, the code that goes out with an export, and the
    blind classifiers of ``data``, which no task knows."""
    root = Path(headstart.__file__).parent
    strange = re.compile(r"softmax\(|(?<!np)\.argmax\(|cross_entropy|CrossEntropy")
    found = {
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if strange.search(path.read_text(encoding="utf-8"))
    }
    fits = {"models/logistic.py", "models/heads.py", "data/blind.py", "studies/shortcuts.py"}
    assert found == fits | {"models/task.py", "models/losses.py", "inference/export.py"}
