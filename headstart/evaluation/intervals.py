"""Shares, means and their differences, each with its 95 % interval."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from headstart.base.arrays import Bools, Floats

RESAMPLES = 2000
DIGITS = 4
Z = NormalDist().inv_cdf(0.975)


def wilson(hits: Bools) -> tuple[float, float]:
    """The interval of a share of (N,) pictures (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"). A bootstrap would make a certainty of a few pictures that are all right."""
    n, p = len(hits), float(hits.mean())
    middle, reach = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, (middle - reach) / (1 + Z**2 / n)), min(1.0, (middle + reach) / (1 + Z**2 / n))


def share(hits: Bools) -> dict[str, Any]:
    """Of (N,) pictures: ``count`` and ``share``, with its interval as ``low`` and ``high``."""
    low, high = wilson(hits)
    return {"count": int(hits.sum())} | rounded({"share": hits.mean(), "low": low, "high": high})


def paired(one: Bools, other: Bools) -> dict[str, float]:
    """Accuracy of ``one`` minus ``other``, (N,) each and on the same pictures, with its 95 % interval.

    Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data". Where the two differ on hardly any picture, a bootstrap would be certain of what a few more can change.
    """
    won, lost, n = int((one & ~other).sum()), int((~one & other).sum()), len(one)
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return {"value": (won - lost) / n, "low": max(-1.0, up - down - reach), "high": min(1.0, up - down + reach)}


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
