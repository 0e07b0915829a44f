"""A kind of pictures that is wrong more often is found, chance is not, and groups count once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from bench.subgroups import once, scores
from headstart.evaluation.intervals import wilson
from headstart.evaluation.subgroups import p_values, worst_subgroups
from headstart.evaluation.summary import of_subgroup


def kinds(count: int, seed: int, width: int = 400) -> tuple[Tensor, np.ndarray]:
    """Features of pictures of eight kinds, and which kind each is of."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 8, count)
    middles = np.random.default_rng(0).normal(size=(8, width))
    return torch.from_numpy(middles[kind] + 1.5 * random.normal(size=(count, width))).float(), kind


def test_a_planted_kind_is_found_and_described() -> None:
    (val, val_kind), (test, test_kind) = kinds(250, 1), kinds(300, 2)
    random = np.random.default_rng(3)
    wrong = [random.random(len(kind)) < np.where(kind == 5, 0.7, 0.1) for kind in (val_kind, test_kind)]
    manifest = pd.DataFrame(
        {
            "split": ["val"] * 250 + ["test"] * 300,
            "label": ["x"] * 250 + [f"kind {kind}" for kind in test_kind],
            "path": [f"{number}.png" for number in range(550)],
        }
    )
    found = worst_subgroups(manifest, (val, test), *map(scores, wrong))
    assert found is not None
    (worst,) = found.found
    assert 1 <= found.looked_at <= 4
    assert next(iter(worst.labels)) == "kind 5"
    assert worst.accuracy.low < worst.accuracy.value < worst.accuracy.high < 0.8 < worst.others
    assert worst.p <= 0.01
    assert all(test_kind[int(path.removesuffix(".png")) - 250] == 5 for path in worst.nearest)
    assert of_subgroup(worst).startswith(f"{worst.pictures} test pictures (kind 5 ")
    assert worst_subgroups(manifest, (val, test), *map(scores, wrong)) == found


def test_chance_is_found_as_rarely_as_said() -> None:
    """`python bench/subgroups.py` draws real features."""
    found = [once(kinds(500, seed)[0], 0.15, seed) for seed in range(100)]
    assert sum(map(bool, found)) <= 12  # 5 expected at most; more than 12 of 100 have a chance of 0.1%


def test_few_mistakes_say_nothing() -> None:
    features, _ = kinds(100, 0)
    manifest = pd.DataFrame({"split": ["test"] * 100, "label": "a", "path": "a"})
    few, some = scores(np.arange(100) < 9), scores(np.arange(100) < 20)
    assert worst_subgroups(manifest, (features, features), few, some) is None
    assert worst_subgroups(manifest, (features, features), some, scores(np.zeros(100, bool))) is None


def test_pictures_of_one_group_count_once() -> None:
    """Ten people with 20 pictures each: that one of them is always wrong is no evidence about pictures like hers."""
    groups, members = np.repeat(np.arange(10), 20), np.repeat(np.arange(10) < 1, 20)[None]
    correct = ~members[0]
    assert p_values(members, correct, None)[0] == pytest.approx(0.001)
    assert p_values(members, correct, groups)[0] > 0.05


def test_the_intervals_of_several_hold_together() -> None:
    hits = np.arange(40) < 30
    (low, high), (wider_low, wider_high) = wilson(hits), wilson(hits, of=4)
    assert wider_low < low < high < wider_high
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        ends = [wilson(random.random(60) < 0.7, of=4) for _ in range(4)]
        held += all(low <= 0.7 <= high for low, high in ends)
    assert held >= 275
