"""Selective classification: confidence thresholds below which a classifier abstains, so that few of its answers are wrong.

After Geifman and El-Yaniv 2017, "Selective classification for deep neural networks": on pictures that the classifier was
not fitted on, count the errors among the most confident predictions and bound the error rate from above. Their search tries
a few thresholds and divides the risk of a wrong bound among them. So does this module, but with the same ten thresholds for
every error rate that may be asked for, so that one table serves all.
"""

from __future__ import annotations

import numpy as np

from headstart.base.arrays import Bools, Floats
from headstart.base.artifacts.classifier import Threshold, Thresholds
from headstart.base.errors import HeadstartError
from headstart.models.task import MultiLabel

CONFIDENCE_LEVEL = 0.95  # the probability that all bounds of a table hold together
NO_TABLE = "this model was packaged without thresholds for --max-error; run `dvc repro package`"
STEPS = 10  # thresholds: those that answer a tenth of the pictures, two tenths, ... all


def confidence_of_decisions(task: MultiLabel, probabilities: Floats) -> Floats:
    """(..., classes) probabilities → (..., classes) those of what is decided about each class, that it is there or not."""
    present = task.decide(probabilities)
    confidence: Floats = np.where(present == 1, probabilities, 1 - probabilities)
    return confidence


def thresholds(confidence: Floats, correct: Bools) -> Thresholds:
    """The error rate on held-out pictures for different confidence thresholds.

    Args:
        confidence: (N,) probabilities of the predicted label.
        correct: (N,) whether it is right.

    The bounds are one-sided limits of Clopper and Pearson (1934).
    """
    from scipy.special import betaincinv  # the same as beta.ppf of scipy.stats, which takes a second to import

    descending = np.sort(confidence)[::-1]
    rows = []
    for step in range(STEPS, 0, -1):
        count = round(len(confidence) * step / STEPS)
        if not count:
            continue
        least = float(descending[count - 1]) if step < STEPS else 0.0
        answered = confidence >= least
        n, wrong = int(answered.sum()), int((answered & ~correct).sum())
        bound = 1.0 if wrong == n else float(betaincinv(wrong + 1, n - wrong, 1 - (1 - CONFIDENCE_LEVEL) / STEPS))
        rows.append(Threshold(confidence=least, answered=n / len(confidence), error=wrong / n, bound=bound))
    return Thresholds(pictures=len(confidence), sure=CONFIDENCE_LEVEL, thresholds=rows)


def threshold_for(max_error: float, table: Thresholds | None, about: str | None = None) -> Threshold:
    """The row of a table of ``thresholds`` that answers most pictures with an error bound of at most ``max_error``.

    Args:
        about: the class whose decisions the table is of; None where it is of whole answers.

    Raises:
        HeadstartError: there is no table, or no row has such a bound; the message names the least bound.
    """
    if not 0 < max_error < 1:
        raise HeadstartError(f"--max-error {max_error:g}; give a share between 0 and 1, such as 0.05")
    if table is None:
        raise HeadstartError(NO_TABLE)
    for row in table.thresholds:
        if row.bound <= max_error:
            return row
    best = min(table.thresholds, key=lambda row: row.bound)
    of_class = "" if about is None else f" for {about!r}"
    raise HeadstartError(
        f"--max-error {max_error:g}: no threshold can promise that{of_class} after {table.pictures} validation pictures. "
        f"The least is {best.bound:.3f}, for the most confident {best.answered:.0%} of the pictures; ask for that, or "
        "have more validation pictures (split.val)"
    )


def thresholds_by_class(max_error: float, tables: dict[str, Thresholds] | None) -> dict[str, Threshold]:
    """The row of ``threshold_for`` for each class.

    Raises:
        HeadstartError: there are no tables, or one has no such row; the message names the class with the greatest least
            bound, so that what it says can be asked for.
    """
    if tables is None:
        raise HeadstartError(NO_TABLE)
    hardest = max(tables, key=lambda name: min(row.bound for row in tables[name].thresholds))
    threshold_for(max_error, tables[hardest], hardest)
    return {name: threshold_for(max_error, table, name) for name, table in tables.items()}
