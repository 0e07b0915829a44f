"""How far a training has come, in memory and in the file that it resumes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headstart.base.files import replacing
from headstart.base.kept import is_whole, seal
from headstart.base.terminal import say
from headstart.training.network import TrainedNetwork
from headstart.training.recipe import Recipe

STATE = "epoch.pt"  # in the folder of a training that can be resumed

SAVES = 20  # times that the state of a training is saved at most: of a hundred short epochs, writing it takes a third

KEPT = 3  # epochs whose weights may be averaged at the end

Row = dict[str, float]  # of the curve


@dataclass(frozen=True)
class KeptEpoch:
    """One of the epochs with the lowest validation log-loss so far.

    Attributes:
        weights: what the training has changed of the averaged classifier's state, on the CPU.
    """

    epoch: int
    log_loss: float
    weights: dict[str, Tensor]


class Checkpoint:
    """The curve, the best epochs, and the file that holds them with all that is needed to go on.

    Attributes:
        curve: one row per finished epoch.
        best: ``KEPT`` of them at most, the best first.
    """

    def __init__(self, file: Path, network: TrainedNetwork, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Read ``file``, where there is one and it is whole, into the network and the optimizer."""
        self.file, self.network, self.optimizer = file, network, optimizer
        self.curve: list[Row] = []
        self.best: list[KeptEpoch] = []
        if is_whole(file):
            state = torch.load(file, weights_only=True, map_location=device)
            network.classifier.load_state_dict(state["model"])
            network.average.load_state_dict(state["averaged"])
            optimizer.load_state_dict(state["optimizer"])
            self.curve, self.best = state["curve"], [KeptEpoch(**kept) for kept in state["best"]]
            say(f"finetune: going on after epoch {len(self.curve)}, which an earlier run finished")

    def finished(self, recipe: Recipe) -> bool:
        """Whether all epochs are done, or ``finetune.patience`` is at its end."""
        best = self.best[0].epoch if self.best else 0
        return len(self.curve) >= recipe.epochs or len(self.curve) - best >= recipe.patience

    def add(self, row: Row) -> None:
        """Add an epoch's row; where it is one of the best, keep its weights."""
        self.curve.append(row)
        loss = row["val_log_loss"]
        if len(self.best) < KEPT or loss < self.best[-1].log_loss:
            kept = KeptEpoch(len(self.curve), loss, self.network.averaged_state())
            self.best = sorted([*self.best, kept], key=lambda epoch: epoch.log_loss)[:KEPT]

    def save(self) -> None:
        state = {
            "model": self.network.classifier.state_dict(),
            "averaged": self.network.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": self.curve,
            "best": [vars(kept) for kept in self.best],
        }
        with replacing(self.file) as part:
            torch.save(state, part)
            seal(part)
