"""The metrics of a result, their intervals, and what else follows from a classifier's answers on one split.

``METRICS`` is the one list of metrics: metrics.json, the report, the model card, the gate, tune's pages and MLflow read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts.metrics import Chance, Measured, Name
from headstart.data.splits import FEW_PICTURES
from headstart.evaluation.intervals import bootstrap, paired_difference, percentile_interval, wilson, with_training
from headstart.models.task import SINGLE_LABEL, MultiLabel, SingleLabel, Task

CONFIDENCE_BINS = 15


class Ranked(NamedTuple):
    """The pictures of each class from the most probable on, as far as it does not depend on how often each is drawn.

    Attributes:
        order: (classes, N) pictures.
        positive: places of those that have the class, among all of ``order``, class by class.
        tied: for each of these, the place of the last picture that is as probable.
        tied_positive: for each of these, which of them is the last that is as probable.
        number: for each of these, of its class.
    """

    order: Ints
    positive: Ints
    tied: Ints
    tied_positive: Ints
    number: Ints


@dataclass(frozen=True)
class Scores:
    """What one classifier says about one split.

    Attributes:
        probabilities: (N, classes), calibrated.
        labels: (N, ...), as the task encodes them.
        groups: (N,) numbers of the groups that the pictures belong to; None where each is on its own.
    """

    probabilities: Floats
    labels: Ints
    task: Task = SINGLE_LABEL
    groups: Ints | None = None

    @property
    def classes(self) -> int:
        return int(self.probabilities.shape[1])

    @cached_property
    def predicted(self) -> Ints:
        return self.task.decide(self.probabilities)

    @cached_property
    def correct(self) -> Bools:
        return self.task.correct(self.predicted, self.labels)

    @cached_property
    def confidence(self) -> Floats:
        """(N,) the probability of each prediction."""
        return self.task.confidence(self.probabilities)

    @cached_property
    def claims(self) -> tuple[Floats, Bools]:
        """What calibration is measured on, (N, claims per picture): probabilities, and whether what they are of is true. A
        single label has one claim, the prediction; of several labels there is one for each class."""
        if isinstance(self.task, MultiLabel):
            return self.probabilities, self.labels == 1
        return self.confidence[:, None], self.correct[:, None]

    @cached_property
    def confidence_bins(self) -> Ints:
        """(N, claims) numbers of the bins, of equal width, that the probabilities of the claims fall into."""
        bins: Ints = np.minimum((self.claims[0] * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
        return bins

    @cached_property
    def ranked(self) -> Ranked:
        order = np.argsort(-self.probabilities.T, axis=1, kind="stable")
        descending = np.take_along_axis(self.probabilities.T, order, axis=1)
        last = np.hstack([descending[:, :-1] != descending[:, 1:], np.ones((self.classes, 1), bool)])
        positive = np.flatnonzero(np.take_along_axis(self.labels.T, order, axis=1))
        ends = np.flatnonzero(last)
        tied = ends[np.searchsorted(ends, positive)]
        return Ranked(order, positive, tied, np.searchsorted(positive, tied, side="right") - 1, positive // order.shape[1])

    @cached_property
    def losses(self) -> Floats:
        """(N,) log-losses."""
        return self.task.losses_of_probabilities(self.probabilities, self.labels)

    def joined(self, other: Scores) -> Scores:
        """These, and those of ``other`` below them, each with its own answers."""
        probabilities = np.concatenate([self.probabilities, other.probabilities])
        both = Scores(probabilities, np.concatenate([self.labels, other.labels]), self.task)
        vars(both)["predicted"] = np.concatenate([self.predicted, other.predicted])  # the thresholds of the two may differ
        return both


# --- the metrics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A figure for how good a classifier is on a split.

    Attributes:
        name: its key in metrics.json, in MLflow and in ``gate.metric``.
        label: what it is called for people.
        measure: (scores, row numbers) → its value on those rows. In a resample a row may occur more than once.
        higher_is_better: or lower.
        is_proportion: a share of the pictures: its interval is Wilson's, and that of the others is by bootstrap.
        is_goal: whether ``gate.metric`` may name it. Calibration alone is no goal: a constant answer can be calibrated.
        is_bounded: False where one picture can cost any amount, as one of a class that a classifier does not know does.
        tasks: the kinds of task that have it.
    """

    name: str
    label: str
    measure: Callable[[Scores, Ints], float]
    higher_is_better: bool = True
    is_proportion: bool = False
    is_goal: bool = True
    is_bounded: bool = True
    tasks: tuple[type[Task], ...] = (SingleLabel, MultiLabel)

    @property
    def heading(self) -> str:
        """The label as a sentence begins with it."""
        return self.label[0].upper() + self.label[1:]


