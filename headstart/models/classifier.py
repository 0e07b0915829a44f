"""A trunk with a head and a temperature: what fine-tuning trains, what is evaluated and what is packaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.models.calibration import averaged_head
from headstart.models.heads import ClassifierHead, LinearHead
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import SINGLE_LABEL, Task

if TYPE_CHECKING:
    from headstart.models.trunk import Trunk


@dataclass(frozen=True)
class FittedHead:
    """A head on a trunk's raw features, and what belongs to it.

    Attributes:
        module: features → logits, the standardisation folded in.
        temperature: logits are divided by it before they become probabilities.
        classes: names, in the order of the logits.
        class_weight: (classes,) weights of the loss, or None.
        task: what its logits mean.
    """

    module: ClassifierHead
    temperature: float
    classes: tuple[str, ...]
    class_weight: tuple[float, ...] | None = None
    task: Task = SINGLE_LABEL

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) → (N, classes), before temperature."""
        with torch.no_grad():
            logits: Tensor = self.module(features)
        return logits


class Classifier(nn.Module):
    """(N, 3, H, W) normalised pictures → (N, classes) logits, before temperature."""

    def __init__(self, trunk: Trunk, head: FittedHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = type(head.module).from_state(head.module.state_dict())
        self.temperature = head.temperature
        self.classes = head.classes
        self.task = head.task

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(pictures))
        return logits

    def logits_of(self, pixels: Any, rows: Sequence[int], batch: int, device: torch.device) -> Iterator[Tensor]:
        """Logits of the pictures ``rows``, batch by batch, on the CPU."""
        network = nn.Sequential(Normalise(self.trunk.view).to(device), self)
        for _, pictures in batches(self.trunk.view, pixels, rows, batch, device):
            with torch.inference_mode():
                yield network(pictures.to(device)).float().cpu()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities, (N, classes)."""
        return self.task.probabilities(logits / self.temperature)


def averaged(models: Sequence[Classifier], shares: Sequence[float]) -> Classifier:
    """The ensemble of classifiers with linear heads as one classifier; the ``shares`` of all add up to 1."""
    from headstart.models.trunk import beside

    heads = [(model.head.last.weight.detach().numpy(), model.head.last.bias.detach().numpy()) for model in models]
    weight, bias = map(torch.from_numpy, averaged_head(heads, [model.temperature for model in models], shares))
    head = FittedHead(LinearHead.of(weight, bias), 1.0, models[0].classes, task=models[0].task)
    return Classifier(reduce(beside, [model.trunk for model in models]), head)
