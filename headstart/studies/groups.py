"""groups: which pictures belong together, by their names, and how much a split that parts them flatters the result.

Ten pictures of a patient, frames of a film or shots of one afternoon resemble each other. With some of them in training a
classifier knows the others, which it will not where it is used: the test figures are too good (Kapoor and Narayanan 2023,
"Leakage and the reproducibility crisis in machine-learning-based science"). Where nobody has said which pictures belong
together, their names often do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.base.arrays import Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.groups import GroupSuggestion, GroupSuggestions
from headstart.base.artifacts.json_file import Interval
from headstart.base.device import set_up
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.data import fetch
from headstart.data.corrections import group_in
from headstart.data.duplicates import clusters
from headstart.data.manifest import class_names, groups_per_class, is_multi_label, read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation.intervals import DIGITS, numbered, paired_difference
from headstart.models.task import Task, task_of
from headstart.studies import groups_report
from headstart.training.feature_files import training_and_validation
from headstart.training.linear_probe import FOLDS, folds_of, held_out_logits

# What a path may say, as data.group would have it: the folder within a class's folder, and parts of the file's name.
PATTERNS = {
    "the folder": r"^(.+)/[^/]+$",
    "the name up to its last number": r"([^/]*?)[^0-9a-zA-Z]*\d+[^0-9/]*$",
    "the first part of the name": r"([^/_ -]+)[-_ ][^/]*$",
    "the first number in the name": r"(\d+)[^/\d]+\d[^/]*$",
}
SERIES = "numbered files, a group wherever a class comes again"
NUMBERED = re.compile(r"([^/]*?)(\d+)[^/\d]*$")
LEAST_GROUPS = 2 * FOLDS
LARGEST = 1 / FOLDS  # share of the pictures in one group: folds could not be of a size
TOGETHER = 0.5  # of the pictures must share a group with another
MOST_PICTURES = 5000  # that it is measured on


def suggested(paths: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """What the names of N pictures say of groups: by what it goes by, N names of groups, "" where a picture has none.

    Left out are those with hardly any group, with hardly any picture in one, with a group of a fifth of all, and those that
    are the same as others or as the labels.
    """
    found: dict[str, list[str]] = {}
    patterns = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}
    every = {name: [group_in(path, pattern) for path in paths] for name, pattern in patterns.items()}
    every[SERIES] = _series(paths, labels)
    known = {_partition(labels)}
    for name, groups in every.items():
        sizes = Counter(group for group in groups if group)
        several = [size for size in sizes.values() if size > 1]
        usable = len(several) >= LEAST_GROUPS and max(several) <= LARGEST * len(paths)
        if usable and sum(several) >= TOGETHER * len(paths) and _partition(groups) not in known:
            known.add(_partition(groups))
            found[name] = groups
    return found


def _partition(groups: Sequence[str]) -> tuple[int, ...]:
    """The same for groups that hold the same pictures, whatever they are called."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(group, number) if group else -1 - number for number, group in enumerate(groups))


