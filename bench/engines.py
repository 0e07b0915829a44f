"""What OpenVINO buys over eager torch for a frozen network on a CPU (headstart.engines).

    python bench/engines.py              # about four minutes on two quiet cores
    python bench/engines.py --rounds 9

Passes 256 pictures at 224 pixels through tf_efficientnet_lite0 and resnet18 with random weights, in batches of 64, with
both engines alternately and each time in a process of its own. Prints pictures per second for both (compiling not
counted), the seconds that compiling takes, and the ratio of each round as median (least–most).
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from _sides import alternate, spread

ENGINES = ("torch", "openvino")
NETWORKS = ("tf_efficientnet_lite0", "resnet18")
BATCH, SIZE, BATCHES = 64, 224, 4


def measure(wanted: str, threads: int | None) -> dict[str, float]:
    """Pictures per second through each network, the first batch left out, and the seconds it took to compile."""
    from headstart import compute
    from headstart.backbones import architecture
    from headstart.engines import engine_for

    device = compute.set_up(threads)
    import torch

    found = {}
    for name in NETWORKS:
        trunk = architecture(name).trunk().eval().requires_grad_(False)
        pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        engine, told = engine_for(trunk, BATCH * BATCHES, pictures, device, wanted)
        assert told["engine"] == wanted, told["why"]
        found[f"{name} seconds to compile"] = time.perf_counter() - start
        engine(pictures)
        start = time.perf_counter()
        for _ in range(BATCHES):
            engine(pictures)
        found[name] = BATCH * BATCHES / (time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--side", choices=ENGINES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measure(asked.side, asked.threads)))
        return
    threads = ["--threads", str(asked.threads)] if asked.threads else []
    rounds = alternate("engines.py", ENGINES, asked.rounds, *threads)
    for name in NETWORKS:
        eager, fast = ([found[side][name] for found in rounds] for side in ENGINES)
        compiling = median(found["openvino"][f"{name} seconds to compile"] for found in rounds)
        print(
            f"{name}: {median(eager):.0f} → {median(fast):.0f} pictures/s, ratio "
            f"{spread([f / e for e, f in zip(eager, fast, strict=True)])}, {len(rounds)} rounds; "
            f"compiled in {compiling:.1f} s"
        )


if __name__ == "__main__":
    main()
