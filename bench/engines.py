"""What OpenVINO buys over eager torch for a frozen network on a CPU, and from how much work on (headstart.engines).

    python bench/engines.py              # about four minutes on two quiet cores
    python bench/engines.py --rounds 9

Passes 256 pictures at 224 pixels through tf_efficientnet_lite0 and resnet18 with random weights, in batches of 64, with all
engines alternately and each time in a process of its own; OpenVINO in bfloat16 too, where the processor multiplies it
itself. Prints pictures per second (preparing not counted) and the ratio of each round as median (least–most). Then, of the
medians, the seconds that preparing takes, with all comparisons, and from how many pictures and GMACs on they are earned
back: what the limits in headstart/engines/openvino.py stand for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

from _sides import measured, report

ENGINES = ("torch", "openvino")
BF16 = "openvino bf16"
NETWORKS = ("tf_efficientnet_lite0", "resnet18")
BATCH, SIZE, BATCHES = 64, 224, 4


def measure(wanted: str, threads: int | None) -> dict[str, float]:
    from headstart.engines.select import engine_for

    def made(trunk: Any, pictures: Any) -> Any:
        engine, told = engine_for(trunk, BATCH * BATCHES, pictures, pictures.device, wanted)
        assert told.engine == wanted, told.why
        return engine

    def rounded(trunk: Any, pictures: Any) -> Any:
        """As engine_for does it, whatever comes of the comparison: features of random weights prove nothing."""
        import torch

        from headstart.engines.openvino import OpenVINO
        from headstart.engines.select import PROBED, objection_to

        prepared = OpenVINO().prepare(trunk, pictures, pictures.device)
        exact, forward = prepared("fp32"), prepared("bf16")
        sample = pictures.repeat(PROBED // BATCH, 1, 1, 1)
        objection_to(forward(sample), exact(sample), torch.arange(PROBED) % 10)
        return forward

    return through(rounded if wanted == BF16 else made, threads)


def through(made: Callable[[Any, Any], Any], threads: int | None) -> dict[str, float]:
    """Pictures per second through what ``made`` makes of each network, without the first batch, and the seconds it took."""
    from headstart.base import device
    from headstart.models.backbones import architecture
    from headstart.models.complexity import gmacs

    device.set_up(threads)
    import torch

    found = {}
    for name in NETWORKS:
        trunk = architecture(name).trunk().eval().requires_grad_(False)
        pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        found[f"{name} GMACs"] = gmacs(trunk, SIZE)
        start = time.perf_counter()
        engine = made(trunk, pictures)
        found[f"{name} seconds to compile"] = time.perf_counter() - start
        engine(pictures)
        start = time.perf_counter()
        for _ in range(BATCHES):
            engine(pictures)
        found[name] = BATCH * BATCHES / (time.perf_counter() - start)
    return found


def earned_back(name: str, rounds: list[dict[str, dict[str, float]]], slow: str, fast: str) -> str:
    """From how much work on ``fast`` is done sooner than ``slow``, by the medians."""
    before, after = (median(found[side][name] for found in rounds) for side in (slow, fast))
    ready = f"{name} seconds to compile"
    seconds = median(found[fast][ready] - found[slow][ready] for found in rounds)
    if after <= before:
        return f"{name}: {fast} is not faster than {slow}"
    pictures = seconds / (1 / before - 1 / after)
    work = pictures * rounds[0][fast][f"{name} GMACs"]
    return (
        f"{name}: {fast} is ready {seconds:.1f} s after {slow}, earned back after {pictures:.0f} pictures, {work:.0f} GMACs"
    )


if __name__ == "__main__":
    from headstart.base.device import multiplies_bf16

    sides = (*ENGINES, BF16) if multiplies_bf16() else ENGINES
    _, rounds = measured(__doc__, sides, lambda side, asked: measure(side, asked.threads), 5, {"threads": None})
    for name in NETWORKS:
        for slow, fast in pairwise(sides):
            before, after = ([found[side][name] for found in rounds] for side in (slow, fast))
            report(f"engines: {name}" + ("" if fast in ENGINES else ", bf16"), before, after, "pictures/s", (slow, fast))
            print(earned_back(name, rounds, slow, fast))
