"""What OpenVINO buys over eager torch for a frozen network on a CPU (headstart.engines.select).

    python bench/engines.py              # about four minutes on two quiet cores
    python bench/engines.py --rounds 9

Passes 256 pictures at 224 pixels through tf_efficientnet_lite0 and resnet18 with random weights, in batches of 64, with
both engines alternately and each time in a process of its own. Prints pictures per second for both (compiling not
counted), the seconds that compiling takes, and the ratio of each round as median (least–most).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from _sides import compare

ENGINES = ("torch", "openvino")
NETWORKS = ("tf_efficientnet_lite0", "resnet18")
BATCH, SIZE, BATCHES = 64, 224, 4


def measure(wanted: str, threads: int | None) -> dict[str, float]:
    from headstart.engines.select import engine_for

    def made(trunk: Any, pictures: Any) -> Any:
        engine, told = engine_for(trunk, BATCH * BATCHES, pictures, pictures.device, wanted)
        assert told["engine"] == wanted, told["why"]
        return engine

    return through(made, threads)


def through(made: Callable[[Any, Any], Any], threads: int | None) -> dict[str, float]:
    """Pictures per second through what ``made`` makes of each network, without the first batch, and the seconds it took."""
    from headstart.base import device
    from headstart.models.backbones import architecture

    device.set_up(threads)
    import torch

    found = {}
    for name in NETWORKS:
        trunk = architecture(name).trunk().eval().requires_grad_(False)
        pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        engine = made(trunk, pictures)
        found[f"{name} seconds to compile"] = time.perf_counter() - start
        engine(pictures)
        start = time.perf_counter()
        for _ in range(BATCHES):
            engine(pictures)
        found[name] = BATCH * BATCHES / (time.perf_counter() - start)
    return found


if __name__ == "__main__":
    rounds = compare(__doc__, ENGINES, measure, NETWORKS)
    for name in NETWORKS:
        seconds = median(found["openvino"][f"{name} seconds to compile"] for found in rounds)
        print(f"{name}: compiled in {seconds:.1f} s")