def _accuracy(scores: Scores, rows: Ints) -> float:
    return float(scores.correct[rows].mean())


def _balanced_accuracy(scores: Scores, rows: Ints) -> float:
    hits, true, _ = class_counts(scores, rows)
    return float((hits[true > 0] / true[true > 0]).mean())


def _macro_f1(scores: Scores, rows: Ints) -> float:
    hits, true, predicted = class_counts(scores, rows)
    present = (true + predicted) > 0
    return float((2 * hits[present] / (true + predicted)[present]).mean()) if present.any() else 0.0


def _matthews_corrcoef(scores: Scores, rows: Ints) -> float:
    """The correlation of labels and predictions, of several classes (Gorodkin 2004, "Comparing two K-category assignments
    by a K-category correlation coefficient"); 0 where either is constant."""
    hits, true, predicted = class_counts(scores, rows)
    n = len(rows)
    covariance = hits.sum() * n - true @ predicted
    variances = (n**2 - true @ true) * (n**2 - predicted @ predicted)
    return float(covariance / np.sqrt(variances)) if variances else 0.0


def _log_loss(scores: Scores, rows: Ints) -> float:
    return float(scores.losses[rows].mean())


def _ece(scores: Scores, rows: Ints) -> float:
    """The expected calibration error: the gap between probability and frequency, bin by bin."""
    probabilities, true = (each[rows].ravel() for each in scores.claims)
    bins = scores.confidence_bins[rows].ravel()
    return float(np.abs(np.bincount(bins, probabilities - true, CONFIDENCE_BINS)).sum() / len(bins))


def _mean_average_precision(scores: Scores, rows: Ints) -> float:
    """The mean of the average precisions of those classes that have a picture."""
    found = average_precisions(scores, rows)
    return float(np.nanmean(found)) if not np.isnan(found).all() else 0.0


def average_precisions(scores: Scores, rows: Ints) -> Floats:
    """(classes,) average precisions, as ``sklearn.metrics.average_precision_score`` has them, which would take minutes for
    the bootstrap; NaN of a class without a picture."""
    ranked, classes = scores.ranked, scores.classes
    drawn = np.bincount(rows, minlength=len(scores.labels)).astype(np.int32)[ranked.order]
    shown = drawn.cumsum(axis=1, dtype=np.int32).ravel()[ranked.tied]
    own = drawn.ravel()[ranked.positive]
    total = np.bincount(ranked.number, own, classes)
    hits = own.cumsum()[ranked.tied_positive] - (total.cumsum() - total)[ranked.number]
    precision = np.bincount(ranked.number, own * hits / np.maximum(shown, 1), classes)
    return np.where(total > 0, precision / np.maximum(total, 1), np.nan)


def _micro_f1(scores: Scores, rows: Ints) -> float:
    hits, true, predicted = (counts.sum() for counts in class_counts(scores, rows))
    return float(2 * hits / max(true + predicted, 1))


def class_counts(scores: Scores, rows: Ints) -> tuple[Floats, Floats, Floats]:
    """Of each class: how many were recognised, how many there are, how many were predicted."""
    if isinstance(scores.task, MultiLabel):
        present, answered = scores.labels[rows], scores.predicted[rows]
        sums = [each.sum(0).astype(float) for each in (present * answered, present, answered)]
        return sums[0], sums[1], sums[2]
    labels, predicted = scores.labels[rows], scores.predicted[rows]
    hits = labels[scores.correct[rows]]
    counts = [np.bincount(numbers, minlength=scores.classes).astype(float) for numbers in (hits, labels, predicted)]
    return counts[0], counts[1], counts[2]


