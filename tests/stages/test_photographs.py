"""The defaults on real photographs: the set of PyTorch's transfer-learning tutorial, whose own figure is 0.94–0.95."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.stages.conftest import PROJECT, Clone

PHOTOGRAPHS = PROJECT.parent / "shared" / "data" / "hymenoptera_data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not beside the project"),
]


def test_ants_and_bees_are_told_apart_as_well_as_the_tutorial_does(project: Callable[..., Clone]) -> None:
    clone = project(data={"source": str(PHOTOGRAPHS)}, tracking={"model": False})
    before = sorted((path, path.stat().st_mtime_ns) for path in PHOTOGRAPHS.rglob("*"))
    clone.repro()
    test = json.loads(clone.read("data/evaluate/metrics.json"))["test"]
    assert test["chosen"]["n"] == 153
    assert test["head"]["accuracy"] >= 0.955
    assert test["chosen"]["accuracy"] >= 0.95
    assert sorted((path, path.stat().st_mtime_ns) for path in PHOTOGRAPHS.rglob("*")) == before
