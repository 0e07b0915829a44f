"""What a training is made of: its settings, resolved for one backbone, and what they are applied to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from headstart.base.arrays import Ints
from headstart.base.device import derived_seed
from headstart.base.sections import Finetune
from headstart.data.packed import Pixels
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.trunk import Trunk

LEAST_WARMUP = 40  # steps (bench/few_steps.py)
MOST_EPOCHS = 100  # from random weights

UNFROZEN = {"none": 0.0, "last": 0.25, "half": 0.5, "all": 1.0}  # of the blocks, from the output side


@dataclass(frozen=True)
class Recipe:
    """The settings, resolved for one backbone: what is trained, how long, how fast.

    From random weights there is one schedule, which the pipeline, tune and why share: small pictures, at which such a
    network learns as well and faster, and as many epochs as show it ``scratch_passes`` pictures, all of them, so that a
    small set is not held against it. The best on validation is taken, as always.

    Attributes:
        pictures: how many are trained on; only from random weights does something follow from it.
        repeat: the number of this training among ``finetune.repeats``, which differ by chance alone.
    """

    settings: Finetune
    scratch: bool
    seed: int
    pictures: int | None = None
    repeat: int = 1

    @property
    def own_seed(self) -> int:
        """Of the order of pictures, of random views and of whatever else is drawn in this repeat."""
        return self.seed if self.repeat == 1 else derived_seed(self.seed, self.repeat)

    @property
    def told(self) -> str:
        """What the training is called while it runs."""
        repeats = self.settings.repeats
        return "finetune" if repeats == 1 else f"finetune, repeat {self.repeat} of {repeats}"

    @property
    def epochs(self) -> int:
        if not self.scratch:
            return self.settings.epochs
        assert self.pictures, "from random weights the number of epochs follows from that of the pictures"
        return max(self.settings.scratch_epochs, min(MOST_EPOCHS, math.ceil(self.settings.scratch_passes / self.pictures)))

    @property
    def patience(self) -> int:
        return self.epochs if self.scratch else self.settings.patience

    def size_ratio(self, size: int) -> float:
        """Pixels to train at as a fraction of ``size``, the network's own."""
        ratio = self.settings.size_ratio
        return min(ratio, self.settings.scratch_size / size) if self.scratch else ratio

    @property
    def batch_norm_trained(self) -> bool:
        return self.scratch or self.settings.batch_norm == "trained"  # statistics of a random network mean nothing

    def blocks_unfrozen(self, trunk: Trunk) -> int:
        """How many blocks are trained, from the output side: all of a network that starts from random weights, since a
        layer that stays frozen would stay random."""
        return math.ceil((1.0 if self.scratch else UNFROZEN[self.settings.unfreeze]) * len(trunk.blocks()))

    def parameter_groups(self, model: Classifier) -> list[dict[str, Any]]:
        """AdamW's groups. Earlier blocks learn slower; biases and scales are not decayed."""
        s = self.settings
        blocks = model.trunk.blocks()
        unfrozen = blocks[len(blocks) - self.blocks_unfrozen(model.trunk) :]
        model.trunk.requires_grad_(False)
        rates: list[tuple[float, list[nn.Parameter]]] = [
            (s.scratch_lr if self.scratch else s.lr * s.layer_decay**depth, block)
            for depth, block in enumerate(reversed(unfrozen))
        ]
        rates.append((s.scratch_lr if self.scratch else s.head_lr, list(model.head.parameters())))
        groups = []
        for rate, parameters in rates:
            for decayed in (True, False):
                chosen = [p.requires_grad_(True) for p in parameters if (p.ndim > 1) == decayed]
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": s.weight_decay if decayed else 0.0})
        return groups

    def schedule(self, step: int, steps: int) -> float:
        """The factor on every rate: linear warm-up, and half a cosine down to zero from the end of its fraction on.

        Adam's first steps go by the sign of gradients that it has hardly seen (Liu et al. 2020, "On the variance of the
        adaptive learning rate and beyond"). So where there are few steps in all, none is taken at the full rate, unless
        there is nothing to lose.
        """
        warmup = max(1, round(self.settings.warmup * steps))
        least = 0 if self.scratch or not self.settings.warmup else LEAST_WARMUP
        rise = min(1.0, (step + 1) / max(warmup + 1, least))
        return rise * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class TrainingSetup:
    """What a training needs.

    Attributes:
        trunk, head: what it starts from. ``trunk`` becomes part of the trained classifier.
        pixels, manifest: the pictures, row by row; of the manifest the labels and ``split`` are read.
        engine: what runs the layers that stay frozen: torch, openvino or auto.
    """

    trunk: Trunk
    head: FittedHead
    pixels: Pixels
    manifest: pd.DataFrame
    recipe: Recipe
    device: torch.device
    engine: str = "auto"

    @cached_property
    def labels(self) -> Ints:
        """(N, ...) labels of all pictures, encoded."""
        return self.head.task.labels_of(self.manifest, self.head.classes)

    def rows(self, split: str) -> Ints:
        """Numbers of the pictures of one split."""
        return np.flatnonzero(self.manifest["split"] == split)
