"""Where the heat lies is measured against an even map, groups count once, and a class told by the edge is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from headstart.base.artifacts.metrics import Heat
from headstart.data.blind import in_centre
from headstart.evaluation import heat
from headstart.evaluation.metrics import Scores
from headstart.evaluation.summary import at_edge, of_heat
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.preprocessing import View
from headstart.models.trunk import Trunk

SIDE, EVEN = 64, 0.390625
CLASSES = ("red", "green", "blue")


def test_the_centre_is_that_of_the_blind_classifiers() -> None:
    inside = in_centre(16)
    assert inside[3:13, 3:13].all()
    assert inside.sum() == 100
    assert in_centre(SIDE).mean() == EVEN


def colours() -> Classifier:
    """Each class is a colour, and says so where the colour is."""
    same = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(same.weight)
    network = nn.Sequential(same, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    trunk = Trunk(network, View(SIDE, 1.0, "bilinear", (0, 0, 0), (1, 1, 1)))
    return Classifier(trunk, FittedHead(LinearHead.of(torch.eye(3), torch.zeros(3)), 1.0, CLASSES)).eval()


def measured(edge: list[int], of_each: int = 10, groups: np.ndarray | None = None) -> Heat | None:
    """Of pictures that have the colour of their class in the middle, or at the edge if the class is one of ``edge``."""
    inside, labels = in_centre(SIDE), np.repeat([0, 1, 2], of_each)
    pictures = []
    for number, label in enumerate(labels):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[..., label] = np.where(inside != (label in edge), 200, 20 + number % of_each)
        pictures.append(pixels)
    manifest = pd.DataFrame({"split": "test", "label": np.take(CLASSES, labels)})
    return heat.measure(
        colours(), pictures, manifest, Scores(np.eye(3)[labels], labels, groups=groups), torch.device("cpu")
    )


def test_a_subject_in_the_middle_is_no_edge() -> None:
    found = measured([])
    assert found is not None
    assert (found.pictures, found.even, found.at_edge) == (30, pytest.approx(EVEN, abs=1e-4), [])
    assert EVEN < 0.7 < found.centre.low <= found.centre.value <= found.centre.high
    assert at_edge(found) == ""
    assert "Less than" not in of_heat(found)


def test_a_class_that_is_told_by_the_edge_is_named() -> None:
    found = measured([2])
    assert found is not None
    assert [one.label for one in found.at_edge] == ["blue"]
    assert found.at_edge[0].centre.high < EVEN
    assert found.at_edge[0].p < 0.01
    assert at_edge(found) == ""  # all in all it looks at the middle
    assert "beyond chance: blue" in of_heat(found)


def test_a_classifier_that_looks_at_the_edge_says_so() -> None:
    found = measured([0, 1, 2])
    assert found is not None
    assert at_edge(found).startswith("It looks mostly at the edge of pictures: 9")


def test_groups_count_once() -> None:
    assert measured([], groups=np.repeat(np.arange(6), 5)) is None  # six groups say too little
    random = np.random.default_rng(0)
    shares, guesses = np.repeat(random.uniform(0.3, 0.6, 12), 8), np.repeat([0, 1], 48)
    alone, grouped = (
        heat.summary(shares, guesses, groups, ("a", "b"), 0.39) for groups in (np.arange(96), np.repeat(np.arange(12), 8))
    )
    assert alone is not None
    assert grouped is not None
    assert grouped.centre.high - grouped.centre.low > 2 * (alone.centre.high - alone.centre.low)


def test_classes_are_named_by_chance_as_rarely_as_said() -> None:
    random, named = np.random.default_rng(0), 0
    for _ in range(200):
        shares = random.beta(4, 6, 96)
        found = heat.summary(shares, random.integers(0, 8, 96), np.arange(96), tuple("abcdefgh"), 0.4)
        assert found is not None
        named += bool(found.at_edge)
    assert named <= 20


@pytest.mark.parametrize("count", [1, 50, 96, 1000])
def test_the_sample_is_of_all_classes_and_always_the_same(count: int) -> None:
    guesses = np.random.default_rng(0).integers(0, 3, count)
    some = heat.sample(guesses)
    assert len(np.unique(some)) == len(some) == min(count, heat.MOST)
    shares, expected = (np.bincount(each, minlength=3) / len(each) for each in (guesses[some], guesses))
    assert shares == pytest.approx(expected, abs=0.02)
