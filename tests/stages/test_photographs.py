"""The defaults on real photographs: the set of PyTorch's transfer-learning tutorial, whose own figure is 0.94–0.95."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.once import made_once
from tests.stages.conftest import PROJECT, Clone, new_clone

PHOTOGRAPHS = PROJECT.parent / "shared" / "data" / "hymenoptera_data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not beside the project"),
]


@pytest.fixture(scope="session")
def photographs(shared_folder: Path, warm_starts: None) -> Clone:
    """The pipeline's end on them, made once for all of xdist's workers. Tests look at it and do not change it."""

    def make(folder: Path) -> None:
        before = sorted((path, path.stat().st_mtime_ns) for path in PHOTOGRAPHS.rglob("*"))
        new_clone(folder, data={"source": str(PHOTOGRAPHS)}, tracking={"model": False}).repro()
        assert sorted((path, path.stat().st_mtime_ns) for path in PHOTOGRAPHS.rglob("*")) == before

    return Clone(made_once(shared_folder / "photographs", make))


def test_ants_and_bees_are_told_apart_as_well_as_the_tutorial_does(photographs: Clone) -> None:
    test = json.loads(photographs.read("data/evaluate/metrics.json"))["test"]
    assert test["chosen"]["n"] == 153
    assert test["head"]["accuracy"] >= 0.955
    assert test["chosen"]["accuracy"] >= 0.95
