"""A trunk with a head and a temperature: what fine-tuning trains, what is evaluated and what is packaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.models.heads import ClassifierHead, LinearHead
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import SINGLE_LABEL, Task

if TYPE_CHECKING:
    from headstart.models.trunk import Trunk

ENSEMBLE_SHARES = (0.5, 0.25, 0.75)  # of the first of two classifiers; the simplest comes first


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
        for _, pictures in batches(self.trunk.view, pixels, rows, batch):
            with torch.inference_mode():
                yield network(pictures.to(device)).float().cpu()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities, (N, classes)."""
        return self.task.probabilities(logits / self.temperature)


def averaged_head(
    heads: Sequence[tuple[Tensor, Tensor]], temperatures: Sequence[float], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one linear head on the features of several networks, side by side, whose answers are the weighted
    mean of theirs in log-probabilities; its temperature is 1.

    Such a mean of log-probabilities is, up to a number that the softmax takes out again, the weighted sum of the logits.

    Args:
        heads: of each network, its (classes, D) weight and (classes,) bias.
        temperatures: of each.
        shares: of each; they add up to 1.
    """
    factors = [share / temperature for share, temperature in zip(shares, temperatures, strict=True)]
    pairs = list(zip(factors, heads, strict=True))
    weight = torch.cat([(factor * weight.double()).float() for factor, (weight, _) in pairs], dim=1)
    bias = torch.stack([factor * bias.double() for factor, (_, bias) in pairs]).sum(0).float()
    return weight, bias


def averaged(first: Classifier, second: Classifier, share: float) -> Classifier:
    """The ensemble of two classifiers with linear heads as one classifier, ``share`` being that of the first."""
    from headstart.models.trunk import beside

    weight, bias = averaged_head(
        [(model.head.last.weight.detach(), model.head.last.bias.detach()) for model in (first, second)],
        [first.temperature, second.temperature],
        [share, 1 - share],
    )
    head = FittedHead(LinearHead.of(weight, bias), 1.0, first.classes, task=first.task)
    return Classifier(beside(first.trunk, second.trunk), head)
