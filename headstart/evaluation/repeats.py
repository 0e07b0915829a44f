"""What each of several trainings with other seeds reaches: how far they lie apart is the chance in training."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.metrics import Name, Repeats
from headstart.data.packed import Pixels
from headstart.engines.batching import inference_batch
from headstart.evaluation.metrics import Scores, metrics_of
from headstart.models.classifier import FittedHead
from headstart.models.trunk import Trunk
from headstart.training.finetuned import load_finetuned, load_val_logits

Logits = dict[str, Tensor]  # by split, (N, classes), calibrated


def logits_of_repeats(
    data: DataFolder, trunk: Trunk, head: FittedHead, pixels: Pixels, rows: list[int], device: torch.device
) -> Iterator[Logits]:
    """Of the validation and the test pictures, training by training; none where there was one training only.

    Args:
        trunk: of the network that was trained, as it was before.
        rows: of the test pictures.
    """
    details = FinetuneDetails.read(data.finetune.details)
    for number in range(1, details.repeats.count + 1 if details.repeats else 1):
        folder = data.finetune.repeat(number)
        model = load_finetuned(folder, deepcopy(trunk), head)
        assert model is not None
        model.eval().to(device)
        batch = inference_batch(model, model.trunk.view, device)
        found = {"val": load_val_logits(folder), "test": torch.cat(list(model.logits_of(pixels, rows, batch, device)))}
        yield {split: each.double() / model.temperature for split, each in found.items()}


def measured_repeats(data: DataFolder, scores: dict[Name, list[dict[str, Scores]]]) -> Repeats | None:
    """What metrics.json holds.

    Args:
        scores: of each training, by classifier and split.
    """
    details = FinetuneDetails.read(data.finetune.details)
    if details.repeats is None:
        return None
    each: dict[Name, dict[str, dict[str, list[float]]]] = {
        name: {split: _figures([one[split] for one in of_name]) for split in of_name[0]} for name, of_name in scores.items()
    }
    return Repeats(count=details.repeats.count, kept=details.repeats.kept, each=each)


def _figures(scores: list[Scores]) -> dict[str, list[float]]:
    every = np.arange(len(scores[0].labels))
    return {metric.name: [metric.measure(one, every) for one in scores] for metric in metrics_of(scores[0].task)}
