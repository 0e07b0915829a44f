"""Features as the stage features has stored them. Apart from the code that makes them, so that those who only read them do
not depend on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from headstart.base.artifacts import FeaturesFolder
from headstart.base.tensors import tensors_of


def load_features(folder: Path, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The (N, D) features and (N,) labels of one split."""
    with tensors_of(FeaturesFolder(folder).split(split), "dvc repro features", device) as stored:
        return stored["features"], stored["labels"]
