"""Fine-tuning on a Ray cluster, by Ray Train: the processes of ``training.distributed`` are its workers.

They read the project's folder and keep their checkpoint in it, so it has to be on a disk that all nodes share. Where a
worker or its node is lost, all of them are started again, and they go on after the last finished epoch. (Ray would do that
by itself, but also where a worker has said what is wrong.) What the first one says, and the rows of its curve, come back to
the process that the user started.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from headstart.base.cluster import KEPT, Cluster, Project
from headstart.base.errors import HeadstartError
from headstart.base.paths import state_folder
from headstart.base.safe_text import shortened
from headstart.base.terminal import say
from headstart.training.distributed import LONGEST_WAIT, RESTARTS, joined, rank

Row = dict[str, float]
Work = Callable[[torch.device, Callable[[Row], None]], None]  # takes what is called with each row of the curve

POLL_S = 0.2


def train_on(cluster: Cluster, processes: int, threads: int | None, work: Work, on_epoch: Callable[[Row], None]) -> None:
    """Call ``work`` in so many workers, and ``on_epoch`` here with what the first one calls its with.

    Raises:
        HeadstartError: a worker raised one, the cluster has too few processors or GPUs, or workers were lost too often.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

    there, what = (cluster.gpus, "GPUs") if cluster.gpus else (cluster.cpus, "processors")
    if processes > there:
        raise HeadstartError(
            f"finetune.processes is {processes}, and cluster {cluster.address} has {there} {what}; lower it, or add nodes"
        )
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # every change of its state
    heard = Queue(actor_options={"num_cpus": 0})

    def trainer() -> TorchTrainer:
        return TorchTrainer(
            _Worker(Project.here(), threads, work, heard),
            torch_config=TorchConfig(timeout_s=int(LONGEST_WAIT.total_seconds())),
            scaling_config=ScalingConfig(num_workers=processes, use_gpu=cluster.gpus > 0),
            run_config=RunConfig(storage_path=str(state_folder("ray"))),  # it gives each run a name of its own
        )

    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(heard, ended, on_epoch))
    listener.start()
    try:
        for left in reversed(range(RESTARTS + 1)):
            try:
                trainer().fit()
                break
            except TrainingFailedError as error:
                told = _told(error)
                if isinstance(told, HeadstartError):
                    raise HeadstartError(str(told)) from None
                if not left:
                    reason = shortened(" ".join(str(told).split()), 300)
                    raise HeadstartError(f"cluster {cluster.address}: fine-tuning has failed ({reason}); {KEPT}") from None
    finally:
        ended.set()
        listener.join()
        heard.shutdown()


def _listen(heard: Any, ended: threading.Event, on_epoch: Callable[[Row], None]) -> None:
    from ray.util.queue import Empty

    last = False
    while not last:
        last = ended.wait(POLL_S)
        with contextlib.suppress(Empty):
            while True:
                one = heard.get_nowait()
                on_epoch(one) if isinstance(one, dict) else say(one, flush=True)


@dataclass(frozen=True)
class _Worker:
    """What Ray Train calls in each worker, where it has set up the process group."""

    project: Project
    threads: int | None
    work: Work
    heard: Any

    def __call__(self) -> None:
        self.project.enter()
        with joined(self.threads) as device:
            if rank():
                self.work(device, lambda row: None)
            else:
                with contextlib.redirect_stdout(_Lines(self.heard)):
                    self.work(device, self.heard.put)


class _Lines(io.TextIOBase):
    """A stream that puts each line that is written into a queue."""

    def __init__(self, queue: Any) -> None:
        self.queue, self.begun = queue, ""

    def write(self, text: str) -> int:
        *whole, self.begun = (self.begun + text).split("\n")
        for line in whole:
            self.queue.put(line)
        return len(text)


def _told(error: Exception) -> Exception:
    """What a worker said, a sentence of headstart's rather than anything else."""
    failures = [*getattr(error, "worker_failures", {}).values(), error]
    causes = [getattr(failure, "base_exc", getattr(failure, "cause", failure)) for failure in failures]
    return next((cause for cause in causes if isinstance(cause, HeadstartError)), causes[0])
