"""On a cluster of two nodes fine-tuning ends where one process does, and goes on where a worker is killed."""

# ruff: noqa: F811
from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from headstart.base.cluster import connected
from headstart.base.errors import HeadstartError
from headstart.training.checkpoint import Row
from headstart.training.on_cluster import train_on
from tests.training import together
from tests.training.test_distributed import alone, given, same  # noqa: F401 - a fixture
from tests.two_nodes import TwoNodes

pytestmark = pytest.mark.slow
MODULE = "headstart.training.finetune"


def test_two_workers_of_which_one_is_killed_in_mid_epoch_train_as_one_process_does(
    two_nodes: TwoNodes, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That they do so when left alone is shown in tests/stages/test_processes.py."""
    monkeypatch.chdir(tmp_path)
    given(tmp_path)
    (tmp_path / "kill").write_text("2")
    rows: list[Row] = []
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        train_on(cluster, 2, 1, partial(together.train_one, tmp_path, together.KILLED), rows.append)
    same(tmp_path, alone, together.KILLED)
    assert not (tmp_path / "kill").exists()
    said = capfd.readouterr().out
    assert said.count("finetune: epoch 3/3, ") == 1
    assert said.count("finetune: going on after epoch 1, ") == 1
    assert [row["epoch"] for row in rows] == [1, 1, 2, 3]


def test_what_a_worker_cannot_do_is_said_in_a_sentence(
    two_nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        with pytest.raises(HeadstartError, match="has no packed pictures"):
            train_on(cluster, 2, 1, partial(together.train_one, tmp_path, together.KILLED), lambda row: None)


def test_more_processes_than_the_cluster_has_are_refused(two_nodes: TwoNodes) -> None:
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        with pytest.raises(HeadstartError, match=r"finetune.processes is 3, and cluster .* has 2 processors"):
            train_on(cluster, 3, 1, lambda device, on_epoch: None, lambda row: None)
