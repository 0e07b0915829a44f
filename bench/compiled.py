"""What torch.compile would buy: against OpenVINO, for a frozen network on a CPU. It is why headstart does not use it.

    python bench/compiled.py             # about two minutes a round on two quiet cores; needs a C++ compiler

As bench/engines.py, with torch.compile, its weights frozen, in the place of eager torch. Prints pictures per second for
both, the seconds until each has answered its first batch (torch.compile) or is compiled and compared (OpenVINO), and the
ratio of each round as median (least–most).
"""

from __future__ import annotations

from statistics import median
from typing import Any

from _sides import compare
from engines import NETWORKS, through
from engines import measure as measure_engine

COMPILED, OPENVINO = "torch.compile", "openvino"


def measure(side: str, threads: int | None) -> dict[str, float]:
    import torch

    def made(trunk: Any, pictures: Any) -> Any:
        compiled = torch.compile(trunk, options={"freezing": True})

        def run(batch: Any) -> Any:
            with torch.no_grad():
                return compiled(batch)

        run(pictures)
        return run

    return through(made, threads) if side == COMPILED else measure_engine(side, threads)


if __name__ == "__main__":
    rounds = compare(__doc__, (COMPILED, OPENVINO), measure, NETWORKS)
    for name in NETWORKS:
        ready = (median(found[side][f"{name} seconds to compile"] for found in rounds) for side in (COMPILED, OPENVINO))
        print(f"{name}: ready after {' and '.join(f'{seconds:.1f}' for seconds in ready)} s")
