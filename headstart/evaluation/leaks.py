"""Test pictures that look the same to the network as one that was learned from: cropped, mirrored or retouched copies, and
near misses such as two frames of a film. Digests and perceptual hashes, by which prepare keeps copies in one split, do not
tell them. They make a test figure better than it will be on pictures that are new.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.metrics import Leaks, SamePicture
from headstart.evaluation.intervals import bootstrap, numbered, percentile_interval
from headstart.evaluation.metrics import Scores, measured

# Pictures look the same that are nearer than this part of the median distance to a nearest neighbour. With the default
# backbone most copies of a photograph that are mirrored, cropped to 85%, halved or lighter are (the median of each is 0.03
# to 0.28), while no two of the ants and bees are (0.56 at least), nor of 2,000 photographs of hands (0.45). The 0.13 of
# cleanlab's Datalab misses what is cropped.
SAME = 0.3
ROUNDING = 1e-6  # of cosine distances in single precision: what identical pictures are apart
SAMPLE = 2000  # learned pictures whose nearest neighbours make the median
AT_ONCE = 512  # rows of distances
DIGITS = 6


def find_leaks(manifest: pd.DataFrame, learned: Tensor, test: Tensor, scores: Scores, resamples: int, seed: int) -> Leaks:
    """What metrics.json holds of test pictures that look the same as one that was learned from.

    Args:
        learned: (N, D) features of the training and then the validation pictures.
        test: (M, D) likewise.
        scores: of the chosen classifier on the test pictures.
    """
    distance, twin = relative_distances(learned, test)
    same = distance <= SAME
    tables = [manifest[manifest["split"] == split] for split in ("train", "val")]
    theirs, own = pd.concat(tables)["path"].to_numpy(), manifest.loc[manifest["split"] == "test", "path"].to_numpy()
    pairs = [
        SamePicture(test=own[row], learned=theirs[twin[row]], distance=round(float(distance[row]), DIGITS))
        for row in np.argsort(distance, kind="stable")[: same.sum()]
    ]
    if not pairs or same.all():
        return Leaks(pictures=len(pairs), pairs=pairs)
    groups = None if scores.groups is None else numbered(scores.groups[~same])
    others = Scores(scores.probabilities[~same], scores.labels[~same], scores.task, groups)
    added = _added(scores, same, resamples, seed)
    return Leaks(pictures=len(pairs), without=measured(others, resamples, seed), added=added, pairs=pairs)


def relative_distances(learned: Tensor, new: Tensor) -> tuple[Floats, Ints]:
    """(M,) cosine distances of ``new`` pictures to the nearest of N ``learned`` ones, as multiples of the median distance
    from one of these to the nearest other, and (M,) which one is the nearest."""
    learned, new = normalize(learned, dim=1), normalize(new, dim=1)
    rows = torch.arange(0, len(learned), max(1, len(learned) // SAMPLE), device=learned.device)
    among, _ = _nearest(learned, learned[rows], but=rows)
    distance, twin = _nearest(learned, new)
    return distance / max(float(np.median(among)), ROUNDING), twin


def _nearest(learned: Tensor, new: Tensor, but: Tensor | None = None) -> tuple[Floats, Ints]:
    """
    Args:
        but: (M,) the learned picture that each of ``new`` may not have as its nearest: itself.
    """
    found = []
    for start in range(0, len(new), AT_ONCE):
        alike = new[start : start + AT_ONCE] @ learned.T
        if but is not None:
            alike.scatter_(1, but[start : start + AT_ONCE, None], -2.0)
        found.append(alike.max(dim=1))
    values, rows = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return np.maximum(1 - values.astype(np.float64), 0), rows


def _added(scores: Scores, same: Bools, resamples: int, seed: int) -> Interval:
    """The accuracy of all minus that of those that are not ``same``."""
    correct, groups = scores.correct, scores.groups

    def difference(rows: Ints) -> float:
        others = rows[~same[rows]]
        return float(correct[rows].mean() - correct[others].mean()) if len(others) else 0.0

    low, high = percentile_interval(bootstrap(difference, len(correct), seed, resamples, groups), groups)
    return Interval(value=difference(np.arange(len(correct))), low=float(low), high=float(high))
