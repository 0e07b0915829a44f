"""When to answer: confidences below which a classifier had better say nothing, so that what it says is seldom wrong.

Selective classification with a guarantee, after Geifman and El-Yaniv 2017, "Selective classification for deep neural
networks": on pictures that the classifier was not fitted on, count the errors among the most confident ones and bound the
error that this allows for. Their search tries a handful of thresholds and shares the chance of being wrong among them. So
does this one, with the same thresholds whatever is asked for, so that a table of ten rows answers every question.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headstart.base.arrays import Bools, Floats
from headstart.base.errors import HeadstartError

SURE = 0.95  # all bounds of a table hold at once with this probability
STEPS = 10  # shares of the pictures that are tried: a tenth, two tenths, ... all


def thresholds(confidence: Floats, correct: Bools) -> dict[str, Any]:
    """What answering only from a confidence on would have meant on held-out pictures.

    Args:
        confidence: (N,) probabilities of the label that was given.
        correct: (N,) whether it was the right one.

    Returns:
        ``pictures`` (N), ``sure``, and ``thresholds``: rows of the least ``confidence`` that is answered, the share of
        pictures that is (``answered``), the share of those that were wrong (``error``), and the upper end of its one-sided
        interval (``bound``; Clopper and Pearson 1934), the rows with most answers first.
    """
    from scipy.special import betaincinv  # beta.ppf of scipy.stats, without the second that importing that takes

    sorted_down = np.sort(confidence)[::-1]
    rows: list[dict[str, float]] = []
    for step in range(STEPS, 0, -1):
        count = round(len(confidence) * step / STEPS)
        if not count:
            continue
        least = float(sorted_down[count - 1]) if step < STEPS else 0.0
        answered = confidence >= least
        n, wrong = int(answered.sum()), int((answered & ~correct).sum())
        bound = 1.0 if wrong == n else float(betaincinv(wrong + 1, n - wrong, 1 - (1 - SURE) / STEPS))
        rows.append({"confidence": least, "answered": n / len(confidence), "error": wrong / n, "bound": bound})
    return {"pictures": len(confidence), "sure": SURE, "thresholds": rows}


def threshold_for(max_error: float, table: dict[str, Any] | None) -> dict[str, float]:
    """The row of a table of ``thresholds`` that answers most pictures and promises at most ``max_error``.

    Raises:
        HeadstartError: there is no table, or no row promises that; the message says what can be promised.
    """
    if not 0 < max_error < 1:
        raise HeadstartError(f"--max-error {max_error:g}; give a share between 0 and 1, such as 0.05")
    if table is None:
        raise HeadstartError("this model was packaged without thresholds for --max-error; run `dvc repro package`")
    rows: list[dict[str, float]] = table["thresholds"]
    for row in rows:
        if row["bound"] <= max_error:
            return row
    best = min(rows, key=lambda row: row["bound"])
    raise HeadstartError(
        f"--max-error {max_error:g}: no threshold can promise that after {table['pictures']} validation pictures. The "
        f"least is {best['bound']:.3f}, for the surest {best['answered']:.0%} of the pictures; ask for that, or have more "
        "validation pictures (split.val)"
    )
