"""Which picture is for training depends on the picture alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headstart.data.splits import split_of, unit_hash

KEYS = [f"picture {i}" for i in range(20_000)]
seeds, parts = st.integers(0, 2**32 - 1), st.floats(0.01, 0.45)


@given(key=st.text(), seed=seeds)
def test_every_key_has_one_place_in_the_unit_interval(key: str, seed: int) -> None:
    assert 0 <= unit_hash(key, seed) < 1
    assert unit_hash(key, seed) == unit_hash(key, seed)


@given(old=st.sets(st.text()), new=st.sets(st.text()), seed=seeds, val=parts, test=parts)
def test_adding_pictures_never_moves_one_that_was_there_before(
    old: set[str], new: set[str], seed: int, val: float, test: float
) -> None:
    before = {key: split_of(key, seed, val, test) for key in sorted(old)}
    after = {key: split_of(key, seed, val, test) for key in sorted(old | new, reverse=True)}
    assert before.items() <= after.items()


@given(key=st.text(), seed=seeds, val=parts, test=parts, more=st.floats(0, 0.1))
def test_a_larger_test_or_val_only_takes_from_train(key: str, seed: int, val: float, test: float, more: float) -> None:
    before = split_of(key, seed, val, test)
    assert split_of(key, seed, val, test + more) in {before, "test" if before == "train" else before}
    assert split_of(key, seed, val + more, test) in {before, "val" if before == "train" else before}


def test_the_proportions_are_those_asked_for() -> None:
    counts = Counter(split_of(key, 0, 0.1, 0.15) for key in KEYS)
    # Three standard deviations of a binomial count of 20,000 are below 160.
    assert abs(counts["val"] - 2000) < 160
    assert abs(counts["test"] - 3000) < 160


def test_another_seed_is_another_split() -> None:
    moved = sum(split_of(key, 0, 0.1, 0.15) != split_of(key, 1, 0.1, 0.15) for key in KEYS)
    # Two independent splits agree with probability 0.75² + 0.15² + 0.1² = 0.595.
    assert abs(moved / len(KEYS) - 0.405) < 0.02


def test_the_split_of_a_release_stays_that_of_the_next() -> None:
    """These places are in users' results; a change of hash would move pictures from test to train."""
    assert [round(unit_hash(key, seed), 6) for key, seed in (("a", 0), ("b", 0), ("a", 1))] == [
        0.051689,
        0.242785,
        0.529857,
    ]
