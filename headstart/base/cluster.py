"""A Ray cluster as the place where heavy work is done: the door to it, and a function run there on many things, in order.

All that headstart knows of Ray is in this module, and Ray is imported where ``cluster`` in params.yaml is set, only there.

The work is done by Ray's tasks, of which a few more than there are processors are under way: that bounds the object store,
and lets an autoscaler see that more nodes would be of use. A task whose worker or node dies is run again by Ray, on a node
that is left. Ray Data, which streams in the same way, is not used: it runs neither over ``ray://`` (its tasks stream their
results, which Ray's client cannot) nor from the driver's own disk without further copies. On two nodes of one core it took
11.2 s for 30 batches of 10 MB and 0.2 s of work each, and 34 s for 40 while a node died; tasks took 5.4 s and 9.5 s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from headstart.base.errors import HeadstartError, some
from headstart.base.identity import Code, code_used_by
from headstart.base.paths import OWN_MODULE
from headstart.base.safe_text import shortened

CLIENT = "ray://"
CONNECT_S, ANSWER_S = 30.0, 120.0  # seconds that a cluster has to be reached in, and its nodes to say what they run
PATIENCE_S = 60.0  # without an answer, after which it is asked whether there still are nodes
RETRIES = 10  # of a task whose worker or node died; one that kills every worker has to end
ROOM = 0.5  # of the smallest object store may be taken by what is under way
AHEAD = 2  # tasks for each processor: one in work and one waiting beside it
KEPT = "what is finished is kept, and the next run goes on from there"

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def connected(address: str | None, module: str) -> Iterator[Cluster | None]:
    """The cluster at ``address``, as params.yaml has it; None where that is null. The connection ends with the block,
    unless there was one before.

    Args:
        module: of headstart, whose code and libraries the nodes must have as this process has them.

    Raises:
        HeadstartError: Ray is not installed, the cluster does not answer, or its nodes run something else.
    """
    if address is None:
        yield None
        return
    if find_spec("ray") is None:
        raise HeadstartError(
            f"cluster is {address!r}, and Ray is not installed; run `pip install 'headstart[ray]'`, or set cluster: null"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    import ray

    mine = not ray.is_initialized()
    if mine:
        _connect(address)
    try:
        cluster = Cluster(address)
        _check(cluster, module)
        yield cluster
    finally:
        if mine:
            ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """Nodes that this process is connected to.

    Attributes:
        address: as params.yaml has it.
    """

    address: str

    @property
    def cpus(self) -> int:
        """Cores, in all, at the moment."""
        return int(_resource("CPU"))

    @property
    def gpus(self) -> int:
        return int(_resource("GPU"))

    @cached_property
    def room(self) -> int:
        """Bytes that may be on their way at once."""
        return int(ROOM * min(node["Resources"].get("object_store_memory", 0) for node in self._nodes()))

    def _nodes(self, cpus: int = 1, gpus: float = 0) -> list[dict[str, Any]]:
        """Those that have as much to work with, busy or not.

        Raises:
            HeadstartError: there is none.
        """
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        there = ((node, node["Resources"]) for node in alive)
        nodes = [node for node, has in there if has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus]
        if not nodes:
            what = f"{cpus} core{'s' if cpus > 1 else ''}" + (" and a GPU" if gpus else "")
            raise HeadstartError(f"cluster {self.address} has no node with {what}; start one with `ray start`; {KEPT}")
        return nodes

    def on_each_node(self, function: Callable[[], R]) -> Iterator[tuple[str, R]]:
        """What ``function`` returns on each node, behind the name of the node.

        Raises:
            HeadstartError: one does not answer.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes, asked = self._nodes(), ray.remote(num_cpus=0, max_retries=2)(function)
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        answers = [asked.options(scheduling_strategy=strategy).remote() for strategy in there]
        for node, answer in zip(nodes, answers, strict=True):
            name = node["NodeManagerAddress"]
            try:
                yield name, ray.get(answer, timeout=ANSWER_S)
            except (GetTimeoutError, RayError) as error:
                raise HeadstartError(f"cluster {self.address}: node {name} does not answer ({_in_short(error)})") from None

    @property
    def cpus_of_smallest(self) -> int:
        """Cores of the node that has the fewest."""
        return int(min(node["Resources"]["CPU"] for node in self._nodes()))

    def shelf(self, items: Iterable[T]) -> Shelf[T]:
        """``items`` in the object store; what does not fit in is on the disk of this node."""
        import ray

        return Shelf([ray.put(item) for item in items])

    def map(
        self,
        work: Callable[[T], R],
        items: Iterable[tuple[T, int]],
        what: str = "a batch",
        cpus: int = 1,
        gpus: float = 0,
        ordered: bool = True,
    ) -> Iterator[R]:
        """``work(item)`` of each item, each done exactly once as far as anyone can see.

        Items are taken as room is made for them. ``work`` is sent to each node once, and is kept by each worker until there
        is another one, with what it may have prepared for itself.

        Args:
            items: each with the bytes that it and its result take.
            what: an item is called, in errors.
            cpus: that one call of ``work`` keeps busy.
            gpus: likewise.
            ordered: whether results come in the order of the items; otherwise each comes as soon as it is there, and no
                node that dies later can take it away.

        Raises:
            HeadstartError: an item does not fit into the object store, ``work`` raised one, or no node is left.
        """
        import ray

        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(_work)
        if own := sys.modules.get(OWN_MODULE):  # no node could import it
            ray.cloudpickle.register_pickle_by_value(own)
        kept = ray.put(work)
        waiting: dict[Any, int] = {}  # sizes
        for item, size in items:
            if size > self.room:
                raise HeadstartError(
                    f"cluster {self.address}: {what} takes {size / 1e6:.1f} MB, and {self.room / 1e6:.1f} MB of the "
                    "smallest node's object store may be used; start its nodes with a larger --object-store-memory"
                )
            ahead = AHEAD * (self.cpus // cpus) + 1
            while waiting and (len(waiting) >= ahead or sum(waiting.values()) + size > self.room):
                yield self._answer(waiting, ordered, cpus, gpus)
            waiting[task.remote([kept], ray.put(item))] = size
            del item
        while waiting:
            yield self._answer(waiting, ordered, cpus, gpus)

    def _answer(self, waiting: dict[Any, int], ordered: bool, cpus: int, gpus: float) -> Any:
        """The next answer, which is waited for no longer then."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        wanted = list(waiting)[: 1 if ordered else None]
        try:
            while not (ready := ray.wait(wanted, timeout=PATIENCE_S)[0]):
                self._nodes(cpus, gpus)
            del waiting[ready[0]]
            return ray.get(ready[0])
        except RayTaskError as error:
            if isinstance(error.cause, HeadstartError):
                raise HeadstartError(str(error.cause)) from None
            raise
        except (RayError, ConnectionError) as error:
            raise HeadstartError(f"cluster {self.address} has failed ({_in_short(error)}); {KEPT}") from None


@dataclass(frozen=True)
class Project:
    """The folder of the user's project, where nodes find it under the same path."""

    folder: str
    dvc_root: str | None

    @classmethod
    def here(cls) -> Project:
        return cls(str(Path.cwd()), os.environ.get("DVC_ROOT"))

    def enter(self) -> None:
        """
        Raises:
            HeadstartError: this node does not have it.
        """
        try:
            os.chdir(self.folder)
        except OSError:
            raise HeadstartError(
                f"a node of the cluster has no {self.folder}; training on several nodes takes a project on a disk that "
                "they share"
            ) from None
        if self.dvc_root:
            os.environ["DVC_ROOT"] = self.dvc_root


class Shelf(Generic[T]):
    """Things in the object store, of which whoever has this takes one at a time."""

    def __init__(self, references: list[Any]) -> None:
        self._references = references
        self._last: tuple[int, T] | None = None

    def __getitem__(self, number: int) -> T:
        import ray

        last = self._last
        if last is None or last[0] != number:
            self._last = last = number, ray.get(self._references[number])
        return last[1]


_kept: dict[str, Any] = {}  # of a worker: the work that it was given last


def _work(kept: list[Any], item: Any) -> Any:
    """Runs on a worker."""
    import ray

    name = kept[0].hex()  # in a list, since Ray would read what stands alone again for every task
    if name not in _kept:
        _kept.clear()
        _kept[name] = ray.get(kept[0])
    return _kept[name](item)


# --- the door -----------------------------------------------------------------------------------------------------


def _connect(address: str) -> None:
    import ray

    if address != "auto":
        host, _, port = address.removeprefix(CLIENT).rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise _silent(address, error.strerror or str(error)) from None
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_S)
    if thread.is_alive():
        raise _silent(address, f"nothing came back in {CONNECT_S:.0f} s")
    if failure:
        if "ersion mismatch" in str(failure[0]):
            raise HeadstartError(
                f"cluster {address} runs another version of Ray or Python ({_in_short(failure[0])}); install the same ones"
            )
        raise _silent(address, _in_short(failure[0]))


def _silent(address: str, reason: str) -> HeadstartError:
    started = "`ray start --head` starts one" if address == "auto" else "see that it runs and can be reached from here"
    return HeadstartError(f"cluster {address} does not answer ({reason}); {started}, or set cluster: null")


def _check(cluster: Cluster, module: str) -> None:
    """See to it that the nodes run what this process runs."""

    def code_there() -> Any:  # inside, since a node without headstart could not be sent a function of headstart
        try:
            from headstart.base.identity import code_used_by

            return asdict(code_used_by(module))
        except ImportError as error:
            return str(error)

    here = code_used_by(module)
    for name, found in cluster.on_each_node(code_there):
        if isinstance(found, str):
            raise HeadstartError(
                f"cluster {cluster.address}: node {name} lacks headstart or what it needs ({found}); install this "
                "version of headstart there"
            )
        if changed := here.changes_since(Code(**found)):
            raise HeadstartError(
                f"cluster {cluster.address}: node {name} has another version of headstart or its libraries than this "
                f"machine ({some(changed)}); install the same ones there"
            )


def _resource(name: str) -> float:
    import ray

    return float(ray.cluster_resources().get(name, 0))


def _in_short(error: BaseException) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, 200)
