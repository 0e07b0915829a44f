"""Intervals are those of SciPy and of the papers and cover what they should; differences are paired."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headstart.base.arrays import Bools
from headstart.evaluation.intervals import (
    bootstrap,
    mean,
    paired_difference,
    percentile_interval,
    permutation_p_value,
    proportion,
    resample,
    unpaired_difference,
    wilson,
)


@given(st.integers(2, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_bootstrap_is_scipys(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=n)
    draws = bootstrap(lambda rows: [values[rows].mean(), values[rows].std()], n, seed, 50)
    theirs = stats.bootstrap(
        (np.arange(n),), lambda rows: values[rows].mean(), method="percentile", n_resamples=50, vectorized=False, rng=seed
    )
    assert draws.shape == (50, 2)
    assert draws[:, 0].tolist() == theirs.bootstrap_distribution.tolist()
    low, high = percentile_interval(draws)
    assert (low[0], high[0]) == pytest.approx(tuple(theirs.confidence_interval))


def test_a_bootstrap_draws_with_replacement_and_the_same_for_the_same_seed() -> None:
    rows = list(resample(20, 100, np.random.default_rng(3)))
    assert all(len(row) == 20 and row.min() >= 0 and row.max() < 20 for row in rows)
    assert all(len(set(row.tolist())) < 20 for row in rows)
    again = resample(20, 100, np.random.default_rng(3))
    assert all((one == other).all() for one, other in zip(rows, again, strict=True))


def test_the_interval_of_a_mean_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        estimate = mean(rng.normal(0.3, 1, 150))
        assert estimate.low < estimate.value < estimate.high
        covered += estimate.low < 0.3 < estimate.high
    assert 50 <= covered <= 60


def test_a_single_picture_has_an_interval_too() -> None:
    assert mean(np.array([0.4])) == (0.4, 0.4, 0.4)
    assert wilson(1, 1) == pytest.approx((0.2065, 1.0), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_a_proportion_has_wilsons_interval(hits_of: tuple[int, int]) -> None:
    hits, n = hits_of
    p, z = hits / n, stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))  # Wilson 1927
    expected = (max(0, (middle - reach) / (1 + z**2 / n)), min(1, (middle + reach) / (1 + z**2 / n)))
    assert wilson(hits, n) == pytest.approx(expected, abs=1e-12)
    found = proportion(np.arange(n) < hits)
    assert (found["count"], found["share"]) == (hits, pytest.approx(p, abs=5e-5))


def test_a_difference_of_two_samples_is_wider_than_either_and_absent_without_a_second() -> None:
    rng = np.random.default_rng(0)
    values, others = rng.normal(1, 1, 100), rng.normal(0, 1, 80)
    new, old, difference = unpaired_difference(values, others, np.random.default_rng(0))
    assert old is not None
    assert difference is not None
    assert difference.value == pytest.approx(new.value - old.value)
    assert difference.high - difference.low > max(new.high - new.low, old.high - old.low)
    assert unpaired_difference(values, others[:0], np.random.default_rng(0)) == (new, None, None)


def test_a_difference_is_paired() -> None:
    right = np.arange(200) < 150
    same = paired_difference(right, right).accuracy
    assert (same.value, same.low) == (0, -same.high)
    assert same.high < 0.02
    apart = paired_difference(~right, right).accuracy
    assert apart.low < apart.value < apart.high
    assert apart.value == pytest.approx(0.5)


def test_the_interval_of_a_paired_difference_is_bonett_and_prices() -> None:
    difference = paired_difference(np.arange(60) < 46, np.arange(60) < 50)  # four pictures and none the other way
    assert difference.accuracy == pytest.approx((4 / 60, -0.011, 0.140), abs=5e-4)
    assert difference.p_value() == pytest.approx(0.125)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_mcnemars_test_is_the_binomial_test_of_what_only_one_has_right(answers: list[tuple[bool, bool]]) -> None:
    before, after = np.array(answers).T
    difference = paired_difference(before, after)
    gained, lost = answers.count((False, True)), answers.count((True, False))
    assert (difference.gained, difference.lost) == (gained, lost)
    assert difference.p_value() == (stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1)
    assert difference.p_value("greater") == (
        stats.binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_of_right_and_wrong_the_permutation_test_is_mcnemars(answers: list[tuple[bool, bool]], seed: int) -> None:
    before, after = np.array(answers).T

    def gained(swapped: Bools) -> float:
        return float((np.where(swapped, before, after).astype(int) - np.where(swapped, after, before)).sum())

    exact = paired_difference(before, after).p_value("greater")
    drawn = permutation_p_value(gained, len(answers), seed)
    assert drawn == pytest.approx(exact, abs=0.08)  # five standard errors of 999 draws
    assert 0 < drawn <= 1
    assert permutation_p_value(gained, len(answers), seed) == drawn


def test_what_no_draw_reaches_has_the_smallest_p_value_and_no_zero() -> None:
    value = np.full(40, 1.0)
    assert permutation_p_value(lambda swapped: value[~swapped].sum() - value[swapped].sum(), 40) == 1 / 1000
    assert permutation_p_value(lambda swapped: 0.0, 40) == 1
