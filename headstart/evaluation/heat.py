"""Where a classifier looks: how much of its heat maps lies at the centre of the picture, and how much at the edge.

The subject mostly stands at the centre. A classifier whose heat lies at the edge may tell classes by what surrounds the
subject: a border, a watermark, a background. The maps are of test pictures, since the others were learned from, and they
choose nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtr

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.metrics import Heat, HeatOfClass
from headstart.base.progress import progress
from headstart.data.blind import FALSE_ALARMS, holm, in_centre
from headstart.data.packed import Pixels
from headstart.evaluation import intervals
from headstart.evaluation.explain import heat_maps
from headstart.evaluation.metrics import Scores
from headstart.models.classifier import Classifier

MOST = 96  # pictures: enough to know the share of the heat to three or four points
FEWEST, FEWEST_OF_CLASS = 10, 5  # groups of pictures, to say something of all and of one class
DIGITS = 4


def measure(model: Classifier, pixels: Pixels, manifest: pd.DataFrame, test: Scores, device: torch.device) -> Heat | None:
    """The heat of each picture's most probable class, on at most ``MOST`` test pictures."""
    rows, guesses = np.flatnonzero(manifest["split"] == "test"), np.argmax(test.probabilities, axis=1)
    some = sample(guesses)
    with progress("heat maps", len(some)) as advance:
        pictures = [pixels[int(row)] for row in rows[some]]
        maps = heat_maps(model.to(device), pictures, guesses[some].tolist(), advance)
    model.cpu()
    if maps is None:
        return None
    inside, all_over = in_centre(maps.shape[-1]), maps.sum((1, 2))
    lit = all_over > 0
    shares, groups = maps[lit][:, inside].sum(1) / all_over[lit], some if test.groups is None else test.groups[some]
    return summary(shares, guesses[some][lit], groups[lit], model.classes, float(inside.mean()))


def sample(guesses: Ints) -> Ints:
    """At most ``MOST`` of (N,) pictures, sorted: of each class that they are taken for about its share."""
    by_class = np.argsort(guesses, kind="stable")
    return np.sort(by_class[np.linspace(0, len(guesses) - 1, min(MOST, len(guesses))).round().astype(int)])


def summary(shares: Floats, guesses: Ints, groups: Ints, classes: tuple[str, ...], even: float) -> Heat | None:
    """
    Args:
        shares: (N,) of the heat that lies at the centre.
        guesses: (N,) numbers of the classes that it is for.
        groups: (N,) numbers; pictures of one group count as one.
        even: the share of an even map.
    """
    if len(np.unique(groups)) < FEWEST:
        return None
    of_class = {number: guesses == number for number in np.unique(guesses)}
    values = {number: _of_groups(shares[of], groups[of]) for number, of in of_class.items()}
    judged = [number for number, each in values.items() if len(each) >= FEWEST_OF_CLASS]
    p = holm(np.array([_p_value(values[number], even) for number in judged]))
    edge = [
        HeatOfClass(
            label=classes[n], centre=_interval(shares[of_class[n]], groups[of_class[n]]), p=round(float(value), DIGITS)
        )
        for n, value in zip(judged, p, strict=True)
        if value <= FALSE_ALARMS
    ]
    return Heat(
        pictures=len(shares),
        centre=_interval(shares, groups),
        even=round(even, DIGITS),
        at_edge=sorted(edge, key=lambda one: one.centre.value),
    )


def _interval(shares: Floats, groups: Ints) -> Interval:
    found = intervals.mean(shares, groups=np.unique(groups, return_inverse=True)[1])
    return Interval(**{key: round(value, DIGITS) for key, value in found._asdict().items()})


def _of_groups(shares: Floats, groups: Ints) -> Floats:
    numbers = np.unique(groups, return_inverse=True)[1]
    means: Floats = np.bincount(numbers, shares) / np.bincount(numbers)
    return means


def _p_value(values: Floats, even: float) -> float:
    """One-sided, of Student's test that the mean is lower (``scipy.stats.ttest_1samp``, which takes a second to import)."""
    error = max(values.std(ddof=1) / np.sqrt(len(values)), 1e-12)
    return float(stdtr(len(values) - 1, (values.mean() - even) / error))
