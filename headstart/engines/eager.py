"""torch as an engine: it runs every network on every device, and is what the other engines have to agree with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from headstart.base.device import faster_in_bf16
from headstart.engines.base import Engine, Forward, Precision


class Torch(Engine):
    name = "torch"
    pays_from = 0.0

    def runs_on(self, device: torch.device) -> bool:
        return True

    def bf16_pays_from(self, device: torch.device) -> float:
        return 0.0 if faster_in_bf16(device) else math.inf

    def prepare(self, network: nn.Module, sample: Tensor, device: torch.device) -> Callable[[Precision], Forward]:
        # no_grad and not inference_mode, whose tensors no training may start from.
        def exact(batch: Tensor) -> Tensor:
            with torch.no_grad():
                output: Tensor = network(batch.to(device, non_blocking=True))
            return output

        def rounded(batch: Tensor) -> Tensor:
            """bfloat16 where that is the faster way, and float32 where it has to be."""
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                output: Tensor = network(batch.to(device, non_blocking=True))
            return output.float()

        return lambda precision: exact if precision == "fp32" else rounded
