"""A frozen network on the workers of a cluster: what they run, and which engine it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.base.arrays import Ints
from headstart.base.artifacts.engine import EngineChoice
from headstart.base.cluster import Cluster
from headstart.base.device import made_on, processor, set_up
from headstart.data.decode import Array
from headstart.data.packed import Packed, Pixels, unpacked
from headstart.engines.base import Forward
from headstart.engines.select import ENGINES, engine_for
from headstart.models.preprocessing import View

TOGETHER = 16  # pictures that are fetched at once
MOST_PER_GPU = 8  # workers, each of which decodes on a core of its own


@dataclass(frozen=True)
class _Worker:
    """A network as it is sent to workers, each of which works with one thread.

    Attributes:
        network: (N, 3, H, W) uint8 pictures → what is wanted of them; in eval mode, on the CPU.
    """

    network: nn.Module
    gpu: bool

    @cached_property
    def device(self) -> torch.device:
        """Of the worker, which is set up."""
        set_up(threads=1)
        device = torch.device("cuda" if self.gpu else "cpu")
        self.network.to(device)
        return device


@dataclass(frozen=True)
class _Chooser(_Worker):
    """``engine_for`` on a worker: sample and labels → the choice, and what last digits depend on there."""

    pictures: int
    wanted: str

    def __call__(self, item: tuple[Tensor, Tensor | None]) -> tuple[EngineChoice, dict[str, Any]]:
        sample, labels = item
        _, choice = engine_for(self.network, self.pictures, sample.to(self.device), self.device, self.wanted, labels)
        return choice, made_on(self.device)


@dataclass(frozen=True)
class _Pass(_Worker):
    """The forward pass of stored pictures by an engine that was chosen."""

    view: View
    engine: str

    @cached_property
    def forward(self) -> Forward:
        name, _, precision = self.engine.partition(" ")
        sample = torch.zeros(2, 3, *self.view.shape, dtype=torch.uint8, device=self.device)
        return ENGINES[name].prepare(self.network, sample, self.device)("bf16" if precision else "fp32")

    def __call__(self, pictures: list[Packed]) -> NDArray[Any]:
        answer: NDArray[Any] = self.forward(self.view.stacked(unpacked(*picture) for picture in pictures)).cpu().numpy()
        return answer


class RemoteNetwork:
    """A frozen network on a cluster: on its GPUs where it has some, on its CPUs otherwise, so that answers do not depend on
    which node gave them.

    Attributes:
        choice: the engine that runs it.
        made_on: what the last digits depend on besides the inputs, as ``headstart.base.device.made_on`` has it. OpenVINO's
            do not depend on the number of threads, which then is that of this machine.
    """

    def __init__(
        self, cluster: Cluster, network: nn.Module, view: View, pictures: int, wanted: str, sample: Tensor, labels: Any
    ) -> None:
        """
        Args:
            network: on the CPU; the other arguments are those of ``engine_for``.
        """
        self.cluster, self.network, self.view = cluster, network, view
        self.share = share_of_gpu(cluster)
        gpu = bool(self.share)
        chooser = _Chooser(network, gpu, pictures, wanted)
        size = sample.nbytes + sum(tensor.nbytes for tensor in network.state_dict().values())
        ((self.choice, there),) = cluster.map(chooser, [((sample, labels), size)], "the network", gpus=self.share)
        if not gpu:
            kinds = {kind for _, kind in cluster.on_each_node(_kind)}
            threads = torch.get_num_threads() if self.choice.engine.startswith("openvino") else there["threads"]
            there = {"processor": ", ".join(sorted(kinds)), "threads": threads}
        self.made_on = there
        self.work = _Pass(network, gpu, view, self.choice.engine)

    def answers(self, pixels: Pixels, rows: Ints, batch: int) -> Iterator[Tensor]:
        """What the network makes of the pictures in ``rows``, ``batch`` at a time."""

        def batches() -> Iterator[tuple[list[Packed], int]]:
            for at in range(0, len(rows), batch):
                pictures = [pixels.packed(row) for row in rows[at : at + batch].tolist()]
                yield pictures, sum(stored.nbytes for stored, _ in pictures)

        what = f"a batch of {batch} pictures"
        return map(torch.tensor, self.cluster.map(self.work, batches(), what, gpus=self.share))


class SharedPixels:
    """Some pictures in the object store of a cluster, by their rows, as ``Pixels`` has them."""

    def __init__(self, cluster: Cluster, pixels: Pixels, rows: Ints) -> None:
        wanted = list(dict.fromkeys(rows.tolist()))
        chunks = [wanted[at : at + TOGETHER] for at in range(0, len(wanted), TOGETHER)]
        self._places = {row: (number, at) for number, chunk in enumerate(chunks) for at, row in enumerate(chunk)}
        self._chunks = cluster.shelf([pixels.packed(row) for row in chunk] for chunk in chunks)

    def __getitem__(self, row: int) -> Array:
        number, at = self._places[row]
        return unpacked(*self._chunks[number][at])


def share_of_gpu(cluster: Cluster) -> float:
    """The share of a GPU that a worker gets where the cluster has some; 0 where it has none."""
    per_gpu = min(max(cluster.cpus // max(cluster.gpus, 1), 1), MOST_PER_GPU)
    return 1 / per_gpu if cluster.gpus else 0.0


def _kind() -> str:
    return processor(torch.device("cpu"))
