"""Kinds of pictures that a classifier gets wrong more often than others, beyond its classes.

They are looked for among the validation pictures and measured on the test pictures, which had no say in where to look. So a
search that finds something in chance does not make it look worse than it is, and only the few places that it proposes have
to be corrected for. To search the test pictures themselves and correct for all of the search would find less.

On validation the mistakes are clustered by the directions of their frozen features. Around each cluster's middle lie wrong
and right answers; the subgroup reaches as far as makes the wrong ones stand out most (Kulldorff 1997, "A spatial scan
statistic"). Whether test pictures there are wrong more often than the others is a permutation test in which whole groups
change places, and the largest of all statistics corrects for their number (Westfall and Young 1993, "Resampling-based
multiple testing").
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from scipy.cluster.vq import kmeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.metrics import Subgroup, Subgroups
from headstart.data.blind import FALSE_ALARMS, permuted
from headstart.evaluation.intervals import PERMUTATIONS, numbered, wilson
from headstart.evaluation.metrics import Scores

FEWEST_MISTAKES, MOST_MISTAKES = 10, 1000  # on validation, to look for subgroups at all, and to cluster
COMPONENTS, FITTED = 20, 500  # principal components, and the pictures that they are of
OF_CLUSTER, MOST_CLUSTERS = 10, 8  # mistakes in a cluster, on average
FEWEST = 15  # pictures of a subgroup, on validation and on test
PROMISING = 2.0  # standard deviations of mistakes above what is expected on validation
MOST = 4  # subgroups that are tested; the more there are, the clearer one has to be
MOST_SHARED = 0.5  # of the pictures, for two to be different
LABELS, SHOWN, DIGITS = 3, 8, 4


def worst_subgroups(manifest: pd.DataFrame, features: tuple[Tensor, Tensor], val: Scores, test: Scores) -> Subgroups | None:
    """
    Args:
        features: (N, D) frozen ones of the validation and of the test pictures.
        val: of the chosen classifier on the validation pictures.
        test: likewise.

    Returns:
        None where validation pictures have too few mistakes, or test pictures none.
    """
    if (~val.correct).sum() < FEWEST_MISTAKES or test.correct.all():
        return None
    seen, tested = _in_few_dimensions(*(normalize(each.float().cpu(), dim=1).numpy() for each in features))
    places = _places(seen, ~val.correct)
    distances = [_distances(tested, centre) for centre, _ in places]
    members = np.array([near <= reach for near, (_, reach) in zip(distances, places, strict=True)]).reshape(-1, len(tested))
    judged = [n for n, inside in enumerate(members) if FEWEST <= inside.sum() <= len(tested) - FEWEST]
    p = p_values(members[judged], test.correct, test.groups)
    rows = manifest[manifest["split"] == "test"]
    found = [
        _described(rows, members[n], distances[n], test, float(value), len(judged))
        for n, value in zip(judged, p, strict=True)
        if value <= FALSE_ALARMS
    ]
    return Subgroups(looked_at=len(judged), found=sorted(found, key=lambda one: (one.p, one.accuracy.value)))


def _in_few_dimensions(seen: Floats, tested: Floats) -> tuple[Floats, Floats]:
    """Directions from the mean, (N, components) of length 1. In thousands of dimensions the middle of a few pictures is so
    much nearer to them than to any other that nothing else is ever near it."""
    middle = seen.mean(0)
    with threadpool_limits(1):  # threads wait for each other more than they bring
        _, _, components = np.linalg.svd(seen[:: -(-len(seen) // FITTED)] - middle, full_matrices=False)
    few = [(each - middle) @ components[:COMPONENTS].T for each in (seen, tested)]
    seen, tested = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-9) for each in few)
    return seen, tested


def _distances(directions: Floats, centre: Floats) -> Floats:
    """(N,) from a centre, half the squared Euclidean one."""
    found: Floats = 1 - directions @ centre
    return found


def _places(seen: Floats, wrong: Bools) -> list[tuple[Floats, float]]:
    """Centres, (D,), and how far each reaches, the most promising first, of places where mistakes gather.

    SciPy's k-means and not scikit-learn's, which takes seconds to import and adds in any order if it has several threads.
    """
    mistakes = np.flatnonzero(wrong)
    mistakes = mistakes[:: -(-len(mistakes) // MOST_MISTAKES)]
    clusters = min(MOST_CLUSTERS, len(mistakes) // OF_CLUSTER)
    centres, _ = kmeans(seen[mistakes], max(clusters, 1), iter=10, rng=0)
    ranked = []
    for centre in centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9):
        order = np.argsort(distance := _distances(seen, centre), kind="stable")
        excess = _excess(np.cumsum(wrong[order]), np.arange(1, len(order) + 1), float(wrong.mean()))
        last = FEWEST - 1 + int(np.argmax(excess[FEWEST - 1 : max(FEWEST, len(order) // 2)]))
        if excess[last] > PROMISING:
            ranked.append((excess[last], centre, float(distance[order[last]]), distance <= distance[order[last]]))
    ranked.sort(key=lambda one: -one[0])
    kept: list[tuple[Floats, float, Bools]] = []
    for _, centre, reach, inside in ranked:
        if all((inside & other).sum() <= MOST_SHARED * min(inside.sum(), other.sum()) for *_, other in kept):
            kept.append((centre, reach, inside))
    return [(centre, reach) for centre, reach, _ in kept[:MOST]]


def _excess(wrong: Ints, pictures: Ints, rate: float) -> Floats:
    """By how many standard deviations there are more mistakes than expected among so many drawn pictures."""
    spread = np.sqrt(pictures * rate * (1 - rate) * np.maximum(1 - pictures / pictures[-1], 1e-9))
    found: Floats = (wrong - pictures * rate) / np.maximum(spread, 1e-9)
    return found


def p_values(members: Bools, correct: Bools, groups: Ints | None) -> Floats:
    """(S,) one-sided p-values of more mistakes in each subgroup than outside, corrected for their number.

    Args:
        members: (S, N) whether a picture is in a subgroup.
        correct: (N,).
        groups: (N,) numbers of groups.
    """
    if not len(members):
        return np.zeros(0)
    wrong, inside = (~correct).astype(np.float32), members.astype(np.float32)
    alone = np.arange(len(correct)) if groups is None else groups
    chance = np.array([inside @ wrong[rows] for rows in permuted(alone, PERMUTATIONS)])
    middle, spread = chance.mean(0), np.maximum(chance.std(0), 1e-9)
    largest = ((chance - middle) / spread).max(1)
    measured = (inside @ wrong - middle) / spread
    found: Floats = (1 + (largest[:, None] >= measured - 1e-6).sum(0)) / (1 + PERMUTATIONS)
    return found


def _described(rows: pd.DataFrame, inside: Bools, distance: Floats, test: Scores, p: float, of: int) -> Subgroup:
    groups = None if test.groups is None else numbered(test.groups[inside])
    correct = test.correct[inside]
    low, high = (round(float(end), DIGITS) for end in wilson(correct, groups, of))
    near = np.argsort(np.where(inside, distance, np.inf), kind="stable")[: min(SHOWN, inside.sum())]
    return Subgroup(
        pictures=int(inside.sum()),
        accuracy=Interval(value=round(float(correct.mean()), DIGITS), low=low, high=high),
        others=round(float(test.correct[~inside].mean()), DIGITS),
        p=round(p, DIGITS),
        labels=dict(Counter(rows["label"].to_numpy()[inside].tolist()).most_common(LABELS)),
        nearest=rows["path"].to_numpy()[near].tolist(),
    )
