"""How to choose the head's regularisation strength: every rule beside the best fixed strength in hindsight.

    python bench/head_choice.py                                   # the embedded default
    python bench/head_choice.py emoji ~/pictures/birds --draws 3

Each source's pictures go through the frozen backbone once. Then, ten times, they are split anew (groups stay together):
15% for testing and 15% for validation, or with 10, 30 and 100 pictures per class to learn from and all others for
testing. Every rule sees the same pictures; the head is fitted on training and validation pictures and scored on the test
pictures, after calibration. Regret is what a rule loses against the one strength of head.C that has the least mean
log-loss over the draws: points of accuracy and log-loss, mean and standard deviation over the draws.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _project import with_features
from numpy.typing import NDArray

from headstart.base.device import set_up
from headstart.base.sections import Head
from headstart.data.manifest import class_names, read_manifest
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.task import SINGLE_LABEL
from headstart.training import linear_probe
from headstart.training.feature_files import load_features

STRENGTHS = sorted(Head().C)
Array = NDArray[Any]
Weights = Array  # (strengths,): the logits that count are the weighted sum of those at each strength


class Known(NamedTuple):
    """What a rule may look at: logits of pictures that the heads were not fitted on, before calibration."""

    validation: Array  # (strengths, validation pictures, classes), by heads fitted on training pictures
    validation_labels: Array
    held_out: Array  # (strengths, training and validation pictures, classes), by five-fold cross-validation
    labels: Array


def one(number: int, temperature: float) -> Weights:
    return np.eye(len(STRENGTHS))[number] / temperature


def chosen(logits: Array, labels: Array, pick: Callable[[list[Array]], int]) -> Weights:
    number = pick([calibrated_losses(each, labels) for each in logits])
    return one(number, fit_temperature(logits[number], labels))


def lowest(losses: list[Array]) -> int:
    return int(np.argmin([loss.mean() for loss in losses]))


RULES: dict[str, Callable[[Known], Weights]] = {
    "validation, one standard error": lambda known: chosen(
        known.validation, known.validation_labels, linear_probe.within_one_standard_error
    ),
    "validation, minimum": lambda known: chosen(known.validation, known.validation_labels, lowest),
    "folds, one standard error": lambda known: chosen(known.held_out, known.labels, linear_probe.within_one_standard_error),
    "folds, minimum": lambda known: chosen(known.held_out, known.labels, lowest),
    "folds, stacked": lambda known: linear_probe.stacked(known.held_out, known.labels),
}


class Pictures(NamedTuple):
    features: torch.Tensor
    labels: Array
    groups: Array


def pictures_of(source: str, scratch: Path) -> Pictures:
    """The features of all usable pictures, however the source splits them."""
    path = Path(source)
    with_features(scratch, str(path.resolve()) if path.exists() else source)
    manifest = read_manifest(scratch / "data/prepare").set_index("split")
    splits = [load_features(scratch / "data/features", split) for split in ("train", "val", "test")]
    groups = np.concatenate([manifest.loc[[split], "group"] for split in ("train", "val", "test")])
    features, labels = (torch.cat(each) for each in zip(*splits, strict=True))
    print(f"{source}: {len(labels)} pictures of {len(class_names(manifest))} classes", flush=True)
    return Pictures(features, labels.numpy(), groups)


def drawn(pictures: Pictures, per_class: int | None, seed: int) -> tuple[Array, Array, Array] | None:
    """Numbers of the pictures to train on, to validate on and to test on; None where a class has too few."""
    generator = np.random.default_rng(seed)
    order = {group: position for position, group in enumerate(generator.permutation(np.unique(pictures.groups)))}
    position = np.array([order[group] for group in pictures.groups])
    share = position / len(order)
    if per_class is None:
        return np.flatnonzero(share >= 0.3), np.flatnonzero((share >= 0.15) & (share < 0.3)), np.flatnonzero(share < 0.15)
    learned: list[int] = []
    for number in np.unique(pictures.labels):
        own = np.flatnonzero(pictures.labels == number)
        own = own[np.argsort(position[own], kind="stable")]
        if len(own) < 1.5 * per_class:
            return None
        learned += own[:per_class].tolist()
    groups = set(pictures.groups[learned])  # the rest of these may not test
    rest = np.array([number for number, group in enumerate(pictures.groups) if group not in groups])
    shuffled = generator.permutation(learned)
    few = max(len(np.unique(pictures.labels)), round(0.15 * len(learned)))
    return shuffled[few:], shuffled[:few], rest


def scores(pictures: Pictures, train: Array, val: Array, test: Array) -> dict[str, tuple[float, float]]:
    """Accuracy and log-loss on the test pictures by rule, and at every fixed strength."""
    x, y, settings = pictures.features, torch.from_numpy(pictures.labels), Head()
    classes, both = int(y.max()) + 1, np.concatenate([train, val])

    def path(fitted: Array, asked: Array) -> Array:
        return linear_probe.cross_validated(x, y, classes, STRENGTHS, settings, [(fitted, asked)])[:, asked]

    labels = pictures.labels[both]
    folds = linear_probe.folds_of(labels, pictures.groups[both])
    held_out = linear_probe.cross_validated(x[both], y[both], classes, STRENGTHS, settings, folds)
    known = Known(path(train, val), pictures.labels[val], held_out, labels)
    answers = path(both, test)
    found = {name: rule(known) for name, rule in RULES.items()}
    for number, strength in enumerate(STRENGTHS):
        found[f"C = {strength:g}"] = one(number, fit_temperature(held_out[number], labels))
    truth, result = pictures.labels[test], {}
    for name, weights in found.items():
        logits = np.tensordot(weights, answers, 1)
        result[name] = float((logits.argmax(1) == truth).mean()), float(SINGLE_LABEL.losses(logits, truth).mean())
    return result


def report(found: list[dict[str, tuple[float, float]]]) -> dict[str, Array]:
    """Print each rule's figures; its regret by draw, (draws, 2)."""
    values = {name: np.array([draw[name] for draw in found]) for name in found[0]}
    best = min((name for name in values if name not in RULES), key=lambda name: float(values[name][:, 1].mean()))
    accuracy, loss = values[best].mean(0)
    print(f"  {'best in hindsight: ' + best:34} accuracy {accuracy:.3f}, log-loss {loss:.3f}")
    regret = {name: (values[best] - values[name]) * (100, -1) for name in RULES}
    for name, each in regret.items():
        accuracy, loss = values[name].mean(0)
        print(
            f"  {name:34} accuracy {accuracy:.3f}, log-loss {loss:.3f}; regret {each[:, 0].mean():+.2f} ± "
            f"{each[:, 0].std():.2f} points, {each[:, 1].mean():+.3f} ± {each[:, 1].std():.3f}",
            flush=True,
        )
    return regret


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=["emoji"], help="values of data.source; default: emoji")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--per-class", type=int, nargs="*", default=[10, 30, 100], help="default: 10 30 100")
    asked = parser.parse_args()
    set_up(None)
    all_regret: dict[str, list[Array]] = defaultdict(list)
    for source in asked.sources:
        with tempfile.TemporaryDirectory() as scratch:
            pictures = pictures_of(source, Path(scratch) / "project")
        for per_class in (None, *asked.per_class):
            draws = [drawn(pictures, per_class, seed) for seed in range(asked.draws)]
            usable = [draw for draw in draws if draw is not None]
            if not usable:
                continue
            print(f" {'all pictures' if per_class is None else f'{per_class} per class'}, {len(usable)} draws")
            for name, regret in report([scores(pictures, *draw) for draw in usable]).items():
                all_regret[name].append(regret)
    print("mean regret over all of it")
    for name, regrets in all_regret.items():
        points, loss = np.concatenate(regrets).mean(0)
        print(f"  {name:34} {points:+.2f} points, log-loss {loss:+.3f}")
