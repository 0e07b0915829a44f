"""Features as the stage features has stored them. Apart from the code that makes them, so that those who only read them do
not depend on it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headstart.base.artifacts import FeaturesFolder
from headstart.base.errors import HeadstartError


def load_features(folder: Path, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The (N, D) features and (N,) labels of one split."""
    try:
        stored = load_file(FeaturesFolder(folder).split(split), device=str(device))
        return stored["features"], stored["labels"]
    except (OSError, KeyError, SafetensorError) as error:
        raise HeadstartError(f"{folder} has no features of {split} ({error}); run `dvc repro features`") from None
