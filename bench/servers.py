"""Which server for the packaged classifier? Three that exist, beside the engine alone.

    python bench/servers.py              # about six minutes on two quiet cores
    python bench/servers.py --requests 3000

The same model (tf_efficientnet_lite0, random weights) gets the same 64 JPEGs of 400×300 pixels as base64 in JSON, from 64
clients at the same time, each of which sends the next when its last is answered:

- headstart: `headstart serve`: FastAPI on uvicorn, one process, batches of at most 32;
- litserve: LitServe, with the same engine in a worker process, batches of at most 32 and the same 5 ms to wait;
- mlflow: `mlflow models serve` with one worker, which answers one request after the other, as eager torch does.

The clients run on the same cores. Prints pictures per second, as a ratio to the engine's rate on full batches of pictures
that are decoded and cut to size already, and for each the 99th percentile of the time to an answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from _serving import WARM_UP, as_json, bare_rate, fill, free_port, headstart, load, percentile, running
from _sides import measured, report

SIDES = ("bare engine", "headstart", "litserve", "mlflow")


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    """Pictures per second, and seconds to the answer in 99 of 100 cases."""
    model = asked.folder / "model"
    if side == "bare engine":
        return {"rate": bare_rate(model)}
    port = free_port()
    command = {
        "headstart": headstart(model, port),
        "litserve": [sys.executable, str(Path(__file__).with_name("_litserve.py")), str(model), str(port)],
        "mlflow": [
            sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port),
            "--workers", "1",
        ],
    }[side]  # fmt: skip
    path, bodies = ("/invocations", as_json(None)) if side == "mlflow" else ("/predict", as_json())
    with running(*command, port=port):
        load(port, path, "application/json", bodies, WARM_UP)
        start = time.perf_counter()
        seconds = load(port, path, "application/json", bodies, asked.requests)
        return {"rate": asked.requests / (time.perf_counter() - start), "p99": percentile(seconds, 0.99)}


if __name__ == "__main__":
    _, rounds = measured(__doc__, SIDES, measure, 3, {"requests": 1000}, lambda asked: fill(asked.folder))
    bare = [found[SIDES[0]]["rate"] for found in rounds]
    for side in SIDES[1:]:
        report(f"servers: {side}", bare, [found[side]["rate"] for found in rounds], "pictures/s", (SIDES[0], side))
        print(f"{side}: 99 of 100 requests answered in {median(found[side]['p99'] for found in rounds):.2f} s")
