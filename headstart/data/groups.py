"""Pictures that belong together, and the split that each group gets."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from headstart.base.arrays import Ints
from headstart.base.params import Split
from headstart.data import duplicates
from headstart.data.audit import Audit
from headstart.data.pack import PackedPicture
from headstart.data.splits import SPLITS, split_of


def assign_splits(usable: list[PackedPicture], settings: Split, seed: int, audit: Audit) -> list[PackedPicture]:
    """The pictures with their splits and groups, without those that would leak from one split of the source to another.

    Near-duplicates and pictures with the same group of the user's make one group.
    """
    if not usable:
        return usable
    pairs = _near_pairs(usable, settings.near_duplicate_bits)
    for i, j in pairs:
        a, b = usable[i].picture, usable[j].picture
        if a.label != b.label:
            audit.warnings.append(f"near-duplicates with two labels: {a.path} ({a.label}) and {b.path} ({b.label})")
    source_has_splits = usable[0].picture.split != ""
    if source_has_splits:
        usable, pairs = _without_leaks(usable, pairs, audit)
        for group, splits in _splits_of_groups(usable).items():
            if len(splits) > 1:
                audit.warnings.append(f"group {group!r} is in {' and '.join(sorted(splits))}, as the source has it: a leak")
    component = _components(usable, pairs)
    keys = _group_keys(usable, component)
    source_has_val = any(p.picture.split == "val" for p in usable)
    result = []
    for p, number in zip(usable, component.tolist(), strict=True):
        key = keys[number]
        if not source_has_splits:
            split = split_of(key, seed, settings.val, settings.test)
        elif p.picture.split == "train" and not source_has_val:
            split = split_of(key, seed, settings.val, 0.0)
        else:
            split = p.picture.split
        result.append(replace(p, split=split, group=key))
    return result


def count_leaks(usable: list[PackedPicture], settings: Split) -> int:
    """Pairs of near-duplicates, and pictures of one group, in two splits: counted in the result, not assumed."""
    if not usable:
        return 0
    crossing = sum(usable[i].split != usable[j].split for i, j in _near_pairs(usable, settings.near_duplicate_bits))
    return int(crossing) + sum(len(splits) - 1 for splits in _splits_of_groups(usable).values())


def distance_from_train(split: str) -> int:
    """0 for train, 1 for val, 2 for test. Of two equal pictures in two splits, the one with the larger number is kept."""
    return SPLITS.index(split) if split else 0


def _near_pairs(usable: list[PackedPicture], bits: int) -> Ints:
    hashes = np.array([p.phash for p in usable], np.uint64)
    thumbnails = np.frombuffer(b"".join(p.thumbnail for p in usable), np.uint8).reshape(len(usable), -1)
    return duplicates.near_pairs(hashes, thumbnails, bits)


def _components(usable: list[PackedPicture], pairs: Ints) -> Ints:
    """(N,) numbers, the same for pictures that near-duplicates or the user's groups tie together."""
    first_of_group: dict[str, int] = {}
    ties = [pairs] if len(pairs) else []
    for i, p in enumerate(usable):
        if p.picture.group:
            ties.append(np.array([[first_of_group.setdefault(p.picture.group, i), i]]))
    return duplicates.clusters(np.concatenate(ties) if ties else np.empty((0, 2), np.int64), len(usable))


def _group_keys(usable: list[PackedPicture], component: Ints) -> dict[int, str]:
    """The name that each component is split by.

    A user's group goes by its name. Near-duplicates go by the digest of the one with the shortest path, the first of
    several: a copy added later ("a copy.jpg" beside "a.jpg") usually has a longer name and leaves the group where it was.
    """
    first: dict[int, PackedPicture] = {}
    for p, number in zip(usable, component.tolist(), strict=True):
        if number not in first or _order(p) < _order(first[number]):
            first[number] = p
    return {number: p.picture.group or p.picture.sha256 for number, p in first.items()}


def _order(p: PackedPicture) -> tuple[bool, str, int, str]:
    return (not p.picture.group, p.picture.group, len(p.picture.path), p.picture.path)


def _without_leaks(usable: list[PackedPicture], pairs: Ints, audit: Audit) -> tuple[list[PackedPicture], Ints]:
    """Of near-duplicates in two splits of the source, drop the one nearer to train."""
    dropped: set[int] = set()
    for i, j in sorted(map(tuple, pairs.tolist())):
        a, b = distance_from_train(usable[i].picture.split), distance_from_train(usable[j].picture.split)
        if a == b or i in dropped or j in dropped:
            continue
        drop, keep = (i, j) if a < b else (j, i)
        dropped.add(drop)
        twin = usable[keep].picture
        audit.drop(usable[drop].picture.path, f"near-duplicate of {twin.path}, which is in {twin.split}")
    new_row = np.cumsum([i not in dropped for i in range(len(usable))]) - 1
    kept = [(new_row[i], new_row[j]) for i, j in pairs if i not in dropped and j not in dropped]
    return [p for i, p in enumerate(usable) if i not in dropped], np.array(kept, np.int64).reshape(-1, 2)


def _splits_of_groups(usable: list[PackedPicture]) -> dict[str, set[str]]:
    """The splits that each of the user's groups is in."""
    splits: dict[str, set[str]] = defaultdict(set)
    for p in usable:
        if p.picture.group:
            splits[p.picture.group].add(p.split or p.picture.split)
    return splits
