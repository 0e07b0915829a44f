"""Every part gets its share of every class, and the same groups always fall in the same way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headstart.base.arrays import Bools, Ints
from headstart.data.stratification import iterative_stratification

SHARES = (0.7, 0.15, 0.15)
seeds = st.integers(0, 2**32 - 1)


def pictures_of(seed: int, count: int, classes: int) -> Ints:
    """(count, classes) labels, from very rare classes to common ones."""
    rng = np.random.default_rng(seed)
    labels: Ints = (rng.random((count, classes)) < rng.uniform(0.005, 0.6, classes)).astype(int)
    return labels


def stratified(labels: Ints, seed: int = 0, shares: tuple[float, ...] = SHARES) -> Ints:
    order = np.random.default_rng(seed).permutation(len(labels))
    return iterative_stratification(labels, np.ones(len(labels), int), shares, order)


@given(seed=seeds, count=st.integers(0, 120), classes=st.integers(1, 8), val=st.floats(0, 0.4), test=st.floats(0.05, 0.4))
def test_each_part_gets_about_its_share_of_the_pictures(
    seed: int, count: int, classes: int, val: float, test: float
) -> None:
    shares = (1 - val - test, val, test)
    parts = stratified(pictures_of(seed, count, classes), seed, shares)
    sizes = np.bincount(parts, minlength=3)
    assert sizes.sum() == count
    assert (np.abs(sizes - count * np.array(shares)) <= 3 + 2 * classes).all()
    assert val > 0 or sizes[1] == 0


@given(seed=seeds, count=st.integers(0, 80), classes=st.integers(1, 8))
def test_a_rare_class_is_in_every_part_if_it_has_enough_groups(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.eye(classes + 1, dtype=int)[rng.integers(0, classes + 1, count)][:, :classes]  # one class or none
    sizes = rng.integers(1, 5, count)
    parts = iterative_stratification(labels * sizes[:, None], sizes, SHARES, rng.permutation(count))
    for number in range(classes):
        groups = labels[:, number] > 0
        assert len(set(parts[groups])) >= min(3, groups.sum()) or groups.sum() < 3


@given(seed=seeds, classes=st.integers(2, 8))
def test_shares_of_classes_are_nearer_to_those_asked_for_than_chance_brings_them(seed: int, classes: int) -> None:
    labels = pictures_of(seed, 200, classes)
    by_chance = np.random.default_rng(seed).choice(3, 200, p=SHARES)
    assert uneven(labels, stratified(labels, seed)) <= uneven(labels, by_chance)


def uneven(labels: Ints, parts: Ints) -> float:
    """How many pictures of each class each part has too many or too few, on average."""
    got = np.stack([labels[parts == number].sum(axis=0) for number in range(3)])
    return float(np.abs(got - np.outer(SHARES, labels.sum(axis=0))).mean())


@given(seed=seeds, count=st.integers(1, 60))
def test_neither_the_order_of_the_rows_nor_another_run_changes_anything(seed: int, count: int) -> None:
    labels, rng = pictures_of(seed, count, 4), np.random.default_rng(seed)
    sizes, order, rows = rng.integers(1, 4, count), rng.permutation(count), rng.permutation(count)
    parts = iterative_stratification(labels, sizes, SHARES, order)
    assert (iterative_stratification(labels, sizes, SHARES, order) == parts).all()
    assert (iterative_stratification(labels[rows], sizes[rows], SHARES, order[rows]) == parts[rows]).all()


def test_groups_without_labels_go_last_and_fill_what_is_short_of_pictures() -> None:
    labels = np.array([[1], [1], [1], [1], [0], [0], [0], [0], [0], [0]])
    parts = stratified(labels, shares=(0.5, 0.3, 0.2))
    assert np.bincount(parts).tolist() == [5, 3, 2]
    empty: Bools = labels[:, 0] == 0
    assert np.bincount(parts[~empty]).tolist() == [2, 1, 1]
