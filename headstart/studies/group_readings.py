"""What names, EXIF tags and looks say of pictures that belong together. Each reading gives N names of groups, "" where a
picture has none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from headstart.base.arrays import Bools, Ints
from headstart.data.corrections import group_in
from headstart.data.duplicates import clusters
from headstart.training.linear_probe import FOLDS

Readings = dict[str, list[str]]

# What a path may say, as data.group would have it: the folder within a class's folder, and parts of the file's name.
PATTERNS = {
    "the folder": r"^(.+)/[^/]+$",
    "the name up to its last number": r"([^/]*?)[^0-9a-zA-Z]*\d+[^0-9/]*$",
    "the first part of the name": r"([^/_ -]+)[-_ ][^/]*$",
    "the first number in the name": r"(\d+)[^/\d]+\d[^/]*$",
}
SERIES = "numbered files, a group wherever a class comes again"
NUMBERED = re.compile(r"([^/]*?)(\d+)[^/\d]*$")
CAMERA, DAY, SHOOT = "the camera", "the camera and the day", "the camera, up to a pause of ten minutes"
PAUSE = timedelta(minutes=10)
LOOKS = "pictures that the network can hardly tell apart"
# Pictures are hardly told apart that are nearer than this part of the median distance to a picture of another class. Of
# photographs of ants, bees and hands no two are; of emoji a quarter (skin tones, the hours of a clock).
ALIKE = 0.3
MOST_COMPARED = 20_000  # pictures, each with each other
AT_ONCE = 512  # rows of distances
LEAST_GROUPS = 2 * FOLDS
LARGEST = 1 / FOLDS  # share of the pictures in one group: folds could not be of a size
TOGETHER = 0.5  # of the pictures must share a group with another


def plausible(readings: Readings, labels: Sequence[str]) -> Readings:
    """Those with ten groups and more, half of the pictures in a group with another, no group of a fifth of all, and other
    groups than the labels or a reading before."""
    found: Readings = {}
    known = {_partition(labels)}
    for name, groups in readings.items():
        sizes = Counter(group for group in groups if group)
        several = [size for size in sizes.values() if size > 1]
        usable = len(several) >= LEAST_GROUPS and max(several) <= LARGEST * len(labels)
        if usable and sum(several) >= TOGETHER * len(labels) and _partition(groups) not in known:
            known.add(_partition(groups))
            found[name] = groups
    return found


def _partition(groups: Sequence[str]) -> tuple[int, ...]:
    """The same for groups that hold the same pictures, whatever they are called."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(group, number) if group else -1 - number for number, group in enumerate(groups))


def of_names(paths: Sequence[str], labels: Sequence[str]) -> Readings:
    """What the paths of N pictures say."""
    found = {name: [group_in(path, re.compile(pattern)) for path in paths] for name, pattern in PATTERNS.items()}
    return found | {SERIES: _series(paths, labels)}


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


def of_photographs(properties: pd.DataFrame) -> Readings:
    """What EXIF tags say.

    Args:
        properties: of N pictures, as ``headstart.data.packed.read_file_properties`` returns them.
    """
    cameras = properties["camera"].tolist()
    times = [_time(taken) for taken in properties["taken"]]
    days = [f"{camera} {time:%Y-%m-%d}".strip() if time else "" for camera, time in zip(cameras, times, strict=True)]
    shoots = [""] * len(times)
    current, last = "", ("", datetime.min)
    for camera, time, row in sorted((cameras[row], time, row) for row, time in enumerate(times) if time):
        if camera != last[0] or time - last[1] > PAUSE:
            current = f"{camera} {time:%Y-%m-%d %H:%M:%S}".strip()
        shoots[row], last = current, (camera, time)
    return {CAMERA: cameras, DAY: days, SHOOT: shoots}


def _time(taken: str) -> datetime | None:
    try:
        return datetime.strptime(taken, "%Y:%m:%d %H:%M:%S")
    except ValueError:  # no time, or none that there is
        return None


def of_looks(features: Tensor, labels: Sequence[str], seen: Bools) -> Readings:
    """What features say: pictures are together that are much nearer to each other than classes mostly are.

    Args:
        features: (N, D).
        seen: (N,) of which pictures the labels may take part.
    """
    if len(features) > MOST_COMPARED or len({label for label, one in zip(labels, seen, strict=True) if one}) < 2:
        return {}
    features = normalize(features, dim=1)
    _, numbers = np.unique(np.asarray(labels), return_inverse=True)
    classes, known = torch.from_numpy(numbers).to(features.device), torch.from_numpy(seen).to(features.device)
    rows = known.nonzero()[:: max(1, int(known.sum()) // AT_ONCE), 0]
    others = (classes[rows, None] != classes) & known
    scale = float((1 - (features[rows] @ features.T).masked_fill(~others, -1)).amin(dim=1).median())
    together: Ints = np.arange(len(features))
    for start in range(0, len(features), AT_ONCE):
        near = 1 - features[start : start + AT_ONCE] @ features.T <= ALIKE * scale
        pairs = near.nonzero().cpu().numpy() + np.array([start, 0])
        together = clusters(
            np.concatenate([ties(together), pairs]), len(features)
        )  # of n that are alike there are n² pairs
    sizes = np.bincount(together)
    return {LOOKS: [f"alike {number}" if sizes[number] > 1 else "" for number in together.tolist()]}


def ties(names: Ints | NDArray[np.str_]) -> Ints:
    """(N, 2) pairs that tie N pictures of the same name together, each to the first one."""
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return np.stack([first[inverse], np.arange(len(names))], axis=1)
