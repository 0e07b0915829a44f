"""What fine-tuning leaves behind: its files, and how they are read."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pandas as pd
from torch import Tensor

from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.tensors import tensors_of
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.trunk import Trunk, beside


def load_finetuned(folder: Path, trunk: Trunk, head: FittedHead) -> Classifier | None:
    """The fine-tuned classifier, or None where fine-tuning was off. ``trunk`` becomes part of it.

    Args:
        head: of this kind is the classifier's.
    """
    files = FinetuneFolder(folder)
    details = FinetuneDetails.read(files.details)
    if not details.ran:
        return None
    trunk.view = replace(trunk.view, size=details.size)
    trunks = [trunk, *(deepcopy(trunk) for _ in range(details.networks - 1))]
    with tensors_of(files.weights, details.made_by) as tensors:
        of_head = {key.removeprefix("head."): value for key, value in tensors.items() if key.startswith("head.")}
        module = type(head.module).from_state(of_head)
        model = Classifier(reduce(beside, trunks), replace(head, module=module, temperature=details.temperature))
        model.load_state_dict(tensors)
    return model


def load_val_logits(folder: Path) -> Tensor:
    """(N, classes) validation logits of the best epoch, before temperature."""
    with tensors_of(FinetuneFolder(folder).val_logits, FinetuneDetails.made_by) as tensors:
        return tensors["logits"]


def curve_of(folder: Path) -> list[dict[str, float]]:
    """The rows of the curve, one for each epoch."""
    rows = pd.read_csv(FinetuneFolder(folder).curve).to_dict("records")
    return [{str(name): float(value) for name, value in row.items()} for row in rows]
