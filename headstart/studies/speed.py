"""How fast a network is on this machine: pictures per second, and the time that a step of fine-tuning takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from headstart.base.arrays import Ints
from headstart.base.device import faster_in_bf16
from headstart.base.measurements import seconds
from headstart.engines.select import SAMPLE, engine_for
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.graph import fold_batch_norm, split_frozen
from headstart.models.heads import LinearHead
from headstart.models.preprocessing import Normalise
from headstart.models.trunk import Trunk, feature_width
from headstart.training.augmentation import train_size
from headstart.training.features import FeatureExtractor
from headstart.training.recipe import Recipe

MANY = 1_000_000  # pictures, for which any engine is worth compiling: what is measured is speed once it runs
STEP = 8  # pictures in the training step that is timed


def images_per_s(extractor: FeatureExtractor, rows: Ints, wanted: str) -> float:
    """How many pictures a second the engine does that a long pass would be made with."""
    few = extractor.at_once(rows[:SAMPLE])
    forward, _ = engine_for(extractor.network, MANY, few, extractor.device, wanted)
    return len(few) / seconds(lambda: forward(few).cpu())


def training_seconds(trunk: Trunk, classes: Sequence[str], recipe: Recipe, device: torch.device) -> float:
    """Seconds that fine-tuning takes for one picture in one epoch: a step's, without decoding and validation.

    The layers that stay frozen run in torch here, where fine-tuning may find them a faster engine. Where bfloat16 is
    faster, ``auto`` is taken to find its answers the same.
    """
    trunk.view = replace(trunk.view, size=train_size(trunk, recipe.settings.size_ratio))
    shape = len(classes), feature_width(trunk)
    head = FittedHead(LinearHead.of(torch.zeros(shape), torch.zeros(len(classes))), 1.0, tuple(classes))
    model = Classifier(trunk, head).to(device).to(memory_format=torch.channels_last).eval()
    optimizer, loss_of = torch.optim.AdamW(recipe.parameter_groups(model), fused=True), head.task.training_loss()
    pictures = torch.zeros(STEP, 3, trunk.view.size, trunk.view.size, dtype=torch.uint8, device=device)
    labels = torch.zeros(STEP, dtype=torch.int64, device=device)
    normalise = Normalise(trunk.view).to(device)
    parts = split_frozen(model.trunk, normalise(pictures[:2]))
    below = nn.Sequential(normalise, parts[0]) if parts else normalise
    above = parts[1] if parts else model.trunk
    if not recipe.batch_norm_trained:
        above = fold_batch_norm(above, below(pictures[:2]))

    precision = recipe.settings.precision
    in_bf16 = precision == "bf16" or (precision == "auto" and faster_in_bf16(device))

    def step() -> None:
        with torch.no_grad():
            seen = below(pictures)
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            loss = loss_of(model.head(above(seen)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()  # an accelerator is done when the answer is here

    return seconds(step) / STEP
