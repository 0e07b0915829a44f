"""Test pictures that look the same as one that was learned from are found, and what they add to the score is measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from headstart.base.artifacts.metrics import Leaks
from headstart.evaluation.leaks import AT_ONCE, SAMPLE, find_leaks, relative_distances
from headstart.evaluation.metrics import Scores
from headstart.evaluation.summary import of_leaks

LEARNED, TEST = 60, 40


def cloud(seed: int, count: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=(count, 32)), dtype=torch.float32)


def manifest() -> pd.DataFrame:
    """Splits interleaved, as path order has them."""
    numbers = np.arange(LEARNED + TEST)
    split = np.array(["train", "test", "val", "train", "test"])[numbers % 5]
    return pd.DataFrame({"path": [f"{number:03}.png" for number in numbers], "split": split})


def found(copies: int, right: float) -> Leaks:
    """Leaks of test pictures of which the first are copies, all right, and a share ``right`` of the others is right."""
    learned, test = cloud(0, LEARNED), cloud(1, TEST)
    test[:copies] = learned[5 : 5 + copies] + 0.05 * cloud(2, copies)
    correct = np.arange(TEST) < copies + round(right * (TEST - copies))
    return find_leaks(manifest(), learned, test, Scores(np.eye(2)[(~correct).astype(int)], np.zeros(TEST, int)), 200, 0)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), learned=st.integers(3, 50), new=st.integers(1, 20))
def test_distances_are_scikit_learns(seed: int, learned: int, new: int) -> None:
    x, y = cloud(seed, learned), cloud(seed + 1, new)
    theirs = NearestNeighbors(metric="cosine").fit(x.numpy())
    among = theirs.kneighbors(n_neighbors=1)[0][:, 0]
    distance, twin = theirs.kneighbors(y.numpy(), n_neighbors=1)
    ours, which = relative_distances(x, y)
    np.testing.assert_allclose(ours, distance[:, 0] / np.median(among), rtol=1e-3, atol=1e-4)
    assert which.tolist() == twin[:, 0].tolist()


def test_many_pictures_are_compared_in_parts() -> None:
    x, y = cloud(0, 2 * SAMPLE + 100), cloud(1, AT_ONCE + 7)
    distance, twin = relative_distances(x, torch.cat([y, x[[4000]]]))
    assert distance.shape == (AT_ONCE + 8,)
    assert (distance[-1], twin[-1]) == (pytest.approx(0, abs=1e-5), 4000)
    assert np.median(distance[:-1]) == pytest.approx(1, abs=0.05)


def test_copies_are_paired_and_left_out_to_tell_what_they_add() -> None:
    leaks, table = found(10, 0.5), manifest()
    test = table.loc[table["split"] == "test", "path"].tolist()
    learned = [*table.loc[table["split"] == "train", "path"], *table.loc[table["split"] == "val", "path"]]
    assert {(pair.test, pair.learned) for pair in leaks.pairs} == set(zip(test[:10], learned[5:15], strict=True))
    assert [pair.distance for pair in leaks.pairs] == sorted(pair.distance for pair in leaks.pairs)
    assert leaks.without is not None
    assert leaks.added is not None
    assert (leaks.without["accuracy"], leaks.without["n"]) == (0.5, 30)
    assert leaks.added.value == pytest.approx(25 / 40 - 0.5)
    assert 0.03 < leaks.added.low < leaks.added.value < leaks.added.high < 0.25
    said = of_leaks(leaks, {"n": TEST})
    assert said.startswith(
        "10 of 40 test pictures look the same to the network as a training or validation picture. Without"
    )
    assert "they change it by +12.5 points (" in said


def test_new_pictures_are_no_leaks() -> None:
    assert found(0, 0.8) == Leaks(pictures=0, pairs=[])
    assert of_leaks(found(0, 0.8), {"n": TEST}) == ""


def test_where_all_are_copies_nothing_can_be_told() -> None:
    leaks = found(TEST, 1)
    assert (leaks.pictures, leaks.without, leaks.added) == (TEST, None, None)
    assert "nothing of new pictures" in of_leaks(leaks, {"n": TEST})


def test_where_all_learned_pictures_are_twins_only_twins_are_the_same() -> None:
    learned = cloud(0, 30).repeat(2, 1)
    distance, _ = relative_distances(learned, torch.cat([cloud(1, 5), learned[:1]]))
    assert (distance[:5] > 1000).all()
    assert distance[5] < 1
