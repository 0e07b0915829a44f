"""Do two sets of pictures differ? A classifier two-sample test on their features, and a novelty detector for one picture.

If a classifier can tell from a picture's features, better than by chance, which of two sets it is from, the sets differ
(Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests"). The classifier is a ridge regression, because its
cross-validated scores are linear in the labels: the scores for a thousand random permutations of the labels are one matrix
product. So the p-value comes from a permutation test, which is valid for any number of pictures (Phipson and Smyth 2010,
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
from headstart.base.artifacts.drift import Separability
from headstart.evaluation.intervals import RESAMPLES, percentile_interval, resample

FOLDS = 5
PERMUTATIONS = 999
RIDGE_PENALTIES = (10.0, 1.0, 0.1)  # relative to the kernel of a picture with itself, which is 1 on average
MAX_PICTURES = (500, 1500)  # new and old: takes a second on one core and shows all differences that matter
MIN_PICTURES = 10  # on either side
SIGNIFICANCE = 0.01  # so one month in a hundred is a false alarm
NEIGHBOURS = 10
NOVELTY_PERCENTILE = 99  # of the old pictures' distances to each other


def one_per_group(groups: NDArray[Any], rng: np.random.Generator) -> Ints:
    """The row of one picture of each group, drawn at random: pictures of one scene or session are one observation."""
    order = rng.permutation(len(groups))
    rows: Ints = np.sort(order[np.unique(groups[order], return_index=True)[1]])
    return rows


def subsample(rows: Ints, at_most: int, rng: np.random.Generator) -> Ints:
    """All ``rows``, or ``at_most`` of them, drawn at random; their order stays."""
    return rows if len(rows) <= at_most else np.sort(rng.choice(rows, at_most, replace=False))


def two_sample(
    features: Floats, new: Bools, groups: NDArray[Any], seed: int, classes: NDArray[Any] | None = None
) -> Separability | None:
    """Whether the new pictures differ from the old ones; None where fewer than ten of either can be compared.

    Args:
        features: (N, D).
        new: (N,) whether a picture is new.
        groups: (N,) pictures of one group are not independent, so only one of each group is compared.
        classes: (N,) if given, new pictures are compared with old ones of their own class only, so that another mix of
            classes, or a new class, is not a difference.
    """
    rng = np.random.default_rng(seed)
    rows = one_per_group(groups, rng)
    strata = np.zeros(len(new), np.int64) if classes is None else np.unique(classes, return_inverse=True)[1]
    pairs = np.bincount(strata[rows], new[rows]) * np.bincount(strata[rows], ~new[rows])  # 0 where one side has none
    rows = rows[pairs[strata[rows]] > 0]
    sides = zip((rows[new[rows]], rows[~new[rows]]), MAX_PICTURES, strict=True)
    rows = np.concatenate([subsample(side, at_most, rng) for side, at_most in sides])
    return None if min(_counts(new[rows])) < MIN_PICTURES else _test(features[rows], new[rows], strata[rows], rng)


def _counts(new: Bools) -> tuple[int, int]:
    return int(new.sum()), int((~new).sum())


def _test(features: Floats, new: Bools, strata: Ints, rng: np.random.Generator) -> Separability:
    x = _without_means(features.astype(np.float64), strata)
    scale = x.std(axis=0)
    x /= np.where(scale < 1e-8, 1.0, scale)  # a constant feature carries no information and must not divide by zero
    labels = np.stack([new, *(_permuted(new, strata, rng) for _ in range(PERMUTATIONS))], axis=1)
    targets = _without_means(labels.astype(np.float64), strata)
    scores = _cross_validated(x @ x.T / x.shape[1], targets, rng.permutation(len(new)) % FOLDS)
    aucs = _aucs(scores, labels)
    # Scores from folds that were fitted on each other's pictures are not independent, and an interval that assumes so is
    # too short. The permutations, where there is nothing to find, show by how much.
    independent = (len(new) + 1) / (12 * new.sum() * (~new).sum())  # Mann and Whitney's variance
    low, high = _interval(scores[:, 0], new, max(1.0, float(aucs[1:].std() / np.sqrt(independent))), rng)
    p = (1 + int((aucs[1:] >= aucs[0] - 1e-12).sum())) / (1 + PERMUTATIONS)
    count, others = _counts(new)
    return Separability(auc=float(aucs[0]), low=low, high=high, p=p, new=count, old=others, differ=p <= SIGNIFICANCE)


def _without_means(values: Floats, strata: Ints) -> Floats:
    """(N, K) values minus the mean of their stratum. So no intercept has to be fitted, which in a fold with many new
    pictures would push their scores down."""
    means = np.zeros((int(strata.max()) + 1, values.shape[1]))
    np.add.at(means, strata, values)
    centred: Floats = values - (means / np.maximum(np.bincount(strata), 1)[:, None])[strata]
    return centred


def _permuted(new: Bools, strata: Ints, rng: np.random.Generator) -> Bools:
    """The labels, permuted at random within each stratum."""
    permuted = np.empty_like(new)
    permuted[np.argsort(strata, kind="stable")] = new[np.lexsort((rng.random(len(new)), strata))]
    return permuted


def _cross_validated(kernel: Floats, targets: Floats, fold: Ints) -> Floats:
    """(N, K) cross-validated predictions of ridge regressions on each column of ``targets``: each picture's from a fit
    without its fold, each column's at the penalty with the least squared error.

    With G = (kernel + penalty · I)⁻¹, the residuals of fold f under a fit without it are G_ff⁻¹ (G y)_f: the usual shortcut
    for leave-one-out, applied to whole folds.
    """
    best, least = np.zeros_like(targets), np.full(targets.shape[1], np.inf)
    for penalty in RIDGE_PENALTIES:
        inverse = np.linalg.inv(kernel + penalty * np.eye(len(kernel)))
        dual, residuals = inverse @ targets, np.empty_like(targets)
        for number in range(FOLDS):
            rows = fold == number
            residuals[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
        error = np.square(residuals).sum(axis=0)
        better = error < least
        best[:, better], least[better] = (targets - residuals)[:, better], error[better]
    return best


def _aucs(scores: Floats, labels: Bools) -> Floats:
    """(K,) areas under the ROC curve (Mann and Whitney's U) of (N, K) scores and labels."""
    new, old = _counts(labels[:, 0])
    ranks: Floats = rankdata(scores, axis=0)
    aucs: Floats = ((ranks * labels).sum(axis=0) - new * (new + 1) / 2) / (new * old)
    return aucs


def _interval(scores: Floats, new: Bools, stretch: float, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% interval of the AUC, over resampled new and old pictures, made ``stretch`` times as long."""
    new_scores, old_scores = scores[new], scores[~new]
    # 1 where the new picture of a pair scores higher, 0.5 where both score the same.
    ranked = (new_scores[:, None] > old_scores).astype(float) + 0.5 * (new_scores[:, None] == old_scores)
    if (ranked == 1).all():  # resampling shows no spread: Clopper and Pearson's limit (1934) for the smaller side
        return float(0.025 ** (1 / min(ranked.shape))), 1.0
    counts = [  # how often each picture is in each resample, so that all their AUCs are one matrix product
        np.stack([np.bincount(rows, minlength=n) for rows in resample(n, RESAMPLES, rng)]) for n in ranked.shape
    ]
    draws = np.einsum("rj,rj->r", counts[0] @ ranked, counts[1]) / ranked.size
    low, high = np.clip(ranked.mean() + stretch * (np.array(percentile_interval(draws)) - ranked.mean()), 0, 1)
    return float(low), float(high)


@dataclass(frozen=True)
class NoveltyDetector:
    """Judges how unusual a picture is by its mean cosine distance to the ten old pictures nearest to it.

    Attributes:
        features: (N, D) of the old pictures.
        median: distance of an old picture from its nearest others.
        limit: the distance, as a multiple of ``median``, that one old picture in a hundred exceeds.
    """

    features: Floats
    median: float
    limit: float

    @classmethod
    def fit(cls, features: Floats) -> NoveltyDetector:
        """Learn from (N, D) features of pictures, none of which are near-duplicates."""
        distances = _distances(features, None)
        median = max(float(np.median(distances)), 1e-12)
        return cls(features, median, float(np.percentile(distances, NOVELTY_PERCENTILE)) / median)

    def p_value(self, new: int, beyond: int) -> float:
        """The probability that at least ``beyond`` of ``new`` pictures exceed the limit although all are of known kinds.

        That is, that so many rank above the few old pictures over the limit, all sorted by distance (negative
        hypergeometric distribution).
        """
        from scipy.stats import nhypergeom

        old = len(self.features)
        above = old - 1 - math.floor((old - 1) * NOVELTY_PERCENTILE / 100)
        return float(nhypergeom.sf(beyond - 1, old + new, new, above + 1))

    def distances(self, features: Floats) -> Floats:
        """(N,) distances of other pictures, as multiples of the median."""
        return _distances(self.features, features) / self.median


def _distances(old: Floats, features: Floats | None) -> Floats:
    """(N,) mean cosine distances to the nearest old pictures; with None, of each old picture to its nearest others."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(old) - 1), metric="cosine").fit(old)
    mean: Floats = neighbours.kneighbors(features)[0].mean(axis=1)
    return mean
