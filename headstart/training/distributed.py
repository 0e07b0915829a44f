"""One training in several processes: each takes its share of every batch, and all of them take the same step.

What comes out does not depend on how many there are, but for the order in which sums are made. A batch is the one that a
single process would have, and its pictures are shared out by position. Views are drawn by picture. Dropout and stochastic
depth are drawn for the whole batch, of which each process takes its own rows. Batch norm that is trained has the statistics
of the whole batch. Gradients are averaged by torch's DistributedDataParallel, over gloo on CPUs and NCCL on GPUs.

All processes do the same; the first one writes the files and talks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.progress import hidden
from headstart.base.terminal import say
from headstart.base.threads import cores

LONGEST_WAIT = timedelta(days=1)  # while the first one runs the frozen layers; the end of a process is noticed at once
RESTARTS = 3  # of processes that something killed

DROPOUTS = {functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d}


def world() -> int:
    """How many processes share this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0 on."""
    return dist.get_rank() if world() > 1 else 0


# --- starting ---------------------------------------------------------------------------------------------------------


def is_started() -> bool:
    """Whether this is one of several processes that torchrun, or what works like it, has started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def launch(processes: int) -> None:
    """Run the script of this process in so many of them, as torchrun does on one machine, and wait for their end. Where one
    is killed, all start again.

    Raises:
        SystemExit: one of them failed, and has said why.
        HeadstartError: they were killed again and again.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _mute_torchelastic()
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="finetune", max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        for left in reversed(range(RESTARTS + 1)):
            try:
                elastic_launch(config, sys.executable)(*sys.argv)
                return
            except SignalException:
                raise KeyboardInterrupt from None
            except ChildFailedError as failed:
                _, first = failed.get_first_failure()
                if first.exitcode >= 0:
                    raise SystemExit(first.exitcode) from None
                killed = f"one of the {processes} processes that train was killed by signal {-first.exitcode}"
                if not left:
                    raise HeadstartError(
                        f"{killed}, for the {RESTARTS + 1}th time; if memory is short, lower finetune.processes or "
                        "finetune.batch_size, and run it again: finished epochs are kept"
                    ) from None
                say(f"finetune: {killed}; all go on after the last finished epoch", file=sys.stderr)


def _mute_torchelastic() -> None:
    """Its log says in many lines what is said here in one."""
    import logging

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def joined(threads: int | None) -> Iterator[torch.device]:
    """In here this process is one of those that were started together, if it was; yields the device to work on.

    Processes of one machine share its threads, and each has an accelerator of its own, where there are any. If one fails,
    the others end too, and one of them says why.

    Raises:
        HeadstartError: there are fewer accelerators than processes, or another process is gone.
    """
    if not is_started():
        yield set_up(threads)
        return
    device = _own_device(threads)
    if dist.is_initialized():  # as Ray Train has it, which notices the end of a process too
        with silent() if rank() else contextlib.nullcontext():
            yield device
        return
    store, number, count = next(rendezvous("env://"))
    # torchrun's store outlives its processes: those that it starts again must not look for those that are gone.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=LONGEST_WAIT)
    try:
        with silent() if number else contextlib.nullcontext():
            yield device
        dist.destroy_process_group()
    except KeyboardInterrupt:  # which whoever started all of them has seen too
        raise SystemExit(130) from None
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # the store may be gone with the process that had it
            if store.add("failed", 1) > 1:
                raise SystemExit(1) from None
        raise explained(error) from error


def explained(error: Exception) -> Exception:
    """``error``, or a sentence in its place where it is that another process is gone."""
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return HeadstartError(
            f"another of the {world()} processes that train together is gone; run it again: finished epochs are kept"
        )
    return error


def _own_device(threads: int | None) -> torch.device:
    here, number = (int(os.environ.get(name) or default) for name, default in (("LOCAL_WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = set_up(max(1, (threads or cores()) // here))
    if device.type == "cpu":
        return device
    if here > (count := torch.accelerator.device_count()):
        raise HeadstartError(
            f"{here} processes would share {count} {device.type} devices; start at most one for each device"
        )
    torch.accelerator.set_device_index(number)
    return torch.device(device.type, number)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing is printed in here."""
    with open(os.devnull, "w") as nowhere, hidden(), contextlib.redirect_stderr(nowhere):  # noqa: PTH123 - no path
        yield


# --- working together -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process is in here before all others: they find the files that it has left."""
    if rank():
        dist.barrier()
    yield
    if world() > 1 and not rank():
        dist.barrier()


def own(items: Sequence[Any]) -> Sequence[Any]:
    """The share of this process: of ``world()`` items each has one."""
    return items[rank() :: world()]


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes. Gradients flow through it: for all of them the loss is the sum of all losses."""
    found: Tensor = _Summed.apply(tensor) if world() > 1 else tensor
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _Summed.forward(_, gradients[0])


def least(value: int, device: torch.device) -> int:
    """The least of the processes' values."""
    if world() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def averaging(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` so that a backward pass leaves the mean of all processes' gradients."""
    if world() == 1:
        return network
    return DistributedDataParallel(
        network,
        device_ids=None if device.type == "cpu" else [device],
        forward_sync_buffers=False,  # each calculates the same statistics
        static_graph=True,  # parameters that nothing is made of get no gradient, as in one process
    )


class WholeBatch(TorchFunctionMode):
    """In here a forward pass over the share of this process does what it would as a part of the whole batch.

    Dropout, and what ``Tensor.bernoulli_`` fills (which is how stochastic depth is drawn), are drawn for the whole batch.
    Batch norm that is trained takes its statistics from it.

    Args:
        whole: pictures in the batch.
        mine: pictures in this process's share.
    """

    def __init__(self, whole: int, mine: int) -> None:
        super().__init__()
        self.whole, self.mine = whole, mine

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func is Tensor.bernoulli_ and args[0].ndim and len(args[0]) % self.mine == 0:
            return args[0].copy_(self._rows(self._like(args[0]).bernoulli_(*args[1:], **kwargs)))
        if func is functional.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _like(self, tensor: Tensor) -> Tensor:
        """As ``tensor``, for the whole batch: in the same order in memory, in which random numbers are drawn."""
        shape = (len(tensor) // self.mine * self.whole, *tensor.shape[1:])
        order = torch.channels_last if tensor.ndim == 4 and not tensor.is_contiguous() else torch.contiguous_format
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=order)

    def _rows(self, whole: Tensor) -> Tensor:
        """Of the whole batch those of this process; a picture may have several, such as a transformer's windows."""
        return whole.view(self.whole, -1, *whole.shape[1:])[rank() :: world()].flatten(0, 1)

    def _dropout(
        self, func: Callable[..., Tensor], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0 or len(x) % self.mine:
            return func(x, p, training, inplace)
        return x * self._rows(func(self._like(x.detach()).fill_(1), p, True))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        others, shape = [n for n in range(x.ndim) if n != 1], [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] // self.mine * self.whole
        exact = x.float()
        mean = summed(exact.sum(others)) / count
        centred = exact - mean.view(shape)
        variance = summed(centred.square().sum(others)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
        found = centred * scale.view(shape)
        return (found if bias is None else found + bias.view(shape)).to(x.dtype)
