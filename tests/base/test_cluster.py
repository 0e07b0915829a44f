"""The door to a cluster: what is wrong with it is said in one sentence, and what is done there is done once, in order."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.base import cluster as door
from headstart.base.cluster import Cluster, connected
from headstart.base.errors import HeadstartError
from headstart.base.identity import Code
from tests.two_nodes import STORE, TwoNodes

MODULE = "headstart.data.prepare"


def double(number: int) -> int:
    return 2 * number


def total(array: NDArray[np.uint8]) -> int:
    return int(array.sum())


def refuse(number: int) -> int:
    raise HeadstartError(f"{number} is too much")


def complaint(address: str | None) -> str:
    with pytest.raises(HeadstartError) as caught, connected(address, MODULE):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_cluster_ray_is_not_imported() -> None:
    program = f"""
import sys
from headstart.base.cluster import connected
with connected(None, {MODULE!r}) as cluster:
    assert cluster is None
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_ray_it_is_said_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "find_spec", lambda name: None)
    told = "cluster is 'auto', and Ray is not installed; run `pip install 'headstart[ray]'`, or set cluster: null"
    assert complaint("auto") == told


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray looks for the cluster that this machine is in
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        assert complaint(address).startswith(f"cluster {address} does not answer (Connection refused); see that it runs")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_one_that_never_answers_is_waited_for_no_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(door, "CONNECT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert complaint(address).startswith(f"cluster {address} does not answer (nothing came back in 2 s)")
        assert time.monotonic() - start < 60


@pytest.mark.slow
def test_answers_come_in_order_and_errors_as_the_sentence_that_they_are(two_nodes: TwoNodes) -> None:
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        assert cluster.cpus == 2
        assert list(cluster.map(double, ((n, 8) for n in range(50)))) == [2 * n for n in range(50)]
        with pytest.raises(HeadstartError, match=r"^0 is too much$"):
            list(cluster.map(refuse, [(0, 8)]))
        with pytest.raises(
            HeadstartError, match=r"a batch takes 60\.0 MB, and 5\d\.\d MB of the smallest node's object store"
        ):
            list(cluster.map(total, [(np.zeros(60_000_000, np.uint8), 60_000_000)]))


@pytest.mark.slow
def test_the_object_store_holds_no_more_than_what_is_under_way(two_nodes: TwoNodes) -> None:
    """Ten times as much as one store goes through; nothing is spilled to the disk."""
    import ray

    size, count = 10 << 20, 10 * STORE // (10 << 20)
    made = 0

    def arrays() -> Iterator[tuple[NDArray[np.uint8], int]]:
        nonlocal made
        for number in range(count):
            made = number
            yield np.full(size, number % 256, np.uint8), size

    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        for number, found in enumerate(cluster.map(total, arrays())):
            assert found == size * (number % 256)
            assert (made - number) * size <= cluster.room
        assert number == count - 1
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        assert not list(session.rglob("ray_spilled_objects*/*"))


@pytest.mark.slow
def test_a_node_that_has_another_version_is_named_with_what_differs(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = door.code_used_by(MODULE)
    ours = Code(code.modules, code.libraries | {"pillow": "1.0"})
    monkeypatch.setattr(door, "code_used_by", lambda module: ours)
    there = code.libraries["pillow"]
    told = complaint(two_nodes.address)
    assert "has another version of headstart or its libraries than this machine" in told
    assert f"(pillow {there} → 1.0); install the same ones there" in told


@pytest.mark.slow
def test_without_headstart_on_a_node_that_is_said(two_nodes: TwoNodes) -> None:
    class Bare(Cluster):
        def on_each_node(self, function):  # type: ignore[no-untyped-def]
            def hidden():  # type: ignore[no-untyped-def]
                import sys

                sys.modules["headstart.base.identity"] = None  # type: ignore[assignment]
                try:
                    return function()
                finally:
                    del sys.modules["headstart.base.identity"]

            return super().on_each_node(hidden)

    with connected(two_nodes.address, MODULE), pytest.raises(HeadstartError, match="lacks headstart or what it needs"):
        door._check(Bare(two_nodes.address), MODULE)
