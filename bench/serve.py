"""`headstart serve` under load: pictures per second against the engine alone, the time to an answer, and memory.

    python bench/serve.py                # about eight minutes on two quiet cores
    python bench/serve.py --requests 1000

64 clients send 64 JPEGs of 400×300 pixels (tf_efficientnet_lite0 with random weights), each the next when its last is
answered, on the same cores. The engine's bare rate is that on full batches of 32 pictures that are decoded and cut to size
already, in another process. Prints both rates and their ratio in each round, the 50th and 99th percentile of the time to an
answer with 64 clients and with a single one, and the server's anonymous memory (RssAnon) after a tenth of the requests and
after all.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from _serving import CLIENTS, WARM_UP, bare_rate, fill, free_port, headstart, jpegs, load, percentile, running
from _sides import measured, report
from growth import memory

SIDES = ("bare engine", "served")
ALONE = 100  # requests of a single client


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    model = asked.folder / "model"
    if side == "bare engine":
        return {"rate": bare_rate(model)}
    port, files = free_port(), jpegs()
    with running(*headstart(model, port), port=port) as server:
        load(port, "/predict", "image/jpeg", files, WARM_UP)
        start = time.perf_counter()
        seconds = load(port, "/predict", "image/jpeg", files, asked.requests // 10)
        early = memory(server.pid, "RssAnon")
        seconds += load(port, "/predict", "image/jpeg", files, asked.requests - len(seconds))
        rate, late = asked.requests / (time.perf_counter() - start), memory(server.pid, "RssAnon")
        alone = load(port, "/predict", "image/jpeg", files, ALONE, clients=1)
    return {
        "rate": rate, "p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99), "early": early / 1e6,
        "late": late / 1e6, "alone p50": percentile(alone, 0.5), "alone p99": percentile(alone, 0.99),
    }  # fmt: skip


if __name__ == "__main__":
    asked, rounds = measured(__doc__, SIDES, measure, 3, {"requests": 10_000}, lambda asked: fill(asked.folder))
    report("serve", *([found[side]["rate"] for found in rounds] for side in SIDES), "pictures/s", SIDES)
    served = {name: median(found["served"][name] for found in rounds) for name in rounds[0]["served"]}
    print(f"{CLIENTS} clients: half of the answers within {served['p50']:.2f} s, 99 of 100 within {served['p99']:.2f} s")
    print(f"a single one: half within {served['alone p50']:.3f} s, 99 of 100 within {served['alone p99']:.3f} s")
    print(f"memory: {served['early']:.0f} MB after {asked.requests // 10:,} requests, {served['late']:.0f} MB after all")
