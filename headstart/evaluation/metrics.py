"""evaluate: validation chooses between head and fine-tuned network, the test split reports once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from headstart.base.arrays import Bools, Floats, Ints
from headstart.evaluation.intervals import bootstrap, paired_difference, percentile_interval, wilson
from headstart.training.linear_probe import FEW_PICTURES

CONFIDENCE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """What one classifier says about one split.

    Attributes:
        probabilities: (N, classes), calibrated.
        labels: (N,) true class numbers.
    """

    probabilities: Floats
    labels: Ints

    @property
    def predicted(self) -> Ints:
        numbers: Ints = self.probabilities.argmax(axis=1)
        return numbers

    @property
    def correct(self) -> Bools:
        right: Bools = self.predicted == self.labels
        return right


def metrics(scores: Scores, resamples: int, seed: int) -> dict[str, float]:
    """Every metric of one split, each with its 95 % interval as _low and _high.

    Of accuracy it is Wilson's (1927). Of the others, which are no shares, it is the percentile bootstrap's (Efron 1979),
    extended to the figure itself: a resample has pictures twice, which makes calibration look worse than it is, and F1
    of classes with a picture or two.
    """
    n = len(scores.labels)
    measures = measures_of(scores)
    del measures["accuracy"]
    low, high = wilson(int(scores.correct.sum()), n)
    result = {"accuracy": float(scores.correct.mean()), "accuracy_low": low, "accuracy_high": high}
    draws = bootstrap(lambda rows: [measure(rows) for measure in measures.values()], n, seed, resamples)
    for (name, measure), low, high in zip(measures.items(), *percentile_interval(draws), strict=True):
        value = measure(np.arange(n))
        result |= {name: value, f"{name}_low": min(float(low), value), f"{name}_high": max(float(high), value)}
    return result | {"n": n}


def measures_of(scores: Scores) -> dict[str, Callable[[Ints], float]]:
    """Each metric as a function of the rows it is taken over, with what does not change computed once."""
    classes = scores.probabilities.shape[1]
    labels, predicted, correct = scores.labels, scores.predicted, scores.correct
    surprise = _surprise(scores)
    confidence = scores.probabilities.max(axis=1)
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)

    def balanced_accuracy(rows: Ints) -> float:
        hit, true, _ = _counts(labels[rows], predicted[rows], classes)
        return float((hit[true > 0] / true[true > 0]).mean())

    def macro_f1(rows: Ints) -> float:
        hit, true, said = _counts(labels[rows], predicted[rows], classes)
        seen = (true + said) > 0
        return float((2 * hit[seen] / (true + said)[seen]).mean())

    def ece(rows: Ints) -> float:
        gap = np.bincount(bins[rows], confidence[rows] - correct[rows], minlength=CONFIDENCE_BINS)
        return float(np.abs(gap).sum() / len(rows))

    return {
        "accuracy": lambda rows: float(correct[rows].mean()),
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": macro_f1,
        "log_loss": lambda rows: float(surprise[rows].mean()),
        "ece": ece,
    }


def _counts(labels: Ints, predicted: Ints, classes: int) -> tuple[Floats, Floats, Floats]:
    """Of each class: how many were recognised, how many there are, how many were taken for it."""
    hit = np.bincount(labels[labels == predicted], minlength=classes).astype(float)
    true = np.bincount(labels, minlength=classes).astype(float)
    said = np.bincount(predicted, minlength=classes).astype(float)
    return hit, true, said


def gain(before: Scores, after: Scores) -> dict[str, float]:
    """Accuracy of ``after`` minus ``before`` on the same pictures, with its 95 % interval."""
    accuracy = paired_difference(before.correct, after.correct).accuracy
    return {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}


def choose(val: dict[str, Scores]) -> str:
    """head or finetune: the lower validation log-loss, which tells more than accuracy where pictures are few.

    Where they are so few that two lucky pictures make most of the difference (and epoch and mixture were chosen on the same
    ones), the head stays unless the fine-tuned network is also right on clearly more of them: p < 0.05 in McNemar's exact
    test.
    """
    best = min(val, key=lambda name: _surprise(val[name]).mean())
    if best == "head" or len(val["head"].labels) >= FEW_PICTURES:
        return best
    difference = paired_difference(val["head"].correct, val[best].correct)
    clearly = difference.gained > difference.lost and difference.p_value("greater") < 0.05
    return best if clearly else "head"


def _surprise(scores: Scores) -> Floats:
    """(N,) log-losses."""
    own = scores.probabilities[np.arange(len(scores.labels)), scores.labels]
    losses: Floats = -np.log(np.clip(own, 1e-15, 1))
    return losses


def per_class(scores: Scores, classes: list[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and count of each class, the worst F1 first; those without pictures last."""
    hit, true, said = _counts(scores.labels, scores.predicted, len(classes))
    rows = [
        {
            "class": name,
            "precision": float(hit[c] / max(said[c], 1)),
            "recall": float(hit[c] / max(true[c], 1)),
            "f1": float(2 * hit[c] / max(true[c] + said[c], 1)),
            "pictures": int(true[c]),
        }
        for c, name in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: (not row["pictures"], row["f1"], row["class"]))


def reliability(scores: Scores) -> list[dict[str, float]]:
    """Mean confidence and accuracy in each confidence bin that holds a picture."""
    confidence = scores.probabilities.max(axis=1)
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    return [
        {
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(scores.correct[bins == b].mean()),
            "pictures": int((bins == b).sum()),
        }
        for b in range(CONFIDENCE_BINS)
        if (bins == b).any()
    ]


def predictions(manifest: pd.DataFrame, scores: dict[str, Scores], classes: list[str]) -> pd.DataFrame:
    """image, split, label, predicted and one probability per class, for each split in ``scores``, in manifest order."""
    frames = []
    for split, score in scores.items():
        rows = manifest[manifest["split"] == split]
        columns = {
            "image": rows["path"].to_numpy(),
            "split": split,
            "label": rows["label"].to_numpy(),
            "predicted": np.array(classes)[score.predicted],
        }
        probabilities = {name: score.probabilities[:, c] for c, name in enumerate(classes)}
        frames.append(pd.DataFrame(columns | probabilities))
    return pd.concat(frames, ignore_index=True)


def worst_mistakes(scores: Scores, count: int) -> list[int]:
    """Positions of the wrong answers given with the most confidence."""
    wrong = np.flatnonzero(~scores.correct)
    confidence = scores.probabilities.max(axis=1)[wrong]
    return [int(w) for w in wrong[np.argsort(-confidence, kind="stable")][:count]]
