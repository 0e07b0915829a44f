"""Intervals are those of SciPy and of the papers and cover what they should; differences are paired."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headstart.base.arrays import Bools, Ints
from headstart.base.artifacts.metrics import Chance, chance_of
from headstart.evaluation.intervals import (
    Estimate,
    bootstrap,
    mean,
    numbered,
    p_value_with_training,
    paired_difference,
    percentile_interval,
    permutation_p_value,
    proportion,
    resample,
    unpaired_difference,
    wilson,
    with_training,
)


@given(st.integers(2, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
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
    assert wilson(np.array([True])) == pytest.approx((0.2065, 1.0), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50)
def test_a_proportion_has_wilsons_interval(hits_of: tuple[int, int]) -> None:
    hits, n = hits_of
    p, z = hits / n, stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))  # Wilson 1927
    expected = (max(0, (middle - reach) / (1 + z**2 / n)), min(1, (middle + reach) / (1 + z**2 / n)))
    assert wilson(np.arange(n) < hits) == pytest.approx(expected, abs=1e-12)
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
@settings(max_examples=50)
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
@settings(max_examples=25)
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


# --- groups -----------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 6), min_size=2, max_size=12)


def groups_of(sizes: list[int], seed: int) -> Ints:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def test_names_are_numbered_and_pictures_that_are_all_on_their_own_have_no_groups() -> None:
    assert numbered(np.array(["b", "a", "c"])) is None
    assert (numbered(np.array(["b", "a", "b"])) == [1, 0, 1]).all()


@given(SIZES, st.integers(0, 99))
@settings(max_examples=25)
def test_groups_are_drawn_whole_and_as_many_as_there_are(sizes: list[int], seed: int) -> None:
    groups = groups_of(sizes, seed)
    for rows in resample(len(groups), 20, np.random.default_rng(seed), groups):
        drawn = np.bincount(rows, minlength=len(groups))
        times = [set(drawn[groups == group].tolist()) for group in range(len(sizes))]
        assert all(len(each) == 1 for each in times)
        assert sum(each.pop() for each in times) == len(sizes)


@given(SIZES, st.integers(0, 999), st.floats(0, 1))
@settings(max_examples=60)
def test_an_interval_is_never_narrower_for_knowing_the_groups(sizes: list[int], seed: int, share: float) -> None:
    groups, chance = groups_of(sizes, seed), np.random.default_rng(seed)
    hits, others = (chance.random(len(groups)) < each for each in (share, 0.5))
    (low, high), (wide_low, wide_high) = wilson(hits), wilson(hits, groups)
    assert wide_high - wide_low >= high - low - 1e-12
    assert wide_low <= hits.mean() <= wide_high
    plain, wide = (paired_difference(hits, others, each).accuracy for each in (None, groups))
    assert wide.value == plain.value
    assert wide.high - wide.low >= min(plain.high - plain.low, 1.0) - 1e-12 or (wide.low, wide.high) == (-1.0, 1.0)


def test_ten_copies_of_each_picture_say_hardly_more_than_one() -> None:
    hits = np.arange(100) < 80
    (low, high), (wide_low, wide_high) = wilson(hits), wilson(np.repeat(hits, 10), np.repeat(np.arange(100), 10))
    assert (wide_low, wide_high) == pytest.approx((low, high), abs=0.01)
    values = np.random.default_rng(0).normal(0, 1, 100)
    one, ten = mean(values), mean(np.repeat(values, 10), groups=np.repeat(np.arange(100), 10))
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)
    new, _, _ = unpaired_difference(
        np.repeat(values, 10), values[:0], np.random.default_rng(0), np.repeat(np.arange(100), 10)
    )
    assert new.high - new.low == pytest.approx(one.high - one.low, rel=0.1)


def test_one_group_alone_says_nothing_for_certain() -> None:
    alone = np.zeros(30, int)
    assert wilson(np.arange(30) < 20, alone) == (0.0, 1.0)
    difference = paired_difference(np.arange(30) < 10, np.arange(30) < 20, alone)
    assert (difference.accuracy.low, difference.accuracy.high) == (-1.0, 1.0)
    assert difference.p_value() == 1.0
    assert permutation_p_value(lambda swapped: float((~swapped).sum()), 30, groups=alone) > 0.4


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=50)
def test_where_each_group_is_one_picture_the_sign_test_is_mcnemars(answers: list[tuple[bool, bool]]) -> None:
    before, after = np.array(answers).T
    exact, by_sign = paired_difference(before, after), paired_difference(before, after, np.arange(len(answers)))
    for alternative in ("two-sided", "greater"):
        assert by_sign.p_value(alternative) == pytest.approx(exact.p_value(alternative), abs=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
@settings(max_examples=50)
def test_the_sign_test_counts_all_signs(differences: list[int]) -> None:
    groups = np.repeat(np.arange(len(differences)), 4)
    after = np.concatenate([np.arange(4) < max(each, 0) for each in differences])
    before = np.concatenate([np.arange(4) < max(-each, 0) for each in differences])
    sums = [
        sum(map(math.prod, zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=len(differences))
    ]
    found, total = paired_difference(before, after, groups), sum(differences)
    assert found.p_value("greater") == pytest.approx(np.mean([each >= total for each in sums]))
    assert found.p_value() == pytest.approx(np.mean([abs(each) >= abs(total) for each in sums]))


def test_intervals_that_know_the_groups_cover_the_truth_and_others_do_not() -> None:
    chance, groups = np.random.default_rng(0), np.repeat(np.arange(30), 10)
    cut, held = stats.norm.ppf(0.8), np.zeros((2, 2))
    for _ in range(400):
        before, after = (
            chance.normal(0, 0.8, 30)[groups] + chance.normal(0, 0.6, 300) < cut for _ in range(2)
        )  # each right on 80 of 100 pictures
        for column, known in enumerate((groups, None)):
            low, high = wilson(before, known)
            difference = paired_difference(before, after, known).accuracy
            held[:, column] += low <= 0.8 <= high, difference.low <= 0 <= difference.high
    assert (held[:, 0] / 400 > 0.92).all()
    assert (held[:, 1] / 400 < 0.85).all()


# --- chance in training -----------------------------------------------------------------------------------------------

FIGURES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(FIGURES, FIGURES)
@settings(max_examples=50)
def test_where_pictures_leave_no_doubt_the_test_of_trainings_is_welchs(before: list[float], after: list[float]) -> None:
    chances = [chance_of(before), chance_of(after)]
    value = float(np.mean(after) - np.mean(before))
    if min(chance.variance for chance in chances) < 1e-9:
        return
    welch = stats.ttest_ind(after, before, equal_var=False)
    expected = welch.confidence_interval()
    found = with_training(Estimate(value, value, value), chances)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    one_sided = stats.ttest_ind(after, before, equal_var=False, alternative="greater").pvalue
    assert p_value_with_training(Estimate(value, value, value), chances) == pytest.approx(one_sided)


@given(
    st.floats(-0.5, 0.5), st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(0, 0.01), st.integers(1, 9), st.booleans()
)
@settings(max_examples=60)
def test_an_interval_is_never_narrower_for_other_trainings(
    value: float, below: float, above: float, variance: float, degrees: int, grouped: bool
) -> None:
    found, groups = Estimate(value, value - below, value + above), np.repeat(np.arange(12), 3) if grouped else None
    chances = [Chance(variance=variance, degrees=degrees)]
    wide = with_training(found, chances, groups)
    assert wide.low <= found.low + 1e-9
    assert wide.high >= found.high - 1e-9
    if variance:
        ends = with_training(found, chances, groups, most=0.6)
        assert ends == (value, max(-0.6, wide.low), min(0.6, wide.high))


def test_without_chance_in_training_nothing_is_different() -> None:
    found, certain = Estimate(0.1, 0.0, 0.2), Chance(variance=0.0, degrees=1)
    assert with_training(found, []) == with_training(found, [certain]) == found
    assert p_value_with_training(found, [certain]) == 0
    alone = Estimate(0.1, -1.0, 1.0)  # of one group nothing is known, whatever the trainings say
    assert with_training(alone, [Chance(variance=0.01, degrees=3)], np.zeros(30, int)) == alone


def test_two_equal_recipes_are_called_different_at_most_as_often_as_the_interval_says() -> None:
    chance, n, k, draws = np.random.default_rng(0), 200, 3, 400
    called = np.zeros(2)
    for _ in range(draws):
        pictures = 1.6 + chance.normal(0, 1.5, n)
        answers = [pictures + chance.normal(0, 0.3, (k, 1)) + chance.normal(0, 0.4, (k, n)) for _ in range(2)]
        one, all_of_them = ([side[:1].mean(0) > 0 for side in answers], [side.mean(0) > 0 for side in answers])
        found = with_training(
            paired_difference(*all_of_them).accuracy, [chance_of((side > 0).mean(1).tolist()) for side in answers]
        )
        for column, (_, low, high) in enumerate((paired_difference(*one).accuracy, found)):
            called[column] += low > 0 or high < 0
    assert called[0] / draws > 0.3
    assert called[1] / draws < 0.05
