"""Pictures that belong together, and the split that each group gets."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from headstart.base.arrays import Ints
from headstart.base.errors import some
from headstart.base.sections import Split
from headstart.base.terminal import say
from headstart.data import duplicates
from headstart.data.audit import Audit
from headstart.data.pack import PackedPicture
from headstart.data.picture import Picture, classes_of, is_multi_label
from headstart.data.splits import SPLITS, split_of, unit_hash
from headstart.data.stratification import iterative_stratification

CONFLICTS_NAMED = 100  # pairs; of n pictures that look alike there are n² / 2


def assign_splits(usable: list[PackedPicture], settings: Split, seed: int, audit: Audit) -> list[PackedPicture]:
    """The pictures with their splits and groups, without those that would leak from one split of the source to another.

    Near-duplicates and pictures with the same group of the user's make one group. But near-duplicates that would empty a
    split, or take a class out of one (one part before a fixed camera, with a scratch or without), are told apart like any
    other pictures, and the audit says so.
    """
    if not usable:
        return usable
    labels = np.array([p.picture.label for p in usable])
    pairs = _near_pairs(usable, settings.near_duplicate_bits)
    conflicts = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    for a, b in ((usable[i].picture, usable[j].picture) for i, j in conflicts[:CONFLICTS_NAMED]):
        audit.warnings.append(
            f"near-duplicates with two labels: {a.path} ({a.label or 'none'}) and {b.path} ({b.label or 'none'})"
        )
    if len(conflicts) > CONFLICTS_NAMED:
        audit.warnings.append(f"near-duplicates with two labels: {len(conflicts) - CONFLICTS_NAMED} more pairs")
    apart, _ = _assigned(usable, pairs[:0], settings, seed)
    told_apart: set[str] = set()
    while True:
        together, found = _assigned(usable, pairs, settings, seed)
        lost = _lost(usable, apart, together, pairs)
        if not lost:
            break
        told_apart |= lost
        component = _components(usable, pairs)  # which may tie a lost class to pairs of another through the user's groups
        pairs = pairs[~np.isin(component[pairs[:, 0]], component[np.isin(labels, sorted(lost))])]
    if told_apart:
        classes = sorted({name for p in usable if p.picture.label in told_apart for name in p.picture.classes})
        sentence = (
            f"near-duplicates of {some(map(repr, classes))} are not kept in one split: so many "
            "pictures look alike there that too few would be left for another. Test figures may be too good: give pictures "
            "that belong together a group in a table. split.near_duplicate_bits: null turns the search off"
        )
        audit.warnings.append(sentence)
        say(f"headstart: {sentence}", file=sys.stderr)
    audit.warnings += found.warnings
    audit.dropped |= found.dropped
    return together


def _assigned(usable: list[PackedPicture], pairs: Ints, settings: Split, seed: int) -> tuple[list[PackedPicture], Audit]:
    """The pictures with splits and groups if ``pairs`` are the near-duplicates, and what is dropped and warned of then."""
    audit = Audit()
    source_has_splits = usable[0].picture.split != ""
    if source_has_splits:
        usable, pairs = _without_leaks(usable, pairs, audit)
        for group, splits in _splits_of_groups(usable).items():
            if len(splits) > 1:
                audit.warnings.append(f"group {group!r} is in {' and '.join(sorted(splits))}, as the source has it: a leak")
    component = _components(usable, pairs).tolist()
    keys = _group_keys(usable, component)
    source_has_val = any(p.picture.split == "val" for p in usable)
    free = None if source_has_val else "train" if source_has_splits else ""  # the pictures to be split here
    test = 0.0 if source_has_splits else settings.test
    members = [(p.picture, number) for p, number in zip(usable, component, strict=True) if p.picture.split == free]
    if is_multi_label([p.picture for p in usable]):
        chosen = _stratified(members, keys, seed, settings.val, test)
    else:
        chosen = {number: split_of(keys[number], seed, settings.val, test) for number in {number for _, number in members}}
    result = []
    for p, number in zip(usable, component, strict=True):
        split = chosen[number] if p.picture.split == free else p.picture.split
        result.append(replace(p, split=split, group=keys[number]))
    return result, audit


def _stratified(
    members: list[tuple[Picture, int]], keys: dict[int, str], seed: int, val: float, test: float
) -> dict[int, str]:
    """The split of each group of a multi-label set.

    By chance alone a rare class would be missing in some: with many classes, some class nearly always is.

    Args:
        members: pictures with the numbers of their groups.
    """
    numbers = sorted({number for _, number in members}, key=lambda number: unit_hash(keys[number], seed))
    groups = {number: row for row, number in enumerate(numbers)}
    classes = {name: column for column, name in enumerate(sorted(classes_of([picture for picture, _ in members])))}
    counts, sizes = np.zeros((len(groups), len(classes)), np.int32), np.zeros(len(groups), np.int32)
    for picture, number in members:
        sizes[groups[number]] += 1
        for name in picture.classes:
            counts[groups[number], classes[name]] += 1
    parts = iterative_stratification(counts, sizes, (1 - val - test, val, test), np.arange(len(groups)))
    return {number: SPLITS[part] for number, part in zip(numbers, parts.tolist(), strict=True)}


def _lost(usable: list[PackedPicture], apart: list[PackedPicture], together: list[PackedPicture], pairs: Ints) -> set[str]:
    """The classes whose near-duplicates cannot be kept in one split: all if a split is empty only because of them; else
    those that have no training picture because of them, and those of which most pictures look alike and a split gets less
    than a quarter of what it would have. In a multi-label set, which is split by its classes, only the first."""
    wanted, got = (Counter((p.picture.label, p.split) for p in pictures) for pictures in (apart, together))
    labels = {label for label, _ in wanted}
    if {split for _, split in wanted} - {split for _, split in got}:
        return labels
    if is_multi_label([p.picture for p in usable]):
        return set()
    sizes = Counter(p.picture.label for p in usable)
    alike = Counter(zip((p.picture.label for p in usable), _components(usable, pairs).tolist(), strict=True))
    lumped = {label for (label, _), size in alike.items() if size > sizes[label] / 2}
    return {
        label
        for (label, split), n in wanted.items()
        if (split == "train" and not got[label, split]) or (label in lumped and got[label, split] < n / 4)
    }


def count_leaks(usable: list[PackedPicture], settings: Split) -> int:
    """Pairs of near-duplicates, and pictures of one group, in two splits: counted in the result, not assumed."""
    if not usable:
        return 0
    splits = np.array([p.split for p in usable])[_near_pairs(usable, settings.near_duplicate_bits)]
    return int((splits[:, 0] != splits[:, 1]).sum()) + sum(len(splits) - 1 for splits in _splits_of_groups(usable).values())


def distance_from_train(split: str) -> int:
    """0 for train, 1 for val, 2 for test. Of two equal pictures in two splits, the one with the larger number is kept."""
    return SPLITS.index(split) if split else 0


def _near_pairs(usable: list[PackedPicture], bits: int | None) -> Ints:
    hashes = np.array([p.phash for p in usable], np.uint64)
    thumbnails = np.frombuffer(b"".join(p.thumbnail for p in usable), np.uint8).reshape(len(usable), -1)
    rank = np.array([distance_from_train(p.picture.split) for p in usable])
    return duplicates.near_pairs(hashes, thumbnails, bits, rank)


def _components(usable: list[PackedPicture], pairs: Ints) -> Ints:
    """(N,) numbers, the same for pictures that near-duplicates or the user's groups tie together."""
    first_of_group: dict[str, int] = {}
    ties = [pairs] if len(pairs) else []
    for i, p in enumerate(usable):
        if p.picture.group:
            ties.append(np.array([[first_of_group.setdefault(p.picture.group, i), i]]))
    return duplicates.clusters(np.concatenate(ties) if ties else np.empty((0, 2), np.int64), len(usable))


