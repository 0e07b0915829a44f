"""The machine: device, threads, determinism, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from headstart.base.threads import cores

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def set_up(threads: int | None) -> torch.device:
    """Fix the thread count, ask for deterministic kernels, and return the device to work on.

    The same number of threads gives the same bytes on the same kind of processor; another number sums in another order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    _keep_freed_memory()
    threads = threads or cores()
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's and SciPy's BLAS, which scikit-learn works with
    # use_deterministic_algorithms(True, warn_only=True), without its import of torch's compiler, which takes seconds.
    torch.set_deterministic_debug_mode("warn")
    # Deterministic mode also fills every new tensor with NaN, for code that reads what it never wrote. Nothing here does,
    # and on a CPU the filling is a fifth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # by default a GPU rounds what is called float32
    return accelerator() or torch.device("cpu")


def accelerator() -> torch.device | None:
    """The kind of GPU, of whatever make, that torch can use here."""
    return torch.accelerator.current_accelerator(check_available=True)


def accelerator_name() -> str | None:
    """What it is called."""
    device = accelerator()
    return processor(device) if device else None


def precise(device: torch.device) -> torch.device:
    """Where regressions are fitted, which take float64: ``device``, or the CPU where it has none, as Apple's GPUs."""
    return torch.device("cpu") if device.type == "mps" else device


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Torch works with one thread in here, and so do threads that begin here; yields how many it had before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Have glibc keep the blocks of freed activations for the next batch instead of giving them back to the kernel.

    By default every large tensor is a fresh mapping whose pages the kernel clears at first touch; on two cores that is a
    third of all time (bench/allocator.py). Huge pages make what is left of it cheaper. Elsewhere than on Linux with glibc
    nothing is changed.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def faster_in_bf16(device: torch.device) -> bool:
    """Whether a network takes less time under autocast than without: on GPUs that multiply bfloat16 numbers themselves. Not
    on a CPU, even one that does: with AMX fine-tuning took 638 s in bfloat16, and 349 s in float32. Of Apple's GPUs it is
    not known."""
    return device.type == "xpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))


def processor(device: torch.device) -> str:
    """The kind of processor: on another kind the same sums are made in another order. "x86_64 AVX2" for example,
    "x86_64 AVX512 +bf16 +AMX", or the GPU's name or kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    amx = torch.cpu.get_capabilities().get("amx_bf16")
    return kind + (" +bf16" if multiplies_bf16() else "") + (" +AMX" if amx else "")


def made_on(device: torch.device) -> dict[str, Any]:
    """What the last digits of a result depend on, besides its inputs: written beside it, and no dependency of any stage."""
    return {"processor": processor(device), "threads": torch.get_num_threads()}


def seed_everything(*parts: int) -> None:
    """Seed torch's generators from several numbers, such as the seed and the epoch."""
    torch.manual_seed(derived_seed(*parts))


def derived_seed(*parts: int) -> int:
    value = 0
    for part in parts:
        value = (value * 1_000_003 + part + 1) % (2**63 - 1)
    return value


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes free, and in all, on the device or in main memory, which Apple's GPUs share."""
    if device.type not in ("cpu", "mps"):
        return torch.accelerator.get_memory_info(device)
    import psutil

    main = psutil.virtual_memory()
    return main.available, main.total
