"""Proportions, means and differences with 95% intervals: one bootstrap and one paired comparison for all of headstart.

Ten pictures of one patient say less than ten of ten. Where pictures belong to groups, (N,) numbers of these are given as
``groups``: groups are resampled and not pictures, and the other intervals count as many pictures as the groups are worth
(bench/coverage.py). Without groups each picture counts for itself.

SciPy's statistics take a second to import, so they are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts.metrics import Chance

RESAMPLES = 2000
PERMUTATIONS = 999
DIGITS = 4
QUANTILES = (0.025, 0.975)
Z = NormalDist().inv_cdf(QUANTILES[1])


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


# --- groups -----------------------------------------------------------------------------------------------------------


def numbered(groups: NDArray[Any]) -> Ints | None:
    """(N,) names of groups as numbers from 0 on; None where no two pictures share one."""
    names, numbers = np.unique(groups, return_inverse=True)
    return None if len(names) == len(groups) else numbers.astype(np.int64)


def _quantile(groups: int, tail: float = QUANTILES[0]) -> float:
    """Of Student's distribution: so many standard errors, estimated from few groups, reach as far as an interval does."""
    from scipy.special import stdtrit

    return float(stdtrit(groups - 1, 1 - tail))


def _worth(residuals: Floats, groups: Ints, variance: float, tail: float = QUANTILES[0]) -> tuple[float, float]:
    """How many independent pictures N pictures in groups are worth for a mean, and how many standard errors its interval
    reaches (Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data"; Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions in
    clustered surveys").

    Args:
        residuals: (N,) values minus their mean.
        variance: of one value, as if pictures were independent.
    """
    n, count = len(residuals), int(groups.max()) + 1
    if count < 2:
        return 0.0, math.inf
    of_mean = count / (count - 1) * float(np.square(np.bincount(groups, residuals)).sum()) / n**2
    # Where all values are alike they do not say how alike those of a group are: then a group counts as one picture.
    return min(variance / of_mean, n) if of_mean > 0 else count, _quantile(count, tail)


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def resample(n: int, resamples: int, rng: np.random.Generator, groups: Ints | None = None) -> Iterator[Ints]:
    """``resamples`` times row numbers, drawn from 0 to n - 1 with replacement: n of them, or as many as ``groups`` drawn
    with replacement hold (the cluster bootstrap: Davison and Hinkley 1997, "Bootstrap methods and their application", 3.8).
    """
    if groups is None:
        yield from (rng.integers(0, n, n) for _ in range(resamples))
        return
    by_group, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    for _ in range(resamples):
        drawn = rng.integers(0, len(sizes), len(sizes))
        ends = np.cumsum(sizes[drawn])
        within = np.arange(ends[-1]) - np.repeat(ends - sizes[drawn], sizes[drawn])
        yield by_group[np.repeat(starts[drawn], sizes[drawn]) + within]


def bootstrap(
    statistic: Callable[[Ints], ArrayLike],
    n: int,
    rng: np.random.Generator | int = 0,
    resamples: int = RESAMPLES,
    groups: Ints | None = None,
) -> Floats:
    """(resamples, ...) values of a statistic, each on rows drawn with replacement (Efron 1979, "Bootstrap methods").

    The draws are those of ``scipy.stats.bootstrap``, which refuses samples of one row, keeps all resamples in memory, and
    knows no groups.

    Args:
        statistic: row numbers → a value, or an array of values. A difference of two statistics on the same rows is a
            paired one.
        rng: a generator, or the seed of one.
    """
    draws: Floats = np.array([statistic(rows) for rows in resample(n, resamples, np.random.default_rng(rng), groups)])
    return draws


def permutation_p_value(
    statistic: Callable[[Bools], float],
    n: int,
    rng: np.random.Generator | int = 0,
    permutations: int = PERMUTATIONS,
    groups: Ints | None = None,
) -> float:
    """Of n pairs: how often a difference as large as the measured one comes about where either of a pair could as well be
    the other (Fisher 1935, "The design of experiments", paired; the measured one counts as a draw, so that no more than a
    share p of such data has a value of at most p: Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Args:
        statistic: (n,) whether each pair is swapped → the difference. The pairs of a group are swapped together.
        rng: a generator, or the seed of one.
    """
    measured, chance = statistic(np.zeros(n, bool)), np.random.default_rng(rng)
    swapped = np.arange(n) if groups is None else groups
    draws = (chance.random(int(swapped.max()) + 1) < 0.5 for _ in range(permutations))
    as_large = sum(statistic(draw[swapped]) >= measured for draw in draws)
    return (1 + as_large) / (1 + permutations)


