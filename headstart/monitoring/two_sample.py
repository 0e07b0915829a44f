"""Do two sets of pictures differ? A classifier two-sample test on their features, and how strange a single picture is.

Whoever can tell from a picture's features, better than by chance, which of two sets it is from has shown that the sets
differ (Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests"). The classifier is a ridge regression, because
its cross-validated answers are linear in what it is asked: those for a thousand random relabellings of the pictures are one
matrix product. So the p-value is a permutation test's, which is right with any number of pictures (Phipson and Smyth 2010,
"Permutation p-values should never be zero").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from headstart.base.arrays import Bools, Floats, Ints
from headstart.evaluation.intervals import RESAMPLES, percentile_interval, resample

FOLDS = 5
RELABELLINGS = 999
STRENGTHS = (10.0, 1.0, 0.1)  # of the ridge, where a picture's own kernel is 1
AT_MOST = (500, 1500)  # new and old pictures: a second on one core, and differences that matter show
AT_LEAST = 10  # pictures on either side
LEVEL = 0.01  # a month in a hundred is a false alarm
NEIGHBOURS = 10
USUAL = 99  # percentile of the old pictures' own distances


@dataclass(frozen=True)
class TwoSample:
    """What came of the test.

    Attributes:
        auc: how often, of one new and one old picture, the classifier takes the right one for the new; chance is 0.5.
        low, high: its 95 % interval, by bootstrap.
        p: how often an arbitrary division of the pictures is told apart as well.
        new, old: pictures that were compared.
    """

    auc: float
    low: float
    high: float
    p: float
    new: int
    old: int

    @property
    def differ(self) -> bool:
        return self.p <= LEVEL


def one_of_each(groups: NDArray[Any], rng: np.random.Generator) -> Ints:
    """Ints of one picture of each group, drawn at random: pictures of one scene or session are one observation."""
    order = rng.permutation(len(groups))
    rows: Ints = np.sort(order[np.unique(groups[order], return_index=True)[1]])
    return rows


def sample_of(rows: Ints, at_most: int, rng: np.random.Generator) -> Ints:
    """``rows``, or as many of them as may be, drawn at random and in their order."""
    return rows if len(rows) <= at_most else np.sort(rng.choice(rows, at_most, replace=False))


def two_sample(
    features: Floats, new: Bools, groups: NDArray[Any], seed: int, classes: NDArray[Any] | None = None
) -> TwoSample | None:
    """Whether the new pictures differ from the others; None where fewer than ten of either can be compared.

    Args:
        features: (N, D).
        new: (N,) which are the new ones.
        groups: (N,) pictures of one group are not independent of each other; one of each is taken.
        classes: (N,) where given, the question is whether new pictures differ from old ones of their own class: that more
            pictures are of one class, or of one that is only now there, is no answer to it.
    """
    rng = np.random.default_rng(seed)
    rows = one_of_each(groups, rng)
    strata = np.zeros(len(new), np.int64) if classes is None else np.unique(classes, return_inverse=True)[1]
    both = np.bincount(strata[rows], new[rows]) * np.bincount(strata[rows], ~new[rows])  # 0 where one side has none
    rows = rows[both[strata[rows]] > 0]
    sides = zip((rows[new[rows]], rows[~new[rows]]), AT_MOST, strict=True)
    rows = np.concatenate([sample_of(side, at_most, rng) for side, at_most in sides])
    return None if min(_sides(new[rows])) < AT_LEAST else _tested(features[rows], new[rows], strata[rows], rng)


def _sides(new: Bools) -> tuple[int, int]:
    return int(new.sum()), int((~new).sum())


def _tested(features: Floats, new: Bools, strata: Ints, rng: np.random.Generator) -> TwoSample:
    x = _without_means(features.astype(np.float64), strata)
    scale = x.std(axis=0)
    x /= np.where(scale < 1e-8, 1.0, scale)  # a feature that never varies says nothing, and must not be divided by nothing
    asked = np.stack([new, *(_relabelled(new, strata, rng) for _ in range(RELABELLINGS))], axis=1)
    targets = _without_means(asked.astype(np.float64), strata)
    answers = _held_out(x @ x.T / x.shape[1], targets, rng.permutation(len(new)) % FOLDS)
    aucs = _aucs(answers, asked)
    # Answers of folds that learned from each other's pictures are not independent, and an interval that takes them to be so
    # is too short. By how much is seen where there is nothing to be found: in the relabellings.
    independent = (len(new) + 1) / (12 * new.sum() * (~new).sum())  # Mann and Whitney's variance
    low, high = _interval(answers[:, 0], new, max(1.0, float(aucs[1:].std() / np.sqrt(independent))), rng)
    p = (1 + int((aucs[1:] >= aucs[0] - 1e-12).sum())) / (1 + RELABELLINGS)
    return TwoSample(float(aucs[0]), low, high, p, *_sides(new))


def _without_means(values: Floats, strata: Ints) -> Floats:
    """(N, K) less the mean of each one's stratum. Without a constant to be fitted, a fold that happens to hold many new
    pictures does not push the answers for them down."""
    means = np.zeros((int(strata.max()) + 1, values.shape[1]))
    np.add.at(means, strata, values)
    centred: Floats = values - (means / np.maximum(np.bincount(strata), 1)[:, None])[strata]
    return centred


def _relabelled(new: Bools, strata: Ints, rng: np.random.Generator) -> Bools:
    """Each stratum's labels dealt out anew among its pictures."""
    dealt = np.empty_like(new)
    dealt[np.argsort(strata, kind="stable")] = new[np.lexsort((rng.random(len(new)), strata))]
    return dealt