# Of several labels the share of the pictures whose labels are all right, scikit-learn's subset accuracy.
ACCURACY = Metric("accuracy", "accuracy", _accuracy, is_proportion=True)
MEAN_AVERAGE_PRECISION = Metric(
    "mean_average_precision", "mean average precision", _mean_average_precision, tasks=(MultiLabel,)
)
LOG_LOSS = Metric("log_loss", "log-loss", _log_loss, higher_is_better=False, is_bounded=False)
METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY,
        MEAN_AVERAGE_PRECISION,
        Metric("balanced_accuracy", "balanced accuracy", _balanced_accuracy, tasks=(SingleLabel,)),
        Metric("macro_f1", "macro F1", _macro_f1),
        Metric("micro_f1", "micro F1", _micro_f1, tasks=(MultiLabel,)),  # of one label it is accuracy
        Metric("matthews_corrcoef", "Matthews' correlation", _matthews_corrcoef, tasks=(SingleLabel,)),
        LOG_LOSS,
        Metric("ece", "calibration error", _ece, higher_is_better=False, is_goal=False),
    )
}


def metrics_of(task: Task) -> list[Metric]:
    return [metric for metric in METRICS.values() if isinstance(task, metric.tasks)]


def measured(scores: Scores, resamples: int, seed: int) -> Measured:
    """Every metric of one split, each with its 95% interval as _low and _high, and the number of pictures as ``n``.

    Of a proportion the interval is Wilson's (1927). Of the others it is the percentile bootstrap's, extended to the figure
    itself: a resample has pictures twice, which makes calibration look worse than it is, and F1 of classes with a picture
    or two. Both respect groups.
    """
    n, metrics = len(scores.labels), metrics_of(scores.task)
    values = {metric.name: metric.measure(scores, np.arange(n)) for metric in metrics}
    bootstrapped = [metric for metric in metrics if not metric.is_proportion]
    groups = scores.groups
    draws = bootstrap(lambda rows: [metric.measure(scores, rows) for metric in bootstrapped], n, seed, resamples, groups)
    lows, highs = percentile_interval(draws, groups)
    intervals = {
        metric.name: (min(float(low), values[metric.name]), max(float(high), values[metric.name]))
        for metric, low, high in zip(bootstrapped, lows, highs, strict=True)
    }
    result: Measured = {}
    for name, value in values.items():
        low, high = intervals.get(name) or wilson(_hits(METRICS[name], scores), groups)
        result |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return result | {"n": n}


def _hits(metric: Metric, scores: Scores) -> Bools:
    """(N,) whether each picture counts, of a metric that is a share of them."""
    return np.array([metric.measure(scores, np.array([row])) > 0.5 for row in range(len(scores.labels))])


# --- head or fine-tuned network ---------------------------------------------------------------------------------------


def gain(before: Scores, after: Scores, chances: Sequence[Chance] = ()) -> dict[str, float]:
    """Accuracy of ``after`` minus ``before`` on the same pictures, with its 95% interval, which holds ``chances`` too."""
    difference = paired_difference(before.correct, after.correct, after.groups).accuracy
    accuracy = with_training(difference, chances, after.groups, most=1)
    return {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}


def choose(val: dict[Name, Scores]) -> Name:
    """Of head and finetune the one with the lower validation log-loss, which tells more than accuracy where pictures are
    few. Their ensemble passes every picture through more networks: it is chosen only if its log-loss is lower by more than
    one standard error.

    Where there are so few pictures that two lucky ones make most of the difference (and epoch and mixture were chosen on
    the same ones), the head stays unless the other is also right on clearly more of them: p < 0.05 in McNemar's exact test.
    """
    best: Name = min((name for name in val if name != "ensemble"), key=lambda name: val[name].losses.mean())
    preferred: list[Name] = [best]
    if "ensemble" in val:
        gained = val[best].losses - val["ensemble"].losses
        if gained.mean() > gained.std() / np.sqrt(len(gained)):
            preferred.insert(0, "ensemble")
    for name in preferred:
        if name == "head" or len(val["head"].labels) >= FEW_PICTURES:
            return name
        difference = paired_difference(val["head"].correct, val[name].correct, val["head"].groups)
        if difference.gained > difference.lost and difference.p_value("greater") < 0.05:
            return name
    return "head"
