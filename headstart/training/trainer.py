"""finetune: from the chosen head on, train the layers that params.yaml unfreezes.

The head is trained first, on frozen features, and fine-tuning starts from it: LP-FT (Kumar et al. 2022, "Fine-tuning can
distort pretrained features and underperform out-of-distribution"). At the end the trained weights are mixed with those
they started from, as far as validation asks for (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"): on a
few hundred pictures a network learns noise too, and its start has none of it. Before that, the weights of the best epochs
are averaged as long as validation does not get worse (a greedy soup: Wortsman et al. 2022, "Model soups"), and the best one
alone is a candidate beside them. The fine-tuned network is evaluated and
used at the size it was trained at: a mismatch (Touvron et al. 2019, "Fixing the train-test resolution discrepancy")
costs more here than fine-tuning gains.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails, Mixture
from headstart.base.device import made_on, seed_everything
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, write_rows
from headstart.base.progress import progress
from headstart.base.terminal import say
from headstart.engines.select import SAMPLE
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.preprocessing import batches
from headstart.models.task import Task
from headstart.training import distributed
from headstart.training.augmentation import train_size, wanted_size
from headstart.training.checkpoint import SAVES, STATE, Checkpoint, Row
from headstart.training.linear_probe import within_one_standard_error
from headstart.training.network import TrainedNetwork
from headstart.training.recipe import TrainingSetup
from headstart.training.training_data import Batch, TrainingData

MIXTURES = (0.5, 0.75, 1.0)  # share of the trained weights in the final ones; the rest is the start's


def finetune(
    setup: TrainingSetup,
    folder: Path,
    resume: Path,
    on_epoch: Callable[[Row], None] = lambda row: None,
    cache: Path | None = None,
) -> None:
    """Train, average the best epochs as validation asks for, calibrate, and write weights, details and curve to ``folder``.

    After every epoch, or every few of very many, the whole state goes to ``resume``; a run that finds it there goes on from
    it and ends with the same bytes as one that was never stopped. It is removed at the end.

    Where several processes train together (``training.distributed``), each calls this, and the first one writes.

    Args:
        on_epoch: called with each epoch's row of the curve, for live tracking; also with those of resumed epochs.
        cache: the folder for activations of frozen layers, which other trainings on the same views use too; ``resume``
            otherwise.
    """
    trunk, recipe = setup.trunk, setup.recipe
    size, ratio = trunk.view.size, recipe.size_ratio(trunk.view.size)
    trunk.view = replace(trunk.view, size=train_size(trunk, ratio))
    if trunk.view.size != wanted_size(size, ratio):
        say(f"finetune: the network takes pictures of {size} pixels only, and is trained on those", file=sys.stderr)
    _, sample = next(batches(trunk.view, setup.pixels, setup.rows("val")[:SAMPLE].tolist(), SAMPLE))
    network = TrainedNetwork(setup, sample)
    data = TrainingData(setup, network, cache or resume)
    trainer = Trainer(setup, network, data)
    with distributed.first_alone():
        checkpoint = Checkpoint(resume / STATE, network, trainer.optimizer, setup.device)
    if distributed.least(len(checkpoint.curve), setup.device) != len(checkpoint.curve):
        raise HeadstartError(f"{resume} is not the same for all processes; the project must be on a disk that they share")
    for row in checkpoint.curve:
        on_epoch(row)
    epochs = data.epochs(len(checkpoint.curve) + 1)
    while not checkpoint.finished(recipe):
        epoch = len(checkpoint.curve) + 1
        train_loss = trainer.train_epoch(epoch, next(epochs))
        logits = trainer.validation_logits(network.averaged)
        row = {"epoch": epoch, "train_loss": train_loss} | _validation(logits.numpy(), data.val_labels, setup.head.task)
        _check_finite(row["val_log_loss"], epoch)
        checkpoint.add(row)
        if distributed.rank() == 0 and epoch % max(1, recipe.epochs // SAVES) == 0:
            checkpoint.save()
        on_epoch(row)
        say(
            f"{recipe.told}: epoch {epoch}/{recipe.epochs}, training loss {train_loss:.3f}, validation log-loss "
            f"{row['val_log_loss']:.3f}, accuracy {row['val_accuracy']:.3f}",
            flush=True,
        )
    _write(setup, trainer, checkpoint, folder)
    if distributed.rank() == 0:
        shutil.rmtree(resume, ignore_errors=True)


class Trainer:
    """Epochs of training, and answers in between."""

    def __init__(self, setup: TrainingSetup, network: TrainedNetwork, data: TrainingData) -> None:
        self.setup, self.network, self.data = setup, network, data
        self.trained = distributed.averaging(network.trained, setup.device)
        self.optimizer = torch.optim.AdamW(network.parameter_groups, fused=True)
        self.rates = [group["lr"] for group in network.parameter_groups]
        given = setup.head.class_weight
        weight = torch.tensor(given, device=setup.device) if given else None
        self.loss = setup.head.task.training_loss(weight, setup.recipe.settings.label_smoothing)

    def train_epoch(self, epoch: int, batches: Iterable[Batch]) -> float:
        """Train for one epoch; the mean loss.

        Raises:
            HeadstartError: the loss is no finite number.
        """
        recipe, steps = self.setup.recipe, self.data.steps
        self.network.to_train_mode(recipe.batch_norm_trained)
        seed_everything(recipe.own_seed, epoch)
        losses = []
        share = 1 / recipe.epochs / recipe.settings.repeats
        with progress(f"{recipe.told} {epoch}/{recipe.epochs}", steps * self.data.batch, share=share) as advance:
            for step, (activations, labels) in enumerate(batches, start=(epoch - 1) * steps):
                factor = recipe.schedule(step, recipe.epochs * steps)
                losses.append(self._step(activations, labels.to(self.setup.device), factor))
                advance(self.data.batch)
        mean = float(distributed.summed(torch.stack(losses)).mean())
        _check_finite(mean, epoch)
        return mean

    def _step(self, activations: Tensor, labels: Tensor, factor: float) -> Tensor:
        """One step of the optimizer, at ``factor`` times the rates; the loss before it, or this process's share of it."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        with self.network.autocast(self.network.precision.precision == "bf16"):
            loss = self._loss(activations, labels)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * distributed.world()).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.network.average.update_parameters(self.network.classifier)
        return loss.detach()

    def _loss(self, activations: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch; of several processes each has the part that its pictures have in that."""
        if distributed.world() == 1:
            alone: Tensor = self.loss(self.trained(activations), labels)
            return alone
        with distributed.WholeBatch(self.data.batch, len(labels)):
            logits = self.trained(activations)
        weight = getattr(self.loss, "weight", None)  # of the classes, by which cross-entropy's mean is weighted
        counted = torch.tensor(float(len(labels)), device=logits.device) if weight is None else weight[labels].sum()
        part: Tensor = self.loss(logits, labels) * (counted / distributed.summed(counted))
        return part

    def validation_logits(self, trained: nn.Module) -> Tensor:
        """(N, classes) logits of the validation pictures, on the CPU.

        Args:
            trained: activations → logits: ``trained`` or ``averaged`` of the network.
        """
        trained.eval()
        logits = torch.zeros(len(self.data.val_rows), len(self.setup.head.classes), device=self.setup.device)
        with torch.no_grad():
            for pictures, activations in self.data.validation():
                logits[pictures] = trained(activations).float()
        return distributed.summed(logits).cpu()


@dataclass(frozen=True)
class _Candidate:
    """Weights that training may end with.

    Attributes:
        epochs: whose weights are averaged in ``weights``.
        share: of those in the final ones.
        logits: of the validation pictures.
    """

    epochs: list[int]
    share: float
    weights: dict[str, Tensor]
    logits: Tensor


def _write(setup: TrainingSetup, trainer: Trainer, checkpoint: Checkpoint, folder: Path) -> None:
    """Average epochs, and mix their weights with the start's, as validation asks for; calibrate, and write all files."""
    network, labels, task = trainer.network, trainer.data.val_labels, setup.head.task
    best = checkpoint.best[0]

    def logits_of(weights: dict[str, Tensor]) -> Tensor:
        network.classifier.load_state_dict(weights)
        return trainer.validation_logits(network.trained)

    def loss_of(weights: dict[str, Tensor]) -> float:
        return float(calibrated_losses(logits_of(weights).numpy(), labels, task).mean())

    states = [network.start | {key: value.cpu() for key, value in kept.weights.items()} for kept in checkpoint.best]
    taken, soup = greedy_soup(states, loss_of)
    trained: dict[tuple[int, ...], dict[str, Tensor]] = {(best.epoch,): states[0]}
    if len(taken) > 1:  # the most averaged one first: in that order the rule below prefers them
        trained = {tuple(checkpoint.best[number].epoch for number in taken): soup} | trained
    candidates = []
    for share in (1.0,) if setup.recipe.scratch else MIXTURES:
        for epochs, of_epochs in trained.items():
            weights = mix(network.start, of_epochs, share)
            candidates.append(_Candidate(list(epochs), share, weights, logits_of(weights)))
    losses = [calibrated_losses(one.logits.numpy(), labels, task) for one in candidates]
    groups = setup.manifest["group"].to_numpy(str)[setup.rows("val")]
    chosen = candidates[within_one_standard_error(losses, groups)]
    if distributed.rank():
        return
    files = FinetuneFolder(folder)
    with replacing(files.weights) as part:
        save_file({key: value.contiguous() for key, value in chosen.weights.items()}, part)
    with replacing(files.val_logits) as part:
        save_file({"logits": chosen.logits}, part)
    FinetuneDetails(
        ran=True,
        scratch=setup.recipe.scratch,
        size=setup.trunk.view.size,
        blocks_unfrozen=setup.recipe.blocks_unfrozen(setup.trunk),
        frozen_part=network.frozen.choice,
        precision=network.precision,
        **made_on(setup.device),
        processes=distributed.world(),
        epochs=len(checkpoint.curve),
        best_epoch=best.epoch,
        averaged_epochs=chosen.epochs,
        trained_share=chosen.share,
        mixtures=[
            Mixture(epochs=one.epochs, trained_share=one.share, val_log_loss=float(loss.mean()))
            for one, loss in zip(candidates, losses, strict=True)
        ],
        temperature=fit_temperature(chosen.logits.numpy(), labels, task),
        classes=list(setup.head.classes),
    ).write(files.details)
    write_rows(checkpoint.curve, files.curve)


def greedy_soup(
    states: Sequence[dict[str, Tensor]], loss_of: Callable[[dict[str, Tensor]], float]
) -> tuple[list[int], dict[str, Tensor]]:
    """The mean of the first of ``states``, the best one, and of those others with which its loss gets no worse, tried in
    turn; the numbers of those that are in it, and the mean."""
    taken, soup, loss = [0], states[0], loss_of(states[0])
    for number, state in enumerate(states[1:], start=1):
        tried = mix(soup, state, 1 / (len(taken) + 1))
        if (found := loss_of(tried)) <= loss:
            taken, soup, loss = [*taken, number], tried, found
    return taken, soup


def mix(start: dict[str, Tensor], trained: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """``share`` of the trained weights and the rest of the start's, key by key; counters are the trained ones'."""
    return {
        key: torch.lerp(start[key], value, share) if value.is_floating_point() else value for key, value in trained.items()
    }


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise HeadstartError(f"training diverged in epoch {epoch} (loss {loss}); lower finetune.lr or finetune.scratch_lr")


def _validation(logits: Floats, labels: Ints, task: Task) -> dict[str, float]:
    """Log-loss after calibration, and accuracy."""
    return {
        "val_log_loss": float(calibrated_losses(logits, labels, task).mean()),
        "val_accuracy": float(task.correct(task.predict(logits), labels).mean()),
    }
