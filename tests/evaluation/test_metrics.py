"""The figures are scikit-learn's, their intervals hold them, and validation chooses by log-loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as theirs

from headstart.base.arrays import Ints
from headstart.base.sections import Gate
from headstart.evaluation.figures import confusion, plt
from headstart.evaluation.metrics import (
    METRICS,
    Metric,
    Scores,
    choose,
    gain,
    measured,
    metrics_of,
)
from headstart.evaluation.report import ensemble_share
from headstart.evaluation.tables import (
    FEWEST_IN_A_BIN,
    RELIABILITY_BINS,
    per_class,
    predictions,
    reliability,
    worst_mistakes,
)
from headstart.models.task import MULTI_LABEL, SINGLE_LABEL, Task


def random_scores(seed: int, count: int, classes: int, skill: float = 1.0, sharpness: float = 1.0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(0, 1, (count, classes)) * sharpness
    logits[np.arange(count), labels] += skill
    odds = np.exp(logits)
    return Scores(odds / odds.sum(axis=1, keepdims=True), labels)


scores = st.builds(
    random_scores,
    st.integers(0, 10_000),
    st.integers(1, 120),
    st.integers(2, 7),
    st.floats(-1, 4),
    st.floats(0.1, 5),
)


@given(scores)
@settings(max_examples=80)
def test_the_figures_are_scikit_learns(s: Scores) -> None:
    found = measured(s, 100, 0)
    classes = np.arange(s.probabilities.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted and never true
        assert found["matthews_corrcoef"] == pytest.approx(theirs.matthews_corrcoef(s.labels, s.predicted))
        assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(s.labels, s.predicted))
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(s.labels, s.predicted))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(s.labels, s.predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(theirs.log_loss(s.labels, s.probabilities, labels=classes))
    assert found["n"] == len(s.labels)


@pytest.mark.parametrize("answers", [[0, 0, 0, 0], [0, 1, 2, 0], [2, 0, 1, 1]])
def test_matthews_correlation_is_scikit_learns_at_its_ends(answers: list[int]) -> None:
    labels = np.array([0, 1, 2, 0])
    correlation = METRICS["matthews_corrcoef"].measure(Scores(np.eye(3)[answers], labels), np.arange(4))
    assert correlation == pytest.approx(theirs.matthews_corrcoef(labels, answers))


def test_the_gate_may_name_every_metric_that_is_a_goal() -> None:
    assert set(get_args(Gate.model_fields["metric"].annotation)) == {m.name for m in METRICS.values() if m.is_goal}


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("metric", METRICS.values())
def test_every_metric_is_better_for_better_answers(metric: Metric, task: Task) -> None:
    if metric not in metrics_of(task):
        assert len(metric.tasks) == 1
        return
    labels = np.arange(300) % 3
    good, poor = certain(labels, 270), certain(labels, 150)
    if task is MULTI_LABEL:
        good, poor = (Scores(s.probabilities, np.eye(3, dtype=int)[labels], task) for s in (good, poor))
    difference = metric.measure(good, np.arange(300)) - metric.measure(poor, np.arange(300))
    assert difference > 0 if metric.higher_is_better else difference < 0


def certain(labels: Ints, right: int) -> Scores:
    """Sure of its answers, which are right on the first pictures."""
    answers = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 3)
    return Scores(0.97 * np.eye(3)[answers] + 0.01, labels)


@given(scores)
@settings(max_examples=60)
def test_the_calibration_error_is_the_weighted_gap_of_bins_of_equal_width(s: Scores) -> None:
    right, bins = (s.predicted == s.labels).astype(float), np.minimum((s.confidence * 15).astype(int), 14)
    gaps = [np.abs((right - s.confidence)[bins == number].sum()) for number in range(15)]
    assert measured(s, 100, 0)["ece"] == pytest.approx(sum(gaps) / len(s.labels))


@given(scores)
@settings(max_examples=60)
def test_the_reliability_diagram_has_bins_of_equal_count_with_intervals(s: Scores) -> None:
    bins = reliability(s)
    counts = [b["pictures"] for b in bins]
    assert sum(counts) == len(s.labels)
    assert max(counts) - min(counts) <= 1
    assert len(bins) == max(1, min(RELIABILITY_BINS, len(s.labels) // FEWEST_IN_A_BIN))
    assert [b["confidence"] for b in bins] == sorted(b["confidence"] for b in bins)
    assert all(0 <= b["low"] <= b["accuracy"] <= b["high"] <= 1 for b in bins)


@given(scores, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_intervals_are_ordered_and_hold_their_figure(s: Scores, seed: int) -> None:
    found = measured(s, 200, seed)
    for name in (metric.name for metric in metrics_of(SINGLE_LABEL)):
        assert found[f"{name}_low"] <= found[f"{name}_high"]
        assert found[f"{name}_low"] - 1e-9 <= found[name] <= found[f"{name}_high"] + 1e-9
    assert measured(s, 200, seed) == found


def test_the_interval_is_as_wide_as_theory_has_it_and_narrows_with_pictures() -> None:
    widths = []
    for count in (100, 400, 1600):
        right = np.arange(count) % 5 != 0  # 80%
        s = Scores(np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]]), np.zeros(count, np.int64))
        m = measured(s, 2000, 0)
        widths.append(m["accuracy_high"] - m["accuracy_low"])
        assert widths[-1] == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / count), rel=0.15)
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize(("right", "count"), [(10, 10), (0, 10), (97, 100), (259, 324)])
def test_the_interval_of_accuracy_is_wilsons_and_no_certainty(right: int, count: int) -> None:
    found = measured(Scores(np.eye(2)[(np.arange(count) >= right).astype(int)], np.zeros(count, np.int64)), 10, 0)
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((theirs.low, theirs.high))
    assert found["accuracy_high"] - found["accuracy_low"] > 0.01


def test_a_class_without_pictures_is_not_the_worst() -> None:
    rows = per_class(Scores(np.eye(3)[[0, 0, 1]], np.array([0, 1, 1])), ["a", "b", "none"])
    assert [row["class"] for row in rows] == ["a", "b", "none"]


def test_a_certain_and_wrong_answer_costs_much_but_not_infinity() -> None:
    s = Scores(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]))
    m = measured(s, 100, 0)
    assert 10 < m["log_loss"] < 100
    assert (m["accuracy"], m["ece"]) == (0.5, 0.5)


def test_a_gain_is_paired() -> None:
    before = random_scores(0, 300, 4, skill=1.0)
    same = gain(before, before)
    assert (same["accuracy"], same["low"]) == (0, -same["high"])
    assert 0 < same["high"] < 0.02
    probabilities = before.probabilities.copy()
    wrong = np.flatnonzero(~before.correct)[:20]
    probabilities[wrong] = np.eye(4)[before.labels[wrong]]
    better = gain(before, Scores(probabilities, before.labels))
    assert better["accuracy"] == pytest.approx(20 / 300)
    assert 0 < better["low"] < better["accuracy"] < better["high"]
    apart = measured(before, 500, 0)
    assert better["high"] - better["low"] < apart["accuracy_high"] - apart["accuracy_low"]


def sure(right: float, count: int) -> Scores:
    """``count`` pictures of class 0, each given the probability ``right``."""
    return Scores(np.tile([right, 1 - right], (count, 1)), np.zeros(count, np.int64))


def test_validation_chooses_by_log_loss_and_keeps_the_head_on_a_tie() -> None:
    assert choose({"head": sure(0.6, 200), "finetune": sure(0.7, 200)}) == "finetune"
    assert choose({"head": sure(0.7, 200), "finetune": sure(0.6, 200)}) == "head"
    assert choose({"head": sure(0.7, 200), "finetune": sure(0.7, 200)}) == "head"
    assert choose({"head": sure(0.7, 200)}) == "head"


def test_an_ensemble_is_chosen_where_it_is_clearly_better_than_the_better_of_both() -> None:
    good = {"head": sure(0.6, 200), "finetune": sure(0.7, 200)}
    assert choose(good | {"ensemble": sure(0.75, 200)}) == "ensemble"
    assert choose(good | {"ensemble": sure(0.7, 200)}) == "finetune"
    mixed = np.concatenate([sure(0.9, 116).probabilities, sure(0.5, 84).probabilities])
    hardly = Scores(mixed, np.zeros(200, np.int64))
    assert 0 < (good["finetune"].losses - hardly.losses).mean() < 0.02
    assert choose(good | {"ensemble": hardly}) == "finetune"
    assert choose({"head": sure(0.6, 40), "finetune": sure(0.5, 40), "ensemble": sure(0.7, 40)}) == "head"
    # Of few pictures the ensemble is right on no more than the head, and the fine-tuned network is.
    few = {"head": right_on(20), "finetune": right_on(40), "ensemble": sure(0.95, 40)}
    assert choose(few) == "ensemble"
    half = np.concatenate([sure(0.999, 22).probabilities, sure(0.49, 18).probabilities])
    few["finetune"], few["ensemble"] = (
        Scores(np.full((40, 2), [0.62, 0.38]), np.zeros(40, np.int64)),
        Scores(half, np.zeros(40, np.int64)),
    )
    assert few["ensemble"].losses.mean() < few["finetune"].losses.mean() < few["head"].losses.mean()
    assert choose(few) == "finetune"


def test_halves_are_averaged_unless_validation_is_clearly_for_another_share() -> None:
    good, bad = (torch.tensor([[level, 0.0]] * 100) for level in (3.0, -3.0))
    truth, unsure = np.zeros(100, np.int64), torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 0.01
    assert ensemble_share(good + unsure, good - unsure, truth, SINGLE_LABEL) == 0.5
    assert ensemble_share(good, bad, truth, SINGLE_LABEL) == 0.75
    assert ensemble_share(bad, good, truth, SINGLE_LABEL) == 0.25


def right_on(count: int, of: int = 40) -> Scores:
    """Sure of the right class on ``count`` pictures, a little on the wrong side on the others."""
    return Scores(
        np.concatenate([sure(0.9, count).probabilities, sure(0.4, of - count).probabilities]), np.zeros(of, np.int64)
    )


def test_on_few_pictures_two_lucky_answers_do_not_take_the_head_away() -> None:
    assert choose({"head": right_on(37), "finetune": right_on(39)}) == "head"
    assert choose({"head": sure(0.7, 40), "finetune": sure(0.9, 40)}) == "head"  # surer, and right on the same pictures
    assert choose({"head": right_on(32), "finetune": right_on(39)}) == "finetune"
    assert choose({"head": sure(0.7, 99), "finetune": sure(0.9, 99)}) == "head"
    assert choose({"head": sure(0.7, 100), "finetune": sure(0.9, 100)}) == "finetune"  # no longer few
    assert choose({"head": right_on(39), "finetune": right_on(32)}) == "head"


@given(scores)
@settings(max_examples=40)
def test_the_table_of_classes_is_scikit_learns_report_worst_first(s: Scores) -> None:
    names = [f"class {n}" for n in range(s.probabilities.shape[1])]
    rows = per_class(s, names)
    report = theirs.classification_report(
        s.labels, s.predicted, labels=range(len(names)), target_names=names, output_dict=True, zero_division=0
    )
    assert sorted(row["class"] for row in rows) == sorted(names)
    for row in rows:
        expected = report[row["class"]]
        assert (row["precision"], row["recall"], row["f1"], row["pictures"]) == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"], expected["support"])
        )
    order = [(not row["pictures"], row["f1"]) for row in rows]
    assert order == sorted(order)


@given(scores, st.integers(0, 12))
@settings(max_examples=40)
def test_the_worst_mistakes_are_wrong_and_the_surest_come_first(s: Scores, count: int) -> None:
    shown = [mistake.position for mistake in worst_mistakes(s, count)]
    assert len(shown) == min(count, int((~s.correct).sum()))
    assert not s.correct[shown].any()
    confidence = s.probabilities.max(axis=1)
    assert confidence[shown].tolist() == sorted(confidence[shown], reverse=True)
    left = set(np.flatnonzero(~s.correct)) - set(shown)
    assert not shown or all(confidence[n] <= confidence[shown[-1]] for n in left)


def test_predictions_name_each_picture_with_its_own_probabilities_in_manifest_order() -> None:
    manifest = pd.DataFrame(
        {
            "path": ["a", "b", "c", "d", "e"],
            "label": ["ant", "bee", "bee", "ant", "ant"],
            "split": ["test", "train", "val", "test", "val"],
        }
    )
    val = Scores(np.array([[0.3, 0.7], [0.6, 0.4]]), np.array([1, 0]))
    test = Scores(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    table = predictions(manifest, {"val": val, "test": test}, ["ant", "bee"])
    assert list(table) == ["image", "split", "label", "predicted", "ant", "bee"]
    assert table["image"].tolist() == ["c", "e", "a", "d"]
    assert table["predicted"].tolist() == ["bee", "ant", "ant", "bee"]
    assert table["label"].tolist() == ["bee", "ant", "ant", "ant"]
    assert table["bee"].tolist() == [0.7, 0.4, 0.1, 0.8]


def test_the_name_of_a_class_is_drawn_as_it_is(tmp_path: Path) -> None:
    confusion(np.array([0, 1]), np.array([1, 1]), ["US$_$CA", r"$\frac$"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_logarithmic_axes_have_powers_and_no_markup() -> None:
    axes = plt.figure().add_subplot(xscale="log", xlim=(1, 1000))
    assert all(label.get_parse_math() for label in axes.get_xticklabels())
    plt.close("all")
