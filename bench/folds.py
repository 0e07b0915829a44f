"""On 30 pictures of each class: the held-out estimate of accuracy, that of `evaluate.folds`, and the truth.

    python bench/folds.py                              # the embedded default, 20 draws
    python bench/folds.py ~/pictures/birds --draws 100

The source's pictures go through one frozen network once. Then, draw by draw, 30 pictures of each class are a small set, and
the pictures of all other groups are the world that it comes from. The small set is split at random as the pipeline does
(15% to validate, 15% to test), and the head that would be packaged is made. The truth is its accuracy on the world, each
class weighed alike, as in the small set. What the folds estimate is its mean over the draws: how good such heads are, not
how good this one is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _project import with_features
from numpy.typing import NDArray

from headstart.base.artifacts import DataFolder
from headstart.base.device import set_up
from headstart.base.sections import Head
from headstart.data.manifest import read_manifest
from headstart.evaluation.folds import Pictures, folds_asked_for, of_all_splits, scores_in_folds
from headstart.evaluation.intervals import numbered
from headstart.evaluation.metrics import Scores, measured
from headstart.evaluation.summary import interval
from headstart.training.head_files import load_head
from headstart.training.linear_probe import train_head

Array = NDArray[Any]
SHARE = 0.15  # of the small set, to validate and to test


def small_set(pictures: Pictures, per_class: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Numbers of the pictures of a small set, those of a group side by side, and of all that are of other groups."""
    names, group = np.unique(pictures.groups, return_inverse=True)
    order = np.argsort(generator.permutation(len(names))[group], kind="stable")
    labels = pictures.labels.numpy()[order]
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(len(pictures.classes))]))
    rest = np.flatnonzero(~np.isin(group, group[order[chosen]]))
    return order[chosen], rest


def of(pictures: Pictures, rows: Array) -> Pictures:
    return pictures._replace(features=pictures.features[rows], labels=pictures.labels[rows], groups=pictures.groups[rows])


def head_of(pictures: Pictures, train: Array, val: Array) -> Any:
    """As the stage head makes it, the one that is packaged."""
    x, y = pictures.features, pictures.labels
    with tempfile.TemporaryDirectory() as scratch:
        both = pictures.groups[np.concatenate([train, val])]
        train_head((x[train], y[train]), (x[val], y[val]), pictures.classes, Head(), Path(scratch), both)
        return load_head(Path(scratch), refit=True)


def scores(head: Any, pictures: Pictures) -> Scores:
    logits = head.logits(pictures.features).double() / head.temperature
    return Scores(logits.softmax(1).numpy(), pictures.labels.numpy(), groups=numbered(pictures.groups.astype(str)))


def alike(found: Scores) -> float:
    """Accuracy with each class weighed alike."""
    return float(np.mean([found.correct[found.labels == c].mean() for c in range(found.classes)]))


def draw(pictures: Pictures, per_class: int, seed: int) -> dict[str, Any]:
    """What is known of the small set of this seed, and the truth."""
    generator = np.random.default_rng(seed)
    chosen, rest = small_set(pictures, per_class, generator)
    small, world = of(pictures, chosen), of(pictures, rest)
    _, group = np.unique(small.groups, return_inverse=True)
    place = generator.permutation(group.max() + 1)[group] / (group.max() + 1)
    test, val = np.flatnonzero(place < SHARE), np.flatnonzero((place >= SHARE) & (place < 2 * SHARE))
    packaged = head_of(small, np.flatnonzero(place >= 2 * SHARE), val)
    folds = folds_asked_for(5, small)
    return {
        "truth": alike(scores(packaged, world)),
        "held out": measured(scores(packaged, of(small, test)), 100, 0),
        "folds": measured(scores_in_folds(small, Head(), folds), 100, 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="emoji", help="a value of data.source; default: emoji")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, source = Path(scratch) / "project", Path(asked.source)
        path = str(source.resolve()) if source.exists() else asked.source
        with_features(folder, path, backbone=asked.network)
        data = DataFolder(folder, "data")
        pictures = of_all_splits(data, read_manifest(data.prepare), torch.device("cpu"))
    set_up(None)
    found = []
    for seed in range(asked.draws):
        found.append(draw(pictures, asked.per_class, seed))
        row = found[-1]
        print(
            f"draw {seed:3}: truth {row['truth']:.3f}, held out {interval(row['held out'])} on {row['held out']['n']}, "
            f"folds {interval(row['folds'])} on {row['folds']['n']}",
            flush=True,
        )
    truth = np.array([row["truth"] for row in found])
    for name in ("held out", "folds"):
        low, value, high = (
            np.array([row[name][key] for row in found]) for key in ("accuracy_low", "accuracy", "accuracy_high")
        )
        covered = [int(((low <= true) & (true <= high)).sum()) for true in (truth, truth.mean())]
        off = value - truth
        print(
            f"{name}: the interval is {100 * (high - low).mean():.1f} points wide on average; of {len(found)} intervals "
            f"{covered[0]} hold the truth and {covered[1]} its mean; off by {100 * off.mean():+.1f} ± {100 * off.std():.1f}"
        )


if __name__ == "__main__":
    main()
