"""What fine-tuning leaves behind: its files, and how they are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json
from headstart.models.backbones import Trunk
from headstart.models.classifier import Classifier, FittedHead

WEIGHTS, DETAILS, CURVE, VAL_LOGITS = "weights.safetensors", "finetune.json", "curve.csv", "val_logits.safetensors"


def load_finetuned(folder: Path, trunk: Trunk, head: FittedHead) -> Classifier | None:
    """The fine-tuned classifier, or None where fine-tuning was off. ``trunk`` becomes part of it."""
    try:
        details = read_json(folder / DETAILS)
        if not details["ran"]:
            return None
        model = Classifier(trunk, head)
        model.load_state_dict(load_file(folder / WEIGHTS))
        trunk.view = replace(trunk.view, size=details["size"])
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise HeadstartError(f"{folder} holds no fine-tuned network ({error}); run `dvc repro finetune`") from None
    model.temperature = details["temperature"]
    return model


def load_val_logits(folder: Path) -> Tensor:
    """(N, classes) validation logits of the best epoch, before temperature."""
    return load_file(folder / VAL_LOGITS)["logits"]
