"""Near-duplicates are found exactly: no pair is missed, none invented."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data import duplicates
from headstart.data.duplicates import THUMBNAIL_DIFFERENCE, clusters, near_pairs


@given(
    base=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**6 - 1), st.integers(0, 12)), max_size=12),
    bits=st.integers(0, 16),
)
def test_the_pairs_are_those_of_a_plain_double_loop(base: list[int], flips: list[tuple[int, int, int]], bits: int) -> None:
    """Hashes that differ in few bits and thumbnails that differ by a few grey levels, compared one by one."""
    numbers = base + [base[i % len(base)] ^ mask for i, mask, _ in flips]
    levels = [100] * len(base) + [100 + level for _, _, level in flips]
    hashes = np.array(numbers, np.uint64)
    thumbnails = np.repeat(np.array(levels, np.uint8)[:, None], 768, axis=1)
    found = {tuple(pair) for pair in near_pairs(hashes, thumbnails, bits).tolist()}
    assert found == {
        (i, j)
        for i in range(len(numbers))
        for j in range(i + 1, len(numbers))
        if (numbers[i] ^ numbers[j]).bit_count() <= bits and abs(levels[i] - levels[j]) < THUMBNAIL_DIFFERENCE
    }


def test_pairs_are_found_however_far_apart_they_are() -> None:
    n = 2053
    hashes = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64)
    hashes[-1] = hashes[3] ^ np.uint64(0b101)
    hashes[1024] = hashes[1024 - 1]
    pairs = near_pairs(hashes, np.zeros((n, 768), np.uint8), bits=4)
    assert pairs.tolist() == [[3, n - 1], [1024 - 1, 1024]]


@given(flips=st.lists(st.integers(0, 2**12 - 1), min_size=2, max_size=12), bits=st.integers(0, 6), ranks=st.randoms())
def test_a_crowd_is_tied_together_by_fewer_pairs(flips: list[int], bits: int, ranks: random.Random) -> None:
    hashes, thumbnails = np.array(flips, np.uint64), np.zeros((len(flips), 768), np.uint8)
    rank = np.array([ranks.randrange(3) for _ in flips])
    everyone = clusters(near_pairs(hashes, thumbnails, bits), len(flips))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CROWD", 3)
        pairs = near_pairs(hashes, thumbnails, bits, rank)
    assert (clusters(pairs, len(flips)) == everyone).all()
    for number in np.flatnonzero(np.bincount(everyone) > 3):
        members = np.flatnonzero(everyone == number)
        hub = members[np.argmax(rank[members])]
        inside = {tuple(pair) for pair in pairs.tolist() if pair[0] in members}
        assert inside == {(min(hub, row), max(hub, row)) for row in members.tolist() if row != hub}


def test_twenty_thousand_pictures_that_look_alike_are_no_reason_to_wait() -> None:
    n = 20_000
    hashes = np.array([1 << (row % 7) | 1 << (row % 31) for row in range(n)], np.uint64)
    assert len(near_pairs(hashes, np.zeros((n, 768), np.uint8), bits=4)) == n - 1


def test_switched_off_nothing_is_near() -> None:
    assert near_pairs(np.zeros(5, np.uint64), np.zeros((5, 768), np.uint8), None).shape == (0, 2)


@given(n=st.integers(1, 30), data=st.data())
def test_a_cluster_is_all_that_pairs_connect(n: int, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20))
    together = [{i} for i in range(n)]
    for i, j in pairs:
        merged = together[i] | together[j]
        for k in merged:
            together[k] = merged
    numbers = clusters(np.array(pairs, np.int64).reshape(-1, 2), n)
    assert [{j for j in range(n) if numbers[j] == numbers[i]} for i in range(n)] == together