def _held_out(kernel: Floats, targets: Floats, fold: Ints) -> Floats:
    """(N, K) answers of ridge regressions on each column of ``targets``, for each picture by one fitted without its fold,
    and for each column at the strength with the least squared error.

    With G = (kernel + strength · I)⁻¹, what a regression without fold f leaves unexplained of it is G_ff⁻¹ (G y)_f: the
    usual shortcut of leave-one-out, for several at once.
    """
    best, least = np.zeros_like(targets), np.full(targets.shape[1], np.inf)
    for strength in STRENGTHS:
        inverse = np.linalg.inv(kernel + strength * np.eye(len(kernel)))
        explained, left = inverse @ targets, np.empty_like(targets)
        for number in range(FOLDS):
            rows = fold == number
            left[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], explained[rows])
        error = np.square(left).sum(axis=0)
        better = error < least
        best[:, better], least[better] = (targets - left)[:, better], error[better]
    return best


def _aucs(answers: Floats, asked: Bools) -> Floats:
    """(K,) areas under the ROC curve (Mann and Whitney's U), of (N, K) answers and labels."""
    new, old = _sides(asked[:, 0])
    ranks: Floats = rankdata(answers, axis=0)
    aucs: Floats = ((ranks * asked).sum(axis=0) - new * (new + 1) / 2) / (new * old)
    return aucs


def _interval(answers: Floats, new: Bools, widened: float, rng: np.random.Generator) -> tuple[float, float]:
    """Of the AUC, over resampled new and resampled old pictures; ``widened`` times as long."""
    mine, others = answers[new], answers[~new]
    ranked = (mine[:, None] > others).astype(float) + 0.5 * (mine[:, None] == others)  # 1: the new one comes out on top
    if ranked.all():  # resampling shows no spread: the limit of Clopper and Pearson (1934) for the smaller of the two sides
        return float(0.025 ** (1 / min(ranked.shape))), 1.0
    counts = [  # how often each picture is in each resample, so that all their AUCs are one matrix product
        np.stack([np.bincount(rows, minlength=n) for rows in resample(n, RESAMPLES, rng)]) for n in ranked.shape
    ]
    draws = np.einsum("rj,rj->r", counts[0] @ ranked, counts[1]) / ranked.size
    low, high = np.clip(ranked.mean() + widened * (np.array(percentile_interval(draws)) - ranked.mean()), 0, 1)
    return float(low), float(high)


@dataclass(frozen=True)
class Known:
    """Old pictures, as a measure of what is usual: how far, by the cosine of their features, a picture is from the ten that
    are nearest to it.

    Attributes:
        limit: multiple of the median old picture's distance that one in a hundred of them is beyond.
    """

    features: Floats
    median: float
    limit: float

    @classmethod
    def of(cls, features: Floats) -> Known:
        """From (N, D) features of pictures that are no near-duplicates of each other."""
        own = _distances(features, None)
        median = max(float(np.median(own)), 1e-12)
        return cls(features, median, float(np.percentile(own, USUAL)) / median)

    def surprise(self, new: int, beyond: int) -> float:
        """How likely at least ``beyond`` of ``new`` pictures are to lie beyond the limit where all are of known kinds.

        So many then come before the first few known ones in order of strangeness (negative hypergeometric distribution).
        """
        from scipy.stats import nhypergeom

        known = len(self.features)
        above = known - 1 - math.floor((known - 1) * USUAL / 100)
        return float(nhypergeom.sf(beyond - 1, known + new, new, above + 1))

    def distances(self, features: Floats) -> Floats:
        """(N,) of other pictures, as multiples of the median old picture's."""
        return _distances(self.features, features) / self.median


def _distances(known: Floats, features: Floats | None) -> Floats:
    """(N,) mean cosine distances to the nearest known pictures; of those themselves, to their nearest others."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known) - 1), metric="cosine").fit(known)
    mean: Floats = nearest.kneighbors(features)[0].mean(axis=1)
    return mean
