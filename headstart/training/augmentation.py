"""Random views of the training pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from headstart.base.arrays import Ints
from headstart.base.device import derived_seed
from headstart.base.sections import Finetune
from headstart.data.packed import Pixels
from headstart.models.preprocessing import View
from headstart.models.task import SINGLE_LABEL, MultiLabel, Task
from headstart.models.trunk import Trunk

if TYPE_CHECKING:
    from torchvision.transforms import v2


# How a loader's process starts. Forked ones have all at once; macOS's libraries do not stand it, and Windows cannot.
START = "fork" if sys.platform == "linux" else "spawn"
LARGER = 1.25  # than the network sees it is a picture before it is cropped, where the view is of all of it
SIZE_STEP = 32  # most networks halve the picture five times


def wanted_size(size: int, ratio: float) -> int:
    """``ratio`` of ``size``, in whole steps of 32."""
    return size if ratio == 1 else max(SIZE_STEP, round(size * ratio / SIZE_STEP) * SIZE_STEP)


def train_size(trunk: Trunk, ratio: float) -> int:
    """Pixels to train at: ``wanted_size``, or the network's own where it takes no other (transformers that are built for
    one)."""
    wanted = wanted_size(trunk.view.size, ratio)
    if wanted == trunk.view.size:
        return wanted
    try:
        with torch.inference_mode():
            trunk.eval()(torch.zeros(1, 3, wanted, wanted))
    except (RuntimeError, AssertionError, ValueError):
        return trunk.view.size
    return wanted


class TrainingViews(Dataset[tuple[Tensor, Any]]):
    """Random views of the training pictures, by epoch and number; each depends on those, the seed, and nothing else."""

    def __init__(self, pixels: Pixels, rows: Ints, labels: Ints, transform: v2.Transform, seed: int) -> None:
        self.pixels, self.rows, self.labels = pixels, rows, labels
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, Any]:
        epoch, number = at
        # In a loader's process, whose generator is its own. torch.manual_seed would seed accelerators too, and note where
        # it was called from: a tenth of all the work.
        torch.default_generator.manual_seed(derived_seed(self.seed, epoch, number))
        picture = torch.from_numpy(np.array(self.pixels[int(self.rows[number])])).permute(2, 0, 1)
        return self.transform(picture), self.labels[number]

    def all(self, epoch: int, batch: int, first: int = 0, loaders: int = 1) -> Iterator[Tensor]:
        """(N, 3, size, size) uint8, batch by batch: the views of one epoch in the order of the rows, from ``first`` on."""
        order = [(epoch, number) for number in range(first, len(self))]
        yield from (
            p for p, _ in DataLoader(self, batch, sampler=order, num_workers=loaders, multiprocessing_context=START)
        )


class _Shown(nn.Module):
    """(3, H, W) uint8 → (3, size, size) uint8, as a view has it."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    def forward(self, picture: Tensor) -> Tensor:
        return torch.from_numpy(self.view(picture.permute(1, 2, 0).numpy())).permute(2, 0, 1)

    def extra_repr(self) -> str:
        return str(self.view)


def augmentation(settings: Finetune, view: View, task: Task = SINGLE_LABEL) -> v2.Transform:
    """(3, H, W) uint8 → (3, size, size) uint8.

    There are no random crops where pictures have several labels: one could cut off what a label is of.
    """
    from torchvision.transforms import v2

    steps: list[nn.Module] = []
    if settings.augment == "none" or isinstance(task, MultiLabel):
        steps.append(_Shown(view))
    else:
        if view.frame != "centre":
            steps.append(_Shown(replace(view, size=round(LARGER * view.size))))
        scale = (settings.crop_min, 1.0)
        steps.append(v2.RandomResizedCrop(view.size, scale=scale, ratio=(3 / 4, 4 / 3), antialias=True))
    if settings.hflip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.augment == "light":
        steps += [v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3)], p=0.8), v2.RandomApply([v2.RandomRotation(10)], p=0.3)]
    if settings.augment == "trivial":
        steps.append(v2.TrivialAugmentWide())
    return v2.Compose(steps)
