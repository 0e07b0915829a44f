"""What torchrun starts in tests: small trainings, in as many processes as there are.

    torchrun --nproc-per-node 2 tests/training/together.py FOLDER NAME...

Each of ``TRAININGS`` goes from FOLDER/pictures to FOLDER/NAME. Where FOLDER/kill holds a number, the last process ends
itself in the middle of that epoch, once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from headstart.base.errors import run_cleanly
from headstart.data.packed import Pixels
from headstart.models.backbones import architecture
from headstart.training import distributed
from headstart.training.checkpoint import Row
from headstart.training.recipe import TrainingSetup
from headstart.training.repeats import finetune_repeatedly
from headstart.training.training_data import Batch, TrainingData
from tests.training.test_finetune import head, recipe

# Whatever differs from batch to batch, from picture to picture and from row to row.
NETWORK = """
import torch
from torch import nn
from torchvision.ops import StochasticDepth
class Net(nn.Module):
    input_size = 64
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2)
        )
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.depth = StochasticDepth(0.3, "row")
        self.never_used = nn.Linear(2, 2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3))
        self.fc = nn.Linear(8, num_classes)
    def forward(self, x):
        x = self.first(x)
        return self.fc(self.pool(self.third(x + self.depth(self.second(x)))))
def net(num_classes):
    return Net(num_classes)
"""
TRAININGS = {
    "frozen statistics": recipe(epochs=3, unfreeze="half"),
    "trained statistics": recipe(epochs=3, unfreeze="all", batch_norm="trained"),
    "stored views": recipe(epochs=3, unfreeze="last", views=2),
    "batches that do not divide": recipe(epochs=2, unfreeze="all", batch_size=7),
    "one batch of fewer pictures": recipe(epochs=2, unfreeze="all", batch_size=100),
    "random weights": recipe(scratch=True, scratch_epochs=3),
    "repeats": recipe(epochs=1, unfreeze="last", repeats=2),
}
KILLED = "frozen statistics"


def train(folder: Path, *names: str) -> None:
    with distributed.joined(threads=1) as device:
        for name in names:
            train_one(folder, name, device)


def train_one(folder: Path, name: str, device: torch.device, on_epoch: Callable[[Row], None] = lambda row: None) -> None:
    if (kill := folder / "kill").exists() and distributed.rank() == distributed.world() - 1:
        killed_in(int(kill.read_text()), kill)
    pixels, manifest = Pixels(folder / "pictures"), pd.read_csv(folder / "manifest.csv", dtype={"group": str})
    weighted = replace(head(), class_weight=(0.6, 1.4))
    trunk = architecture("net.py:net", folder / "net.py").trunk(seed=1)
    setup = TrainingSetup(trunk, weighted, pixels, manifest, TRAININGS[name], device, engine="torch")
    finetune_repeatedly(setup, folder / name, folder / "resume" / name, on_epoch, folder / "answers")


def killed_in(epoch: int, once: Path) -> None:
    """This process ends itself before the second batch of ``epoch``."""
    batches_of = TrainingData.epochs

    def until(batches: Iterator[Batch]) -> Iterator[Batch]:
        yield next(batches)
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def epochs(data: TrainingData, first: int) -> Iterator[Iterator[Batch]]:
        for number, batches in enumerate(batches_of(data, first), start=first):
            yield until(batches) if number == epoch else batches

    TrainingData.epochs = epochs  # type: ignore[method-assign]


if __name__ == "__main__":
    run_cleanly(lambda: train(Path(sys.argv[1]), *sys.argv[2:]))
