"""How OpenMP's threads wait for each other: spinning, libgomp's default, or passively, ours (headstart.base.threads).

    python bench/waiting.py              # about ten minutes on two quiet cores
    python bench/waiting.py --rounds 3

The head's whole path of strengths on 3,000 × 1,280 features, and training steps of tf_efficientnet_lite0 (random weights,
32 pictures of 224 pixels, all layers), both ways alternately and each time in a process of its own, with all cores: first
with nothing beside, then with as many busy processes beside as there are cores. Prints seconds for both and the ratio of
each round as median (least–most); below 1 passive waiting is the faster one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from _sides import measured, report

SPINNING, PASSIVE = "spinning", "passive"
HEAD, TRAINING = "head", "three training steps"
ROWS, WIDTH, CLASSES = 3000, 1280, 10
STRENGTHS = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]
BATCH, SIZE, STEPS = 32, 224, 3


@contextmanager
def busy(processes: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(side: str) -> dict[str, float]:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    from headstart.base.threads import cores, wait_passively

    if side == PASSIVE:
        wait_passively()
    from headstart.base.device import set_up

    set_up(None)
    tasks = {HEAD: head(), TRAINING: training()}
    found = {}
    for name, task in tasks.items():
        task()  # the first sets things up
        for beside, processes in (("idle", 0), ("busy", cores())):
            with busy(processes):
                start = time.perf_counter()
                task()
                found[f"{name}, {beside}"] = time.perf_counter() - start
    return found


def head() -> Callable[[], object]:
    import torch

    from headstart.models.logistic import fit_path

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    centres = 0.15 * torch.randn(CLASSES, WIDTH, generator=generator)
    features = centres[labels] + torch.randn(ROWS, WIDTH, generator=generator)
    return lambda: list(fit_path(features, labels, CLASSES, STRENGTHS))


def training() -> Callable[[], None]:
    import torch

    from headstart.models.backbones import architecture

    trunk = architecture("tf_efficientnet_lite0").trunk().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(trunk.parameters(), fused=True)
    pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            trunk(pictures).square().mean().backward()
            optimizer.step()

    return steps


if __name__ == "__main__":
    sides = (SPINNING, PASSIVE)
    _, rounds = measured(__doc__, sides, lambda side, asked: measure(side), 5, {})
    for name in rounds[0][PASSIVE]:
        before, after = ([found[side][name] for found in rounds] for side in sides)
        report(f"waiting: {name}", before, after, "s", sides)
