"""Proportions, means and differences with 95 % intervals: one bootstrap and one paired comparison for all of headstart.

SciPy's statistics take a second to import, so they are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from headstart.base.arrays import Bools, Floats, Ints

RESAMPLES = 2000
PERMUTATIONS = 999
DIGITS = 4
QUANTILES = (0.025, 0.975)
Z = NormalDist().inv_cdf(QUANTILES[1])


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def resample(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Ints]:
    """``resamples`` times n row numbers, drawn from 0 to n - 1 with replacement."""
    return (rng.integers(0, n, n) for _ in range(resamples))


def bootstrap(
    statistic: Callable[[Ints], ArrayLike], n: int, rng: np.random.Generator | int = 0, resamples: int = RESAMPLES
) -> Floats:
    """(resamples, ...) values of a statistic, each on n rows drawn with replacement (Efron 1979, "Bootstrap methods").

    The draws are those of ``scipy.stats.bootstrap``, which refuses samples of one row and keeps all resamples in memory.

    Args:
        statistic: (n,) row numbers → a value, or an array of values. A difference of two statistics on the same rows is
            a paired one.
        rng: a generator, or the seed of one.
    """
    draws: Floats = np.array([statistic(rows) for rows in resample(n, resamples, np.random.default_rng(rng))])
    return draws


def permutation_p_value(
    statistic: Callable[[Bools], float], n: int, rng: np.random.Generator | int = 0, permutations: int = PERMUTATIONS
) -> float:
    """Of n pairs: how often a difference as large as the measured one comes about where either of a pair could as well be
    the other (Fisher 1935, "The design of experiments", paired; the measured one counts as a draw, so that no more than a
    share p of such data has a value of at most p: Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Args:
        statistic: (n,) whether each pair is swapped → the difference.
        rng: a generator, or the seed of one.
    """
    measured, chance = statistic(np.zeros(n, bool)), np.random.default_rng(rng)
    as_large = sum(statistic(chance.random(n) < 0.5) >= measured for _ in range(permutations))
    return (1 + as_large) / (1 + permutations)


def percentile_interval(draws: Floats) -> tuple[Any, Any]:
    """The 95 % interval of each statistic, from its (resamples, ...) bootstrap values."""
    low, high = np.quantile(draws, QUANTILES, axis=0)
    return low, high


def mean(values: Floats, rng: np.random.Generator | int = 0) -> Estimate:
    """The mean of (N,) values with its bootstrap interval; of paired differences, the mean paired difference."""
    return _estimate(values.mean(), bootstrap(lambda rows: values[rows].mean(), len(values), rng))


def unpaired_difference(
    new: Floats, old: Floats, rng: np.random.Generator
) -> tuple[Estimate, Estimate | None, Estimate | None]:
    """The means of (N,) ``new`` and (M,) ``old`` values and the difference of the two; None where there are no old ones."""
    new_draws = bootstrap(lambda rows: new[rows].mean(), len(new), rng)
    if not len(old):
        return _estimate(new.mean(), new_draws), None, None
    old_draws = bootstrap(lambda rows: old[rows].mean(), len(old), rng)
    difference = _estimate(new.mean() - old.mean(), new_draws - old_draws)
    return _estimate(new.mean(), new_draws), _estimate(old.mean(), old_draws), difference


def _estimate(value: Any, draws: Floats) -> Estimate:
    low, high = percentile_interval(draws)
    return Estimate(float(value), float(low), float(high))


# --- proportions ------------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927, "Probable inference, the law of succession, and statistical inference").
    A bootstrap would make a certainty of a few pictures that are all right. It is that of ``scipy.stats.binomtest``, which
    takes a second to import."""
    share, spread = hits / n, Z**2 / n
    reach = Z * math.sqrt((share * (1 - share) + spread / 4) / n)
    low, high = ((share + spread / 2 + end) / (1 + spread) for end in (-reach, reach))
    return 0.0 if hits == 0 else low, 1.0 if hits == n else high


def proportion(hits: Bools) -> dict[str, Any]:
    """Of (N,) pictures: ``count`` and ``share``, with its interval as ``low`` and ``high``."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"count": int(hits.sum())} | rounded({"share": hits.mean(), "low": low, "high": high})


@dataclass(frozen=True)
class PairedDifference:
    """How two classifiers that answered the same n pictures differ.

    Attributes:
        accuracy: of the second minus that of the first, with its interval.
        gained, lost: pictures that only the second, and only the first, has right.
    """

    accuracy: Estimate
    gained: int
    lost: int

    def p_value(self, alternative: str = "two-sided") -> float:
        """Of McNemar's exact test: of the pictures that only one of the two has right, is either's share more than a half
        (``greater``: the second's)?

        (McNemar 1947, "Note on the sampling error of the difference between correlated proportions".)
        """
        from scipy.stats import binomtest

        different = self.gained + self.lost
        return float(binomtest(self.gained, different, alternative=alternative).pvalue) if different else 1.0


def paired_difference(before: Bools, after: Bools) -> PairedDifference:
    """From (N,) whether each of two classifiers is right about the same pictures.

    The interval is that of Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data". Where the two differ on hardly any picture, a bootstrap would be certain of what a
    few more can change.
    """
    gained, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), len(after)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    difference = Estimate((gained - lost) / n, max(-1.0, up - down - reach), min(1.0, up - down + reach))
    return PairedDifference(difference, gained, lost)


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, int) else round(float(value), DIGITS) for key, value in values.items()}