def percentile_interval(draws: Floats, groups: Ints | None = None) -> tuple[Any, Any]:
    """The 95% interval of each statistic, from its (resamples, ...) bootstrap values.

    Of few groups percentiles lie too near to each other, as standard errors are too small: they are taken as far out as
    Student's distribution is wider (Hesterberg 2015, "What teachers should know about the bootstrap", 5.3).
    """
    quantiles = QUANTILES
    if groups is not None:
        count = int(groups.max()) + 1
        tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _quantile(count)) if count > 1 else 0.0
        quantiles = (tail, 1 - tail)
    low, high = np.quantile(draws, quantiles, axis=0)
    return low, high


def mean(values: Floats, rng: np.random.Generator | int = 0, groups: Ints | None = None) -> Estimate:
    """The mean of (N,) values with its bootstrap interval; of paired differences, the mean paired difference."""
    draws = bootstrap(lambda rows: values[rows].mean(), len(values), rng, groups=groups)
    return _estimate(values.mean(), draws, groups)


def unpaired_difference(
    new: Floats,
    old: Floats,
    rng: np.random.Generator,
    new_groups: Ints | None = None,
    old_groups: Ints | None = None,
) -> tuple[Estimate, Estimate | None, Estimate | None]:
    """The means of (N,) ``new`` and (M,) ``old`` values and the difference of the two; None where there are no old ones."""
    new_draws = bootstrap(lambda rows: new[rows].mean(), len(new), rng, groups=new_groups)
    of_new = _estimate(new.mean(), new_draws, new_groups)
    if not len(old):
        return of_new, None, None
    old_draws = bootstrap(lambda rows: old[rows].mean(), len(old), rng, groups=old_groups)
    fewest = min((each for each in (new_groups, old_groups) if each is not None), key=np.max, default=None)
    difference = _estimate(new.mean() - old.mean(), new_draws - old_draws, fewest)
    return of_new, _estimate(old.mean(), old_draws, old_groups), difference


def _estimate(value: Any, draws: Floats, groups: Ints | None = None) -> Estimate:
    low, high = percentile_interval(draws, groups)
    return Estimate(float(value), float(low), float(high))


# --- proportions ------------------------------------------------------------------------------------------------------


def wilson(hits: Bools, groups: Ints | None = None, of: int = 1) -> tuple[float, float]:
    """The interval of the share of (N,) hits (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"). A bootstrap would make a certainty of a few pictures that are all right. Without groups it is that of
    ``scipy.stats.binomtest``, which takes a second to import.

    Args:
        of: how many intervals are to hold together in 95% (Bonferroni).
    """
    share, n, tail = float(hits.mean()), float(len(hits)), QUANTILES[0] / of
    z = NormalDist().inv_cdf(1 - tail)
    if groups is not None:
        n, z = _worth(hits - share, groups, share * (1 - share), tail)
        if not n:
            return 0.0, 1.0
    spread = z**2 / n
    reach = z * math.sqrt((share * (1 - share) + spread / 4) / n)
    low, high = ((share + spread / 2 + end) / (1 + spread) for end in (-reach, reach))
    return 0.0 if not hits.any() else low, 1.0 if hits.all() else high


def proportion(hits: Bools, groups: Ints | None = None) -> dict[str, Any]:
    """Of (N,) pictures: ``count`` and ``share``, with its interval as ``low`` and ``high``."""
    low, high = wilson(hits, groups)
    return {"count": int(hits.sum())} | rounded({"share": hits.mean(), "low": low, "high": high})


@dataclass(frozen=True)
class PairedDifference:
    """How two classifiers that answered the same n pictures differ.

    Attributes:
        accuracy: of the second minus that of the first, with its interval.
        gained, lost: pictures that only the second, and only the first, has right.
        of_groups: how many more of each group the second has right; empty where pictures have no groups.
    """

    accuracy: Estimate
    gained: int
    lost: int
    of_groups: tuple[int, ...] = ()

    def p_value(self, alternative: str = "two-sided") -> float:
        """Of McNemar's exact test: of the pictures that only one of the two has right, is either's share more than a half
        (``greater``: the second's)? Of groups it is the exact sign test of the groups' differences, which is McNemar's
        where each group is one picture.

        (McNemar 1947, "Note on the sampling error of the difference between correlated proportions".)
        """
        if self.of_groups:
            return _sign_test(self.of_groups, alternative)
        from scipy.stats import binomtest

        different = self.gained + self.lost
        return float(binomtest(self.gained, different, alternative=alternative).pvalue) if different else 1.0


