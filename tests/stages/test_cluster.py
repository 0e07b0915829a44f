"""A pipeline on a cluster leaves what it leaves on one machine, and to move it there is no change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.stages.conftest import Clone
from tests.stages.test_pipeline import digests
from tests.two_nodes import TwoNodes


@pytest.mark.slow
def test_a_cluster_runs_no_stage_again_and_changes_no_byte(two_nodes: TwoNodes, copy_of: Clone) -> None:
    import ray

    made = digests(copy_of.folder / "data")
    copy_of.set(cluster=two_nodes.address)
    assert copy_of.stages_run() == []
    shutil.rmtree(copy_of.folder / "data/prepare")  # or its pictures would be used again
    path = f"{copy_of.folder}{os.pathsep}{Path(ray.__file__).parents[1]}"
    for stage in ("prepare", "features"):
        output = copy_of.cold.repro("--force", "--single-item", stage, PYTHONPATH=path).stderr
        assert f"{stage}: " in output  # it did work
    assert digests(copy_of.folder / "data") == made
