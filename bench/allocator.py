"""What it buys to keep freed activations in the process (headstart.base.device._keep_freed_memory).

    python bench/allocator.py            # about two minutes on two quiet cores
    python bench/allocator.py --rounds 9

A frozen pass (batches of 64 at 224 pixels) and a training step (batches of 32 at 160 pixels) of tf_efficientnet_lite0 with
random weights, with the allocator as glibc ships it and with headstart's setting, alternately and each time in a process of
its own. Prints pictures per second for both, and the ratio of each round as median (least–most).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from _sides import compare

SHIPPED, KEPT = "shipped", "kept"
WORK = {"frozen pass": (64, 224, 3), "training step": (32, 160, 5)}  # pictures, pixels, repeats


def measure(side: str, threads: int | None) -> dict[str, float]:
    """Pictures per second of each kind of work, the first batch left out."""
    from headstart.base import device

    if side == SHIPPED:
        device._keep_freed_memory = lambda: None
    device.set_up(threads)
    import torch

    from headstart.models.backbones import architecture

    trunk = architecture("tf_efficientnet_lite0").trunk()
    optimizer = torch.optim.AdamW(trunk.parameters(), fused=True)

    def frozen(pictures: torch.Tensor) -> None:
        with torch.inference_mode():
            trunk.eval()(pictures)

    def step(pictures: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        trunk.train()(pictures).square().mean().backward()
        optimizer.step()

    rates = {}
    todo: dict[str, Callable[[torch.Tensor], None]] = {"frozen pass": frozen, "training step": step}
    for name, work in todo.items():
        batch, size, repeats = WORK[name]
        seconds = []
        for _ in range(repeats + 1):
            # A fresh tensor each time, as a loader gives one.
            pictures = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
            start = time.perf_counter()
            work(pictures)
            seconds.append(time.perf_counter() - start)
        rates[name] = batch / median(seconds[1:])
    return rates


if __name__ == "__main__":
    compare(__doc__, (SHIPPED, KEPT), measure, list(WORK))