def _group_keys(usable: list[PackedPicture], component: list[int]) -> dict[int, str]:
    """The name that each component is split by.

    A user's group goes by its name. Near-duplicates go by the digest of the one with the shortest path, the first of
    several: a copy added later ("a copy.jpg" beside "a.jpg") usually has a longer name and leaves the group where it was.
    """
    first: dict[int, PackedPicture] = {}
    for p, number in zip(usable, component, strict=True):
        if number not in first or _order(p) < _order(first[number]):
            first[number] = p
    return {number: p.picture.group or p.picture.sha256 for number, p in first.items()}


def _order(p: PackedPicture) -> tuple[bool, str, int, str]:
    return (not p.picture.group, p.picture.group, len(p.picture.path), p.picture.path)


def _without_leaks(usable: list[PackedPicture], pairs: Ints, audit: Audit) -> tuple[list[PackedPicture], Ints]:
    """Of near-duplicates in two splits of the source, drop the one nearer to train."""
    distance = np.array([distance_from_train(p.picture.split) for p in usable])
    crossing = pairs[distance[pairs[:, 0]] != distance[pairs[:, 1]]]
    dropped = np.zeros(len(usable), bool)
    for i, j in crossing.tolist():
        if dropped[i] or dropped[j]:
            continue
        drop, keep = (i, j) if distance[i] < distance[j] else (j, i)
        dropped[drop] = True
        twin = usable[keep].picture
        audit.drop(usable[drop].picture.path, f"near-duplicate of {twin.path}, which is in {twin.split}")
    new_row = np.cumsum(~dropped) - 1
    return [p for p, gone in zip(usable, dropped, strict=True) if not gone], new_row[pairs[~dropped[pairs].any(axis=1)]]


def _splits_of_groups(usable: list[PackedPicture]) -> dict[str, set[str]]:
    """The splits that each of the user's groups is in."""
    splits: dict[str, set[str]] = defaultdict(set)
    for p in usable:
        if p.picture.group:
            splits[p.picture.group].add(p.split or p.picture.split)
    return splits
