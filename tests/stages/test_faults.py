"""A few of the faults of `python bench/faults.py`, one of each of three kinds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stages.conftest import PROJECT, Clone

pytestmark = [pytest.mark.slow]


def test_nothing_is_lost_and_nothing_comes_out_different(
    finished: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(PROJECT / "bench"), *sys.path])
    import faults

    bench = faults.Bench(tmp_path, finished.folder)
    for number, kind in ((27, "kill"), (14, "flip"), (8, "push")):
        faults.inject(bench, kind, number, seed=0)  # raises HarmError