def _series(paths: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Somebody who photographs one thing after the other numbers them through: IMG_1118 is this person's 0, IMG_1119 the 1.
    Where neighbours in number mostly differ in class, a group ends before a number is left out or a class comes again.
    Where each class is numbered from one on, numbers say nothing of this."""
    places = [(match[1], int(match[2]), row) for row, path in enumerate(paths) if (match := NUMBERED.search(path))]
    groups = [""] * len(paths)
    places.sort()
    followed = [(a[2], b[2]) for a, b in pairwise(places) if a[0] == b[0]]
    again = len(places) - len({(prefix, number) for prefix, number, _ in places})
    if not followed or again > len(places) / 4 or np.mean([labels[a] == labels[b] for a, b in followed]) > 1 / 2:
        return groups
    current, seen, last = "", set[str](), ("", -2)
    for prefix, number, row in places:
        if (prefix, number - 1) != last or labels[row] in seen:
            current, seen = f"{prefix}{number}", set()
        groups[row], last = current, (prefix, number)
        seen.add(labels[row])
    return groups


def _joined(*partitions: Ints | NDArray[np.str_]) -> Ints:
    """(N,) numbers, the same for pictures that any of the (N,) partitions ties together."""
    ties = []
    for names in partitions:
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        ties.append(np.stack([first[inverse], np.arange(len(names))], axis=1))
    return clusters(np.concatenate(ties), len(partitions[0]))


def measured(
    name: str, groups: Sequence[str], pictures: pd.DataFrame, features: Tensor, classes: list[str], task: Task
) -> GroupSuggestion | None:
    """What a probe reaches on N pictures if folds keep them together, and if not; None if a class has too few groups.

    Args:
        groups: N names, "" where a picture is on its own.
        pictures: N rows of the manifest; near-duplicates are kept together in any case.
        features: (N, D).
    """
    known = pictures["group"].to_numpy(str)
    named = np.array([group or f"only {number}" for number, group in enumerate(groups)])
    together = _joined(known, named)
    if not is_multi_label(pictures):  # each fold has to hold something of a class
        counts = groups_per_class(pictures.assign(group=together))
        classes = [label for label in classes if counts.get(label, 0) >= FOLDS]
        enough = pictures["label"].isin(classes).to_numpy(copy=True)
        if len(classes) < 2:
            return None
        pictures, features, together, known = (
            pictures[enough],
            features[torch.from_numpy(enough)],
            together[enough],
            known[enough],
        )
    labels = task.labels_of(pictures, classes)
    correct = []
    for each in (known, together):
        logits = held_out_logits(features, labels, folds_of(labels, each), task)
        correct.append(task.correct(task.predict(logits), labels))
    flattered = paired_difference(correct[1], correct[0], numbered(together))
    sizes = Counter(group for group in groups if group)
    return GroupSuggestion(
        by=name,
        setting=PATTERNS.get(name),
        groups=len(sizes),
        pictures=sum(size for size in sizes.values() if size > 1),
        largest=max(sizes.values()),
        accuracy_apart=_rounded(correct[0].mean()),
        accuracy_together=_rounded(correct[1].mean()),
        optimism=Interval(**{key: _rounded(value) for key, value in flattered.accuracy._asdict().items()}),
    )


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def suggest(
    manifest: pd.DataFrame, data: DataFolder, device: torch.device, given: bool
) -> tuple[GroupSuggestions, list[str]]:
    """What groups.json holds, and for each row of the manifest its group by the first suggestion, "" where it has none.

    The test pictures are grouped too, but what it is worth is measured without them.

    Args:
        given: whether the pictures have groups already.
    """
    paths, labels = manifest["path"].tolist(), manifest["label"].tolist()
    by_name = suggested(paths, labels)
    pictures, features = training_and_validation(manifest, data.features, device)
    chosen = np.sort(np.random.default_rng(0).permutation(len(pictures))[:MOST_PICTURES])
    rows, some = pictures.index.to_numpy()[chosen], pictures.iloc[chosen].reset_index(drop=True)
    features = features[torch.from_numpy(chosen).to(features.device)]
    classes, task = class_names(manifest), task_of(manifest)
    found = []
    with progress("groups", len(by_name), "suggestions") as advance:
        for name, groups in by_name.items():
            of_some = [groups[row] for row in rows.tolist()]
            found.append(measured(name, of_some, some, features, classes, task))
            advance()
    suggestions = sorted((one for one in found if one is not None), key=lambda one: -one.optimism.low)
    best = 0 if suggestions and suggestions[0].optimism.low > 0 else None
    told = groups_report.sentence(suggestions, best, given)
    result = GroupSuggestions(suggestions=suggestions, best=best, given=given, sentence=told)
    return result, by_name[suggestions[0].by] if suggestions else [""] * len(paths)


def run(params: Params, data: DataFolder) -> None:
    """The stage groups: suggest which pictures belong together, and measure what it costs to part them."""
    manifest = read_manifest(data.prepare)
    given = any(picture.group for picture in fetch.read_manifest(data.fetch.manifest))
    found, groups = suggest(manifest, data, set_up(params.threads), given)
    groups_report.write(found, groups, manifest, Pixels(data.prepare), data.groups)
    groups_report.show(found, data.groups)
