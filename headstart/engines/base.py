"""What an engine is: one way to run a frozen network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]  # (N, 3, H, W) pictures → what the network makes of them
Precision = Literal["fp32", "bf16"]


class Engine(ABC):
    """One way to run a frozen network. ``select.ENGINES`` holds one of each kind.

    Attributes:
        name: what ``features.engine`` in params.yaml calls it.
        pays_from: how much work, in GMACs of all pictures together, makes up for preparing it: from there on ``auto``
            takes it. Infinite: only when it is asked for by name.
    """

    name: str
    pays_from: float = math.inf

    def runs_on(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def bf16_pays_from(self, device: torch.device) -> float:
        """How much work, in GMACs, makes up for checking that bfloat16 is as good. Infinite: it is not tried."""
        return math.inf

    @abstractmethod
    def prepare(self, network: nn.Module, sample: Tensor, device: torch.device) -> Callable[[Precision], Forward]:
        """What makes a forward pass of ``network`` for a precision; one without bfloat16 is asked for fp32 only.

        Args:
            network: in eval mode, on ``device``; its output is one tensor.
            sample: (N, 3, H, W) of the pictures that will come.

        Raises:
            Exception: it cannot take this network.
        """
