"""A classifier as it is trained: the frozen part run by an engine, the rest by torch, and a moving average beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headstart.base.arrays import Ints
from headstart.base.artifacts.engine import EngineChoice
from headstart.base.artifacts.finetune import PrecisionChoice
from headstart.base.device import faster_in_bf16, seed_everything
from headstart.base.terminal import say
from headstart.engines.base import Forward
from headstart.engines.batching import inference_batch
from headstart.engines.select import AGREEMENT, LOG_LOSS, PROBED, engine_for
from headstart.models.classifier import Classifier
from headstart.models.graph import fold_batch_norm, split_frozen
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import Task
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
        precision: what the trained layers calculate in while they are trained; validation is always in fp32.
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
        decay = _moving_average(setup.recipe.settings.ema, lambda: int(self.average.n_averaged))
        self.average = AveragedModel(self.classifier, multi_avg_fn=decay, use_buffers=True)
        self.eval_batch = inference_batch(self.classifier.eval(), setup.trunk.view, setup.device)
        shadow: Classifier = self.average.module  # type: ignore[assignment]
        self.frozen, (self.trained, self.averaged) = _split(setup, [self.classifier, shadow], sample.to(setup.device))
        self.precision = _precision(setup, self)

    def autocast(self, rounded: bool) -> torch.autocast:
        """Within it the trained layers calculate in bfloat16, where ``rounded``."""
        return torch.autocast(next(self.classifier.parameters()).device.type, torch.bfloat16, enabled=rounded)

    def averaged_state(self) -> dict[str, Tensor]:
        """What training has changed of the averaged classifier's state, copied to the CPU; the rest is as in ``start``."""
        state = {key: value.detach().cpu() for key, value in self.average.module.state_dict().items()}
        return {key: value.clone() for key, value in state.items() if not torch.equal(value, self.start[key])}

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
    seed_everything(setup.recipe.own_seed)
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


def _precision(setup: TrainingSetup, network: TrainedNetwork) -> PrecisionChoice:
    wanted, faster = setup.recipe.settings.precision, faster_in_bf16(setup.device)
    if wanted != "auto":
        if wanted == "bf16" and setup.device.type == "cpu":
            say(
                "finetune.precision: bf16 takes longer than fp32 on a CPU; it is used since you ask for it", file=sys.stderr
            )
        return PrecisionChoice(precision=wanted, why="params.yaml asks for it")
    if not faster:
        what = "a CPU" if setup.device.type == "cpu" else "this GPU, as far as is known"
        return PrecisionChoice(precision="fp32", why=f"bfloat16 takes longer on {what}")
    val = setup.rows("val")
    rows = val[np.unique(np.linspace(0, len(val) - 1, PROBED).astype(int))]
    exact: list[Tensor] = []
    rounded: list[Tensor] = []
    with torch.no_grad():
        for _, pictures in batches(setup.trunk.view, setup.pixels, rows.tolist(), network.eval_batch):
            activations = network.frozen.engine(pictures.to(setup.device))
            for answers, in_bf16 in ((exact, False), (rounded, True)):
                with network.autocast(in_bf16):
                    answers.append(network.trained(activations).float().cpu())
    objection = _objection(torch.cat(rounded), torch.cat(exact), setup.labels[rows], setup.head.task)
    if objection:
        say(f"bfloat16 is not used: {objection}")
        return PrecisionChoice(precision="fp32", why=f"bfloat16 was tried and refused: {objection}")
    return PrecisionChoice(precision="bf16", why=f"answers stay the same on {len(rows)} validation pictures")


def _objection(found: Tensor, expected: Tensor, labels: Ints, task: Task) -> str | None:
    """What speaks against logits ``found`` in place of ``expected``, with the limits that hold for engines; None where
    nothing does."""
    before, after = (task.predict(logits) for logits in (expected, found))
    same = float((before == after).float().mean())  # of several labels, each class of each picture
    if same < AGREEMENT:
        return f"{same:.1%} of the answers stay the same, and {AGREEMENT:.0%} is required"
    before_loss, after_loss = (task.losses(logits.numpy(), labels).mean() for logits in (expected, found))
    moved = float(abs(after_loss - before_loss))
    if not moved <= LOG_LOSS:
        return f"the log-loss moves by {moved:.3f}, and {LOG_LOSS:g} is allowed"
    return None


def _moving_average(decay: float, steps: Callable[[], int]) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that starts short, so that the first epochs are not mostly the starting point.

    Args:
        steps: how many it is of. AveragedModel says so too, but on the GPU, which would have to be waited for.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = float(steps())
        if averaged[0].is_floating_point():  # AveragedModel hands over one kind of tensor at a time
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)  # type: ignore[no-untyped-call]
        else:
            for target, source in zip(averaged, current, strict=True):
                target.copy_(source)

    return update
