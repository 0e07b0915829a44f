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

CONFIDENCE_LEVEL = 0.95  # the probability that all bounds of a table hold together
STEPS = 10  # thresholds: those that answer a tenth of the pictures, two tenths, ... all


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


def threshold_for(max_error: float, table: Thresholds | None) -> Threshold:
    """The row of a table of ``thresholds`` that answers most pictures with an error bound of at most ``max_error``.

    Raises:
        HeadstartError: there is no table, or no row has such a bound; the message names the least bound.
    """
    if not 0 < max_error < 1:
        raise HeadstartError(f"--max-error {max_error:g}; give a share between 0 and 1, such as 0.05")
    if table is None:
        raise HeadstartError("this model was packaged without thresholds for --max-error; run `dvc repro package`")
    for row in table.thresholds:
        if row.bound <= max_error:
            return row
    best = min(table.thresholds, key=lambda row: row.bound)
    raise HeadstartError(
        f"--max-error {max_error:g}: no threshold can promise that after {table.pictures} validation pictures. The "
        f"least is {best.bound:.3f}, for the most confident {best.answered:.0%} of the pictures; ask for that, or "
        "have more validation pictures (split.val)"
    )
