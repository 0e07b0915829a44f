"""What it buys to fold frozen batch-norm into the convolutions while training (headstart.surgery.fold_batch_norm).

    python bench/folding.py              # about two minutes on two quiet cores
    python bench/folding.py --rounds 9

A training step (batches of 32 at 224 pixels, batch-norm statistics frozen) of the whole tf_efficientnet_lite0 and of the
whole resnet18, random weights, batch-norm as it comes and folded, alternately and each time in a process of its own.
Prints pictures per second for both, and the ratio of each round as median (least–most).
"""

from __future__ import annotations

import time
from statistics import median

from _sides import compare

SEPARATE, FOLDED = "separate", "folded"
NETWORKS = ("tf_efficientnet_lite0", "resnet18")
BATCH, SIZE, STEPS = 32, 224, 4


def measure(side: str, threads: int | None) -> dict[str, float]:
    """Pictures per second of a training step of each network, the first left out."""
    from headstart import compute
    from headstart.backbones import architecture
    from headstart.surgery import fold_batch_norm

    compute.set_up(threads)
    import torch

    rates = {}
    for name in NETWORKS:
        network: torch.nn.Module = architecture(name).trunk().eval()
        pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        if side == FOLDED:
            network = fold_batch_norm(network, pictures[:2])
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        seconds = []
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            network(pictures).square().mean().backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        rates[name] = BATCH / median(seconds[1:])
    return rates


if __name__ == "__main__":
    compare(__doc__, (SEPARATE, FOLDED), measure, NETWORKS)
