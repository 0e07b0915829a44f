"""A classifier as it is trained: the frozen part run by an engine, the rest by torch, and a moving average beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headstart.base.artifacts.engine import EngineChoice
from headstart.base.device import seed_everything
from headstart.engines.base import Forward
from headstart.engines.batching import inference_batch
from headstart.engines.select import engine_for
from headstart.models.classifier import Classifier
from headstart.models.graph import fold_batch_norm, split_frozen
from headstart.models.preprocessing import Normalise
from headstart.training.recipe import TrainingSetup

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FrozenPart:
    """Normalisation, and the layers below the first one that is trained.

    Attributes:
        layers: those layers, or None where none can be taken off.
        engine: (N, 3, size, size) uint8 pictures → activations, what the trained layers take.
        choice: which engine that is, and why.
        shape: of one picture's activations.
    """

    layers: nn.Module | None
    engine: Forward
    choice: EngineChoice
    shape: tuple[int, ...]


class TrainedNetwork:
    """A classifier in training.

    Attributes:
        classifier: the whole of it.
        start: its state before the training, on the CPU.
        parameter_groups: for AdamW.
        average: the exponential moving average of its weights and buffers; its ``module`` is a classifier too.
        frozen: what is below the trained layers.
        trained, averaged: activations → logits, by the weights of ``classifier`` and of ``average``. Batch-norm with frozen
            statistics is folded into convolutions.
        eval_batch: how many pictures to pass at once without gradients.
    """

    def __init__(self, setup: TrainingSetup, sample: Tensor) -> None:
        """
        Args:
            sample: (N, 3, size, size) uint8 pictures on which engines are compared.
        """
        self.classifier = _starting_point(setup)
        self.start = {key: value.detach().cpu().clone() for key, value in self.classifier.state_dict().items()}
        self.parameter_groups = setup.recipe.parameter_groups(self.classifier)
        decay = _moving_average(setup.recipe.settings.ema)
        self.average = AveragedModel(self.classifier, multi_avg_fn=decay, use_buffers=True)
        self.eval_batch = inference_batch(self.classifier.eval(), setup.trunk.view, setup.device)
        shadow: Classifier = self.average.module  # type: ignore[assignment]
        self.frozen, (self.trained, self.averaged) = _split(setup, [self.classifier, shadow], sample.to(setup.device))

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged classifier's state, copied to the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self.average.module.state_dict().items()}

    def to_train_mode(self, batch_norm: bool) -> None:
        """Set the trained layers to train; batch-norm uses and updates its statistics only if ``batch_norm``."""
        self.trained.train()
        if not batch_norm:
            for module in self.trained.modules():
                if isinstance(module, BATCH_NORM):
                    module.eval()


def _starting_point(setup: TrainingSetup) -> Classifier:
    # A calibrated start: the head's logits divided by its temperature, so that the first gradients are not those of an
    # over-confident classifier.
    start = setup.head.module.with_logits_divided(setup.head.temperature)
    seed_everything(setup.recipe.seed)
    classifier = Classifier(setup.trunk, replace(setup.head, module=start, temperature=1.0))
    if setup.recipe.scratch:
        classifier.head.reset_parameters()
    return classifier.to(setup.device).to(memory_format=torch.channels_last)


def _split(setup: TrainingSetup, classifiers: Sequence[Classifier], sample: Tensor) -> tuple[FrozenPart, list[nn.Module]]:
    """The frozen part, which all ``classifiers`` share, and what is trained of each."""
    normalise = Normalise(setup.trunk.view).to(setup.device)
    parts = [split_frozen(classifier.eval().trunk, normalise(sample[:2])) for classifier in classifiers]
    layers: nn.Module | None = None
    engine: Forward = normalise
    choice = EngineChoice(engine="torch", why="no part of the network can be taken off as frozen")
    if parts[0]:
        layers = parts[0][0]
        passes = len(setup.rows("train")) * setup.recipe.epochs + len(setup.rows("val"))
        engine, choice = engine_for(nn.Sequential(normalise, layers).eval(), passes, sample, setup.device, setup.engine)
    activations = engine(sample[:2])
    trained = [part[1].eval() if part else c.trunk for part, c in zip(parts, classifiers, strict=True)]
    if not setup.recipe.batch_norm_trained:
        trained = [fold_batch_norm(part, activations) for part in trained]
    with_heads: list[nn.Module] = [nn.Sequential(part, c.head) for part, c in zip(trained, classifiers, strict=True)]
    return FrozenPart(layers, engine, choice, tuple(activations.shape[1:])), with_heads


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that starts short, so that the first epochs are not mostly the starting point."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = float(count)
        if averaged[0].is_floating_point():  # AveragedModel hands over one kind of tensor at a time
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)  # type: ignore[no-untyped-call]
        else:
            for target, source in zip(averaged, current, strict=True):
                target.copy_(source)

    return update