def _sign_test(differences: tuple[int, ...], alternative: str) -> float:
    """How often whole numbers, each with its sign by chance, add up to as much as these do (Fisher 1935)."""
    most, total = sum(map(abs, differences)), sum(differences)
    chances: Floats = np.zeros(2 * most + 1)  # of the sums from -most on
    chances[most] = 1.0
    for size in map(abs, differences):
        if size:
            chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2  # what is rolled over an end is 0
    sums = np.arange(-most, most + 1)
    as_far = sums >= total if alternative == "greater" else np.abs(sums) >= abs(total)
    return min(1.0, float(chances[as_far].sum()))


def paired_difference(before: Bools, after: Bools, groups: Ints | None = None) -> PairedDifference:
    """From (N,) whether each of two classifiers is right about the same pictures.

    The interval is that of Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data". Where the two differ on hardly any picture, a bootstrap would be certain of what a
    few more can change.
    """
    gained, lost, n, z = int((after & ~before).sum()), int((before & ~after).sum()), float(len(after)), Z
    value, of_groups = (gained - lost) / n, ()
    if groups is not None:
        differences = after.astype(int) - before
        of_groups = tuple(np.bincount(groups, differences).astype(int).tolist())
        n, z = _worth(differences - value, groups, (gained + lost) / n - value**2)
        if not n:
            return PairedDifference(Estimate(value, -1.0, 1.0), gained, lost, of_groups)
    up, down = ((share / len(after) * n + 1) / (n + 2) for share in (gained, lost))
    reach = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    difference = Estimate(value, max(-1.0, up - down - reach), min(1.0, up - down + reach))
    return PairedDifference(difference, gained, lost, of_groups)


# --- chance in training -----------------------------------------------------------------------------------------------


def with_training(
    found: Estimate, chances: Sequence[Chance], groups: Ints | None = None, most: float = math.inf
) -> Estimate:
    """``found``, whose interval is for other pictures, with one for other pictures and other trainings.

    Trainings and pictures are crossed, so their variances add up. What one training makes of one picture is in both, which
    makes the interval too wide rather than too narrow, as every simple bootstrap of such data is (Owen 2007, "The
    pigeonhole bootstrap"). The variance of few trainings is uncertain itself: Student's quantile, with the degrees of
    freedom of Satterthwaite 1946, "An approximate distribution of estimates of variance components".

    Args:
        chances: of each side that was trained several times.
        groups: (N,) of the pictures, as the interval of ``found`` respects them.
        most: the largest difference that there can be.
    """
    from scipy.special import stdtrit

    if not _is_known(chances, groups):
        return found
    ends = []
    for reach in (found.value - found.low, found.high - found.value):
        error, degrees = _standard_error(max(reach, 0.0), chances, groups)
        ends.append(float(stdtrit(degrees, QUANTILES[1])) * error)
    return Estimate(found.value, max(-most, found.value - ends[0]), min(most, found.value + ends[1]))


def p_value_with_training(found: Estimate, chances: Sequence[Chance], groups: Ints | None = None) -> float:
    """How often other pictures and other trainings show a difference as far above zero as ``found``, where there is none;
    of Student's test with the variance of ``with_training``. 0 where there is no chance in training."""
    from scipy.special import stdtr

    if not _is_known(chances, groups):
        return 0.0
    error, degrees = _standard_error(max(found.value - found.low, 0.0), chances, groups)
    return float(stdtr(degrees, -found.value / error))


def _is_known(chances: Sequence[Chance], groups: Ints | None) -> bool:
    return any(chance.variance > 0 for chance in chances) and (groups is None or int(groups.max()) > 0)


def _standard_error(reach: float, chances: Sequence[Chance], groups: Ints | None) -> tuple[float, float]:
    """Of a difference whose interval over pictures reaches so far; with the degrees of freedom that it is known with."""
    known, quantile = (math.inf, Z) if groups is None else (int(groups.max()), _quantile(int(groups.max()) + 1))
    parts = [((reach / quantile) ** 2, known), *((chance.variance, chance.degrees) for chance in chances)]
    total = sum(part for part, _ in parts)
    return math.sqrt(total), 1 / max(sum((part / total) ** 2 / degrees for part, degrees in parts), 1e-9)


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, int) else round(float(value), DIGITS) for key, value in values.items()}
