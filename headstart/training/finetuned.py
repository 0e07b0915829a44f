"""What fine-tuning leaves behind: its files, and how they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.tensors import tensors_of
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.trunk import Trunk


def load_finetuned(folder: Path, trunk: Trunk, head: FittedHead) -> Classifier | None:
    """The fine-tuned classifier, or None where fine-tuning was off. ``trunk`` becomes part of it."""
    files = FinetuneFolder(folder)
    details = FinetuneDetails.read(files.details)
    if not details.ran:
        return None
    model = Classifier(trunk, head)
    with tensors_of(files.weights, details.made_by) as tensors:
        model.load_state_dict(tensors)
    trunk.view = replace(trunk.view, size=details.size)
    model.temperature = details.temperature
    return model


def load_val_logits(folder: Path) -> Tensor:
    """(N, classes) validation logits of the best epoch, before temperature."""
    with tensors_of(FinetuneFolder(folder).val_logits, FinetuneDetails.made_by) as tensors:
        return tensors["logits"]
