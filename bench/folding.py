"""What it buys to fold frozen batch-norm into the convolutions while training (headstart.models.graph.fold_batch_norm).

    python bench/folding.py              # about three minutes on two quiet cores
    python bench/folding.py --rounds 9

A training step (batches of 32 at 224 pixels, batch-norm statistics frozen) of the whole tf_efficientnet_lite0 and of the
whole resnet18, random weights, batch-norm as it comes and folded. The two take turns step by step in one process, since two
processes differ by more than what is measured; each round is a process. Prints pictures per second for both, and the ratio
of each round as median (least–most).
"""

from __future__ import annotations

import time
from statistics import median

from _sides import measured, report

SEPARATE, FOLDED = "separate", "folded"
NETWORKS = ("tf_efficientnet_lite0", "resnet18")
BATCH, SIZE, STEPS = 32, 224, 6


def measure(threads: int | None) -> dict[str, float]:
    """Pictures per second of a training step of each network, both ways, the first steps left out."""
    from headstart.base import device
    from headstart.models.backbones import architecture
    from headstart.models.graph import fold_batch_norm

    device.set_up(threads)
    import torch

    rates = {}
    for name in NETWORKS:
        network: torch.nn.Module = architecture(name).trunk().eval()
        pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        ways = {SEPARATE: network, FOLDED: fold_batch_norm(network, pictures[:2])}
        assert ways[FOLDED] is not network
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)  # both ways have the same parameters
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(STEPS + 1):
            for way, rearranged in ways.items():
                start = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                rearranged(pictures).square().mean().backward()
                optimizer.step()
                seconds[way].append(time.perf_counter() - start)
        rates |= {f"{name} {way}": BATCH / median(taken[1:]) for way, taken in seconds.items()}
    return rates


if __name__ == "__main__":
    _, rounds = measured(__doc__, ("by turns",), lambda side, asked: measure(asked.threads), 5, {"threads": None})
    for name in NETWORKS:
        before, after = ([found["by turns"][f"{name} {way}"] for found in rounds] for way in (SEPARATE, FOLDED))
        report(f"folding: {name}", before, after, "pictures/s", (SEPARATE, FOLDED))
