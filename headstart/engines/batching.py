"""How many pictures pass through a network at once."""

from __future__ import annotations

import torch
from torch import nn

from headstart.base.device import memory
from headstart.models.preprocessing import View

LARGEST_BATCH = 64
LARGEST_ON_GPU = 256  # of fewer, starting the kernels takes much of the time

MEMORY_SHARE = 0.25


def inference_batch(network: nn.Module, view: View, device: torch.device) -> int:
    """How many pictures to pass at once: 64, on a GPU 256, or the largest power of two whose activations fit in a quarter
    of all memory.

    The sum of all layers' outputs for one picture is several times what a forward pass holds at one time. All memory, and
    not what is free just now: in other batches the same pictures have other last digits, and a machine that works on
    something else beside it has to give the same bytes.
    """
    per_picture = 0

    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal per_picture
        if isinstance(output, torch.Tensor):
            per_picture += output.numel() * output.element_size()

    handles = [m.register_forward_hook(add) for m in network.modules() if not any(m.children())]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, *view.shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    _, all_memory = memory(device)
    batch = LARGEST_BATCH if device.type == "cpu" else LARGEST_ON_GPU
    while batch > 1 and batch * per_picture > all_memory * MEMORY_SHARE:
        batch //= 2
    return batch
