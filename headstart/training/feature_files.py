"""Features as the stage features has stored them. Apart from the code that makes them, so that those who only read them do
not depend on it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from headstart.base.artifacts import FeaturesFolder
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.device import precise
from headstart.base.tensors import tensors_of


def load_first_features(folder: Path, split: str, device: torch.device | str = "cpu") -> Tensor:
    """The (N, D) features of one split: of several networks side by side, those of the first one alone."""
    features, _ = load_features(folder, split, device)
    widths = FeaturesDetails.read(FeaturesFolder(folder).details).widths
    return features[:, : widths[0]] if widths else features


def load_features(folder: Path, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The (N, D) features and (N,) labels of one split, on ``device``, or where regressions on them can be fitted."""
    where = precise(torch.device(device))
    with tensors_of(FeaturesFolder(folder).split(split), "dvc repro features", where) as stored:
        return stored["features"], stored["labels"]


def training_and_validation(manifest: pd.DataFrame, folder: Path, device: torch.device) -> tuple[pd.DataFrame, Tensor]:
    """Their rows of the manifest, with its row numbers as the index, and in that order their (N, D) features."""
    splits = ("train", "val")
    rows = pd.concat([manifest[manifest["split"] == split] for split in splits])
    return rows, torch.cat([load_features(folder, split, device)[0] for split in splits])
