"""Deliberately blind classifiers: how well can classes be told apart by one thing alone, and is that more than chance?

Each is a ridge regression on zeros and ones (a regularised linear discriminant), cross-validated with groups kept together.
Of other labels for the same pictures its answers are the same sums with other numbers, so that it can be fitted again for a
few hundred permutations of the labels in seconds. Chance is what comes out of these: no assumption is made on what pictures
in different folds have in common (Ojala and Garriga 2010, "Permutation tests for studying classifier performance").

It takes NumPy and a few of SciPy's functions: prepare runs it, and scikit-learn would take longer to import than to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc, gammaincc, ndtr
from threadpoolctl import threadpool_limits

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.shortcuts import BlindScore
from headstart.data.manifest import groups_per_class, is_multi_label, one_row_per_label
from headstart.data.stratification import iterative_stratification

FOLDS, REPEATS = 5, 2  # a class needs as many groups as there are folds; answers are averaged over repeats
FALSE_ALARMS = 0.05  # of sets without anything to tell, at most this share has a score called more than chance
# So far above guessing the interval has to begin, for all classes and for one. Where one class is told, all others are told
# a little, by not being it.
WORTH, WORTH_OF_CLASS = 0.05, 0.1
PERMUTATIONS, FEWEST_PERMUTATIONS = 200, 60
MOST_ANSWERS = 2e8  # of permuted labels; with more pictures × classes there are fewer permutations
MOST_PICTURES = 10_000  # of more, so many are drawn
CHUNK = 4e6  # numbers in one product of matrices
CATEGORIES, LEAST_OF_CATEGORY = 30, 5
PRIOR_PICTURES = 3.0  # a category's answer is drawn to the average as if it had so many more pictures of all classes
COMPONENTS, WAVES, WAVES_PENALTY = 40, 300, 100.0
CENTRE = 0.625  # of height and of width
Z = NormalDist().inv_cdf(0.975)
DIGITS, P_DIGITS = 4, 6


@dataclass(frozen=True)
class Cases:
    """N pictures to be told apart.

    Attributes:
        rows: (N,) their positions in the table that they come from.
        classes: C names.
        truth: (N, C) whether a picture is of a class.
        groups: (N,) numbers; pictures of one group are held out together, and count as one against chance.
        exclusive: whether each picture has one class.
        left_out: classes with too few groups.
    """

    rows: Ints
    classes: list[str]
    truth: Bools
    groups: Ints
    exclusive: bool
    left_out: list[str]

    def __bool__(self) -> bool:
        """Whether there is something to tell apart."""
        return len(self.classes) >= (2 if self.exclusive else 1)


def cases_of(pictures: pd.DataFrame) -> Cases:
    """The training and validation pictures of a manifest, or of so many drawn groups of them that ``MOST_PICTURES`` are not
    exceeded by more than a group. Test pictures have no say in what is looked for in a set."""
    rows = np.flatnonzero((pictures["split"] != "test").to_numpy())
    groups = np.unique(pictures["group"].to_numpy()[rows], return_inverse=True)[1]
    if len(rows) > MOST_PICTURES:
        order = np.random.default_rng(0).permutation(groups.max() + 1)
        position = np.argsort(order)[groups]
        few = position <= np.sort(position)[MOST_PICTURES - 1]
        rows, groups = rows[few], groups[few]
    chosen, several = pictures.iloc[rows], is_multi_label(pictures)
    counts = groups_per_class(chosen)
    enough = counts >= FOLDS
    if several:
        enough &= len(chosen) - one_row_per_label(chosen).groupby("label").size() >= FOLDS
    classes = sorted(counts.index[enough])
    if several:
        truth = np.array([[name in set(names) for name in classes] for names in chosen["labels"]], bool)
    else:
        truth = chosen["label"].to_numpy()[:, None] == np.array(classes, object)[None]
        known = truth.any(1)
        rows, groups, truth = rows[known], groups[known], truth[known]
    groups = np.unique(groups, return_inverse=True)[1]
    return Cases(
        rows,
        classes,
        truth.reshape(len(rows), len(classes)).astype(bool),
        groups,
        not several,
        sorted(counts.index[~enough]),
    )


def in_centre(side: int) -> Bools:
    """(side, side) whether pixels are at the centre of a square picture: 39% of it."""
    middle = np.abs((np.arange(side) + 0.5) / side - 0.5) < CENTRE / 2
    inside: Bools = middle[:, None] & middle
    return inside


# --- what a classifier sees, as numbers ---------------------------------------------------------------------------------


def one_hot(values: Any) -> Floats:
    """(N, categories) whether each of N values is one of the commonest."""
    text = np.array([str(value) for value in values])
    _, number, counts = np.unique(text, return_inverse=True, return_counts=True)
    common = [n for n in np.argsort(-counts, kind="stable")[:CATEGORIES] if counts[n] >= LEAST_OF_CATEGORY]
    shown: Floats = (number[:, None] == np.array(common, int)[None]) / np.sqrt(PRIOR_PICTURES)
    return shown


def binned(values: ArrayLike, bins: int = 12) -> Floats:
    """(N, bins) in which of so many equally full ranges each of N numbers is."""
    values = np.asarray(values, float)
    inner = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    shown: Floats = np.eye(len(inner) + 1)[np.searchsorted(inner, values)] / np.sqrt(PRIOR_PICTURES)
    return shown


def smooth(values: Floats) -> Floats:
    """(N, D) numbers, such as the colours of a few pixels, as (N, ...) columns of which a linear model is a smooth function
    of them: their principal components, and random waves over these (Rahimi and Recht 2007, "Random features for
    large-scale kernel machines")."""
    x = values.reshape(len(values), -1).astype(float)
    x = x - x.mean(0)
    deviation = x.std(0)
    x = x[:, deviation > 1e-6] / deviation[deviation > 1e-6]
    if not x.size:
        return np.zeros((len(values), 1))
    with threadpool_limits(1):
        _, directions = np.linalg.eigh(x.T @ x)
    x = x @ directions[:, ::-1][:, :COMPONENTS]
    x /= np.sqrt((x**2).sum(1).mean())
    random = np.random.default_rng(0)
    some = x[random.permutation(len(x))[:300]]
    distances = ((some[:, None] - some[None]) ** 2).sum(-1)
    width = np.sqrt(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
    waves = np.sqrt(2) * np.cos(x @ random.normal(size=(x.shape[1], WAVES)) / width + random.uniform(0, 2 * np.pi, WAVES))
    numbers: Floats = np.hstack([waves, 3 * x]) / np.sqrt(WAVES_PENALTY)
    return numbers


# --- telling classes apart ----------------------------------------------------------------------------------------------


class Blindfold:
    """Folds and permutations of N pictures, the same for all that is looked at.

    Attributes:
        folds: as many (N,) numbers of the folds that hold the pictures out as there are repeats.
        answers: by what was seen, (N, C) how much more likely than its share each class seemed.
    """

    def __init__(self, cases: Cases) -> None:
        self.cases, self.answers = cases, dict[str, Floats]()
        self.y = cases.truth.astype(np.float32)
        self.folds = [_folds(cases, seed) for seed in range(REPEATS)]
        wanted = int(MOST_ANSWERS / max(self.y.size, 1))
        self.permutations = max(FEWEST_PERMUTATIONS, min(PERMUTATIONS, wanted))

    def scores(self, sees: str, seen: Floats, matters: Callable[[BlindScore], bool] | None = None) -> list[BlindScore]:
        """What a classifier reaches that sees (N, D) numbers only: with all classes together, unless pictures have several,
        and with each. p-values are not corrected yet, and 1 where the score does not matter, chance or not: by default
        where it is not ``is_large``."""
        with threadpool_limits(1):  # threads that share such small products wait for each other more than they bring
            return self._scores(sees, seen, matters or is_large)

    def _scores(self, sees: str, seen: Floats, matters: Callable[[BlindScore], bool]) -> list[BlindScore]:
        smoothers = [one for fold in self.folds for one in _smoothers(seen, fold)]
        answers = self._answers(smoothers, self.y)
        self.answers[sees], scores = answers, self.rated(sees, answers)
        if any(map(matters, scores)):  # to know what chance does takes most of the time
            p = _p_values(_agreement(answers, self.y), self._by_chance(smoothers))[0 if self.cases.exclusive else 1 :]
            scores = [
                score.model_copy(update={"p": float(value)}) if matters(score) else score
                for score, value in zip(scores, p, strict=True)
            ]
        return scores

    def _by_chance(self, smoothers: list[tuple[Ints, Ints, Floats, Floats]]) -> Floats:
        """(permutations, 1 + C) agreements of the answers to permuted labels with these."""
        at_once, rows = max(1, int(CHUNK / self.y.size)), list(permuted(self.cases.groups, self.permutations))
        chance: list[Floats] = []
        for start in range(0, len(rows), at_once):
            y = self.y[np.stack(rows[start : start + at_once], axis=1)].reshape(len(self.y), -1)
            found, shape = self._answers(smoothers, y), (len(self.y), -1, self.y.shape[1])
            chance += [
                _agreement(a, b) for a, b in zip(*(v.reshape(shape).swapaxes(0, 1) for v in (found, y)), strict=True)
            ]
        return np.array(chance)

    def _answers(self, smoothers: list[tuple[Ints, Ints, Floats, Floats]], y: Floats) -> Floats:
        answers = np.zeros(y.shape, np.float32)
        for known, held_out, solved, seen in smoothers:
            answers[held_out] += seen @ (solved @ (y[known] - y[known].mean(0))) / REPEATS
        return answers

    def rated(self, sees: str, answers: Floats) -> list[BlindScore]:
        """The scores of answers from anywhere, without p-values.

        Args:
            answers: (N, C) how much more likely than the class's share a picture is of it.
        """
        truth, share = self.cases.truth, self.cases.truth.mean(0)
        rows: list[BlindScore] = []
        if self.cases.exclusive:
            right = (answers + share).argmax(1) == truth.argmax(1)
            rows.append(_score(sees, None, self._share(right, np.ones(len(right), bool)), share.max()))
        taken = answers > 1e-9  # more than the share of the class: what is likelier if all classes are equally common
        for number, name in enumerate(self.cases.classes):
            of_class = truth[:, number]
            ours, others = self._share(taken[:, number], of_class), self._share(~taken[:, number], ~of_class)
            down, up = (np.hypot(ours[0] - ours[end], others[0] - others[end]) / 2 for end in (1, 2))
            value = (ours[0] + others[0]) / 2  # the interval of a mean: Zou and Donner 2008, "Construction of intervals"
            rows.append(_score(sees, name, (value, value - down, value + up), 0.5))
        return rows

    def _share(self, right: Bools, of: Bools) -> tuple[float, float, float]:
        """The share of the pictures ``of`` that are ``right``, with the interval of Wilson 1927 for so many pictures as
        would vary as much as these groups of them do."""
        right, groups = right[of], self.cases.groups[of]
        p, n = float(right.mean()), float(len(right))
        if 0 < p < 1:
            off = np.bincount(groups, right - p)
            n = n / max(1.0, float((off**2).sum()) / (n * p * (1 - p)))
        else:
            n = len(np.unique(groups))
        middle, spread = (p + Z**2 / n / 2) / (1 + Z**2 / n), Z * np.sqrt((p * (1 - p) + Z**2 / n / 4) / n) / (1 + Z**2 / n)
        return p, max(0.0, min(p, middle - spread)), min(1.0, max(p, middle + spread))


def _score(sees: str, label: str | None, accuracy: tuple[float, float, float], guessing: float) -> BlindScore:
    value, low, high = (round(float(number), DIGITS) for number in accuracy)
    interval = Interval(value=value, low=low, high=high)
    return BlindScore(sees=sees, label=label, accuracy=interval, guessing=round(float(guessing), DIGITS), p=1.0)


def permuted(groups: Ints, permutations: int) -> Iterator[Ints]:
    """(N,) rows whose labels the pictures get instead of their own: each group those of another group."""
    order, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    first = np.cumsum(sizes) - sizes
    place = np.empty(len(groups), int)
    place[order] = np.arange(len(groups)) - first[groups[order]]
    random = np.random.default_rng(0)
    for _ in range(permutations):
        other = random.permutation(len(sizes))[groups]
        yield order[first[other] + place % sizes[other]]


def is_large(score: BlindScore) -> bool:
    """Whether a score is enough above guessing to matter, chance or not."""
    return score.accuracy.low >= score.guessing + (WORTH if score.label is None else WORTH_OF_CLASS)


def corrected(scores: list[BlindScore]) -> list[BlindScore]:
    """The same with p-values corrected for their number."""
    p = holm(np.array([score.p for score in scores]))
    return [score.model_copy(update={"p": round(float(value), P_DIGITS)}) for score, value in zip(scores, p, strict=True)]


def holm(p: Floats) -> Floats:
    """(N,) p-values corrected for their number (Holm 1979, "A simple sequentially rejective multiple test procedure"):
    where there is nothing, one below ``FALSE_ALARMS`` is among them in no more than that share of sets."""
    order, found = np.argsort(p, kind="stable"), np.empty(len(p))
    found[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return found


def _folds(cases: Cases, seed: int) -> Ints:
    """(N,) numbers of folds. They follow from the groups alone, as other labels have to have the same folds."""
    sizes = np.bincount(cases.groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    none = np.zeros((len(sizes), 0), np.int64)
    return iterative_stratification(none, sizes, [1 / FOLDS] * FOLDS, order)[cases.groups]


def _smoothers(seen: Floats, fold: Ints) -> Iterator[tuple[Ints, Ints, Floats, Floats]]:
    """For each fold the (K,) pictures to learn from, the (H,) held out, and the (D, K) and (H, D) matrices by which the
    labels of the ones become the answers to the others."""
    for number in range(FOLDS):
        known, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        middle = seen[known].mean(0)
        x = seen[known] - middle
        solved = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T)
        yield known, held_out, solved.astype(np.float32), (seen[held_out] - middle).astype(np.float32)


def _agreement(answers: Floats, y: Floats) -> Floats:
    """(1 + C,) correlations of (N, C) answers with the labels: of all classes together, then of each."""
    a, b = answers - answers.mean(0, dtype=np.float64), y - y.mean(0, dtype=np.float64)
    both, ours, theirs = (a * b).sum(0), (a * a).sum(0), (b * b).sum(0)
    both, ours, theirs = (np.r_[v.sum(), v] for v in (both, ours, theirs))
    scale = np.sqrt(ours * theirs)
    found: Floats = np.where(scale > 1e-9, both / np.maximum(scale, 1e-9), 0.0)
    return found


def _p_values(measured: Floats, chance: Floats) -> Floats:
    """(1 + C,) one-sided p-values from (permutations, 1 + C) values by chance, of the Pearson type III distribution with
    their mean, deviation and skewness, which reaches farther out than permutations do (Winkler et al. 2016, "Faster
    permutation inference in brain imaging")."""
    deviation = chance.std(0, ddof=1)
    scale = np.maximum(deviation, 1e-9)
    z, skew = (measured - chance.mean(0)) / scale, (((chance - chance.mean(0)) / scale) ** 3).mean(0)
    shape = 4 / np.maximum(skew**2, 1e-6)
    at = np.maximum(shape + np.sign(skew) * z * np.sqrt(shape), 0.0)
    tail = np.where(np.abs(skew) < 1e-3, ndtr(-z), np.where(skew > 0, gammaincc(shape, at), gammainc(shape, at)))
    p: NDArray[np.float64] = np.where(deviation > 1e-9, tail, 1.0)
    return p
