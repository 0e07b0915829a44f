"""Shares, means and their differences, each with its 95 % interval, rounded as they are written into files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.floating[Any]]
RESAMPLES = 2000
DIGITS = 4


def share(hits: NDArray[np.bool_]) -> dict[str, Any]:
    """Of (N,) pictures: ``count`` and ``share``, with its interval (Wilson 1927) as ``low`` and ``high``."""
    found = binomtest(int(hits.sum()), len(hits))
    interval = found.proportion_ci(method="wilson")
    return {"count": int(hits.sum())} | rounded({"share": hits.mean(), "low": interval.low, "high": interval.high})


def mean(values: Floats, rng: np.random.Generator) -> dict[str, Any]:
    """Of (N,) values: ``value``, and its percentile-bootstrap interval."""
    return _estimate(values.mean(), _draws(values, rng))


def difference(new: Floats, old: Floats, rng: np.random.Generator) -> dict[str, Any]:
    """The means of (N,) ``new`` and (M,) ``old`` values, and their ``difference``; None where there are no old ones."""
    mine = _draws(new, rng)
    found: dict[str, Any] = {"new": _estimate(new.mean(), mine), "old": None, "difference": None}
    if len(old):
        others = _draws(old, rng)
        found |= {
            "old": _estimate(old.mean(), others), "difference": _estimate(new.mean() - old.mean(), mine - others)
        }  # fmt: skip
    return found


def _draws(values: Floats, rng: np.random.Generator) -> Floats:
    drawn: Floats = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    return drawn


def _estimate(value: Any, draws: Floats) -> dict[str, Any]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return rounded({"value": value, "low": low, "high": high})


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, int) else round(float(value), DIGITS) for key, value in values.items()}
