"""What the scores of one split say picture by picture and class by class, as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.base.arrays import Ints
from headstart.evaluation.intervals import wilson
from headstart.evaluation.metrics import Scores, average_precisions, class_counts
from headstart.models.task import MultiLabel

if TYPE_CHECKING:
    import pandas as pd

RELIABILITY_BINS, FEWEST_IN_A_BIN = 10, 10


def per_class(scores: Scores, classes: list[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and count of each class, the worst F1 first; those without pictures last. Of several labels
    also its average precision."""
    every = np.arange(len(scores.labels))
    hits, true, predicted = class_counts(scores, every)
    several = isinstance(scores.task, MultiLabel)
    precisions = np.nan_to_num(average_precisions(scores, every)) if several else None
    rows = [
        {
            "class": name,
            "precision": float(hits[c] / max(predicted[c], 1)),
            "recall": float(hits[c] / max(true[c], 1)),
            "f1": float(2 * hits[c] / max(true[c] + predicted[c], 1)),
            **({} if precisions is None else {"average_precision": float(precisions[c])}),
            "pictures": int(true[c]),
        }
        for c, name in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: (not row["pictures"], row["f1"], row["class"]))


def reliability(scores: Scores) -> list[dict[str, float]]:
    """Mean confidence, and accuracy with its 95% interval, in bins of equal count from the least to the most confident. Of
    several labels each class of each picture counts, with its probability."""
    probabilities, true = scores.claims[0].ravel(), scores.claims[1].ravel()
    groups = np.arange(len(scores.labels)) if scores.groups is None else scores.groups
    of_claims = np.repeat(groups, scores.claims[0].shape[1])
    bins = max(1, min(RELIABILITY_BINS, len(probabilities) // FEWEST_IN_A_BIN))
    rows = []
    for part in np.array_split(np.argsort(probabilities, kind="stable"), bins):
        low, high = wilson(true[part].astype(bool), np.unique(of_claims[part], return_inverse=True)[1])
        figures = {"confidence": probabilities[part].mean(), "accuracy": true[part].mean(), "low": low, "high": high}
        rows.append({name: float(value) for name, value in figures.items()} | {"pictures": len(part)})
    return rows


def predictions(manifest: pd.DataFrame, scores: dict[str, Scores], classes: list[str]) -> pd.DataFrame:
    """image, split, label, predicted and one probability per class, for each split in ``scores``, in manifest order."""
    import pandas as pd

    frames = []
    for split, score in scores.items():
        rows = manifest[manifest["split"] == split]
        columns = {
            "image": rows["path"].to_numpy(),
            "split": split,
            "label": rows["label"].to_numpy(),
            "predicted": [score.task.answer(row, classes)[0] for row in score.probabilities],
        }
        probabilities = {name: score.probabilities[:, c] for c, name in enumerate(classes)}
        frames.append(pd.DataFrame(columns | probabilities))
    return pd.concat(frames, ignore_index=True)


def answers(scores: Scores) -> tuple[Ints, Ints]:
    """True and predicted class numbers for a confusion matrix. Of several labels a class that was there and predicted is a
    pair of the same number; one that was missed has the number after the last class as its prediction, and one that is not
    there has that number as the truth."""
    if not isinstance(scores.task, MultiLabel):
        return scores.labels, scores.predicted
    nothing, (rows, numbers) = scores.classes, np.nonzero(scores.labels + scores.predicted)
    present, predicted = (each[rows, numbers] == 1 for each in (scores.labels, scores.predicted))
    return np.where(present, numbers, nothing), np.where(predicted, numbers, nothing)


@dataclass(frozen=True)
class Mistake:
    """
    Attributes:
        position: of the picture in its split.
        shown: number of the class to look at: the predicted one; of several labels the one that is most wrong.
        confidence: of the prediction; of several labels the probability of ``shown``.
    """

    position: int
    shown: int
    confidence: float


def worst_mistakes(scores: Scores, count: int) -> list[Mistake]:
    """The wrong answers given with the most confidence, one for each picture."""
    wrong = np.flatnonzero(~scores.correct)
    if not isinstance(scores.task, MultiLabel):
        surest = wrong[np.argsort(-scores.confidence[wrong], kind="stable")[:count]]
        return [Mistake(int(p), int(scores.predicted[p]), float(scores.confidence[p])) for p in surest]
    off = np.where(scores.predicted != scores.labels, np.abs(scores.probabilities - scores.labels), 0.0)[wrong]
    shown = np.argmax(off, axis=1)
    worst = np.argsort(-off.max(1, initial=0.0), kind="stable")[:count]
    pairs = [(int(wrong[row]), int(shown[row])) for row in worst]
    return [Mistake(p, c, float(scores.probabilities[p, c])) for p, c in pairs]
