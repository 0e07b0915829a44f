"""A real Ray cluster of two nodes on this machine, each with one core and a small object store of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from headstart.base.cluster import Cluster

STORE = 100 << 20  # bytes; Ray takes no less than 75 MB


class TwoNodes:
    """
    Attributes:
        address: HOST:PORT.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        with _starting():
            self.cluster: Any = Nodes(
                initialize_head=True,
                head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
            )
        self.address: str = self.cluster.address
        self.second: Any = None
        self.repair()

    def remove_second(self) -> None:
        """As by a power failure."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def repair(self) -> None:
        if self.second is None:
            with _starting(), contextlib.chdir(Path(__file__).parent):  # a test's own folder goes with the test
                self.second = self.cluster.add_node(num_cpus=1, object_store_memory=STORE)
            self.cluster.wait_for_nodes()


class Answers:
    """Counts the answers that the driver takes, and does something before one of them. Where that returns False, it is done
    again before the next.

    Attributes:
        taken: how many there were.
        is_done: whether it has been done.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
        self.taken = 0
        self.is_done = False
        answer = Cluster._answer

        def counted(cluster: Cluster, *asked: Any) -> Any:
            self.taken += 1
            if self.taken >= number and not self.is_done:
                self.is_done = do() is not False
            return answer(cluster, *asked)

        monkeypatch.setattr(Cluster, "_answer", counted)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """A node that is started knows the project, as pytest does, so that functions of tests can be sent to it. It sets a
    handler of SIGTERM, which is not left behind: what this process forks later would inherit it, and when ended would wait
    for the node to drain, for ever."""
    before = signal.getsignal(signal.SIGTERM)
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        with patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(paths)}):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def cluster_of_two() -> Iterator[TwoNodes]:
    pytest.importorskip("ray", reason="Ray is not installed: make test installs it")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = TwoNodes()
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture
def two_nodes(cluster_of_two: TwoNodes) -> Iterator[TwoNodes]:
    """Both are there when a test begins, and whoever connected has left when it ends."""
    import ray

    cluster_of_two.repair()
    yield cluster_of_two
    ray.shutdown()
