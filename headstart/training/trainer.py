"""finetune: from the chosen head on, train the layers that params.yaml unfreezes.

The head is trained first, on frozen features, and fine-tuning starts from it: LP-FT (Kumar et al. 2022, "Fine-tuning can
distort pretrained features and underperform out-of-distribution"). At the end the trained weights are mixed with those
they started from, as far as validation asks for (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"): on a
few hundred pictures a network learns noise too, and its start has none of it. The fine-tuned network is evaluated and
used at the size it was trained at: a mismatch (Touvron et al. 2019, "Fixing the train-test resolution discrepancy")
costs more here than fine-tuning gains.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from headstart.base.arrays import Ints
from headstart.base.device import derived_seed, seed_everything
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, replacing, write_json, write_rows
from headstart.base.identity import code_of
from headstart.base.progress import progress
from headstart.data.packed import Pixels
from headstart.engines import activations
from headstart.engines.base import Forward
from headstart.engines.batching import inference_batch
from headstart.engines.select import SAMPLE, engine_for
from headstart.models.backbones import Trunk
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.classifier import Classifier, LinearHead
from headstart.models.graph import fold_batch_norm, split_frozen
from headstart.models.preprocessing import Normalise, batches
from headstart.training.linear_probe import within_one_standard_error

if TYPE_CHECKING:
    pass
from headstart.training.augmentation import TrainingViews, augmentation, train_size
from headstart.training.recipe import Recipe

WEIGHTS, DETAILS, CURVE, VAL_LOGITS = "weights.safetensors", "finetune.json", "curve.csv", "val_logits.safetensors"

STATE = "epoch.pt"  # in the folder of a training that can go on


SAVES = 20  # times that the state of a training is saved at most: of a hundred short epochs, writing it takes a third

MIXTURES = (0.5, 0.75, 1.0)  # share of the trained weights in the final ones; the rest is the start's


def finetune(
    trunk: Trunk,
    head: LinearHead,
    pixels: Pixels,
    manifest: pd.DataFrame,
    recipe: Recipe,
    device: torch.device,
    folder: Path,
    resume: Path,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    engine: str = "auto",
    kept: Path | None = None,
) -> None:
    """Train, keep the best epoch on validation, calibrate it, and write weights, details and the curve into ``folder``.

    After every epoch, or every few of very many, the whole state goes to ``resume``; a run that finds it there goes on from
    it and ends with the same bytes as one that was never stopped. It is removed at the end.

    Args:
        on_epoch: called with each epoch's row of the curve, for live tracking; also with those of resumed epochs.
        engine: torch, openvino or auto: what runs the layers that stay frozen.
        kept: what the frozen layers answer is kept there, for other trainings on the same views; in ``resume`` otherwise.
    """
    classes = list(head.classes)
    number = {name: n for n, name in enumerate(classes)}
    labels = manifest["label"].map(number).to_numpy(np.int64)
    train_rows = np.flatnonzero(manifest["split"] == "train")
    val_rows = np.flatnonzero(manifest["split"] == "val")
    size = train_size(trunk, recipe.settings.size_ratio)
    trunk.view = replace(trunk.view, size=size)
    seed_everything(recipe.seed)
    # A calibrated start: the head's logits divided by its temperature, so that the first gradients are not those of an
    # over-confident classifier.
    start = LinearHead(head.weight / head.temperature, head.bias / head.temperature, 1.0, head.classes)
    model = Classifier(trunk, start)
    if recipe.scratch:
        model.head.reset_parameters()
    model.to(device).to(memory_format=torch.channels_last)
    initial = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    groups = recipe.parameter_groups(model)
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in groups]
    averaged = AveragedModel(model, multi_avg_fn=_moving_average(recipe.settings.ema), use_buffers=True)
    shadow: Classifier = averaged.module  # type: ignore[assignment]
    views = TrainingViews(pixels, train_rows, labels[train_rows], augmentation(recipe.settings, size), recipe.seed)
    weight = torch.tensor(head.class_weight, device=device) if head.class_weight else None
    loss_of = nn.CrossEntropyLoss(weight=weight, label_smoothing=recipe.settings.label_smoothing)
    eval_batch = inference_batch(model.eval(), trunk.view, device)
    _, sample = next(batches(trunk.view, pixels, val_rows[:SAMPLE].tolist(), SAMPLE))
    normalise = Normalise(trunk.view).to(device)
    sample = sample.to(device)
    cut = {network: split_frozen(network.eval().trunk, normalise(sample[:2])) for network in (model, shadow)}
    below: Forward = normalise  # uint8 pictures → what the trained layers see of them
    told = {"engine": "torch", "why": "no part of the network can be taken off as frozen"}
    if parts := cut[model]:
        passes = len(train_rows) * recipe.epochs + len(val_rows)
        below, told = engine_for(nn.Sequential(normalise, parts[0]).eval(), passes, sample, device, engine)
    # What is trained of each network, as it is run: without the frozen part, and with batch-norm folded where it is frozen.
    above = {network: parts[1].eval() if parts else network.trunk for network, parts in cut.items()}
    shown = below(sample[:2])
    if not recipe.batch_norm_trained:
        above = {network: fold_batch_norm(part, shown) for network, part in above.items()}

    def seen_of_validation(first: int = 0) -> Iterator[Tensor]:
        yield from (pictures for _, pictures in batches(trunk.view, pixels, val_rows[first:].tolist(), eval_batch))

    batch = recipe.settings.batch_size
    steps = max(1, len(views) // batch)
    drop_last = len(views) > batch  # a last batch of one picture would shake batch-norm and the step alike
    val_answers: NDArray[np.float32] | None = None  # of the frozen layers: the same after every epoch
    stored: list[NDArray[np.float32]] = []
    if parts:
        shape = shown.shape[1:]
        how = (
            code_of(__name__),
            str(views.transform),
            trunk.view.as_dict(),
            recipe.seed,
            train_rows.tolist(),
            val_rows.tolist(),
        )
        home = activations.folder_for(kept or resume, parts[0], told["engine"], pixels, how)
        val_answers = activations.known_or_made(home / "validation", (len(val_rows), *shape), below, seen_of_validation)
        count = min(recipe.settings.views or 0, recipe.epochs)
        for epoch in range(1, count + 1):
            seen = partial(views.all, epoch, eval_batch)
            stored.append(activations.known_or_made(home / f"view-{epoch}", (len(views), *shape), below, seen))

    def validation() -> Iterator[Tensor]:
        """The validation pictures, batch by batch, as the trained layers see them."""
        if val_answers is None:
            yield from (below(pictures.to(device)) for pictures in seen_of_validation())
        else:
            for at in range(0, len(val_answers), eval_batch):
                yield torch.from_numpy(val_answers[at : at + eval_batch]).to(device)

    def said_by(network: Classifier) -> Tensor:
        """(N, classes) validation logits, on the CPU."""
        above[network].eval()
        with torch.no_grad():
            return torch.cat([network.head(above[network](inputs)).float().cpu() for inputs in validation()])

    def shuffled(epoch: int) -> Iterator[list[int]]:
        """The training pictures of one epoch, in batches of numbers: a resumed run draws what the first would have."""
        order = torch.Generator().manual_seed(derived_seed(recipe.seed, epoch))
        torch.empty((), dtype=torch.int64).random_(generator=order)  # as a DataLoader does before it shuffles
        return iter(BatchSampler(RandomSampler(views, generator=order), batch, drop_last))

    def loaded(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of all epochs from ``first`` on, from one process: with another one forked for each epoch, the kernel
        copies all memory that training writes to, every time."""
        plan = ([(epoch, n) for n in numbers] for epoch in range(first, recipe.epochs + 1) for numbers in shuffled(epoch))
        loader = DataLoader(
            views,
            batch_sampler=plan,
            generator=torch.Generator(),  # or it takes numbers from the one that training draws from
            num_workers=1 if device.type == "cpu" else 4,
            multiprocessing_context="fork",
            pin_memory=device.type == "cuda",
        )
        return iter(loader)

    coming: Iterator[tuple[Tensor, Tensor]] = iter(())

    def training(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training pictures in batches, as the trained layers see them, and their labels."""
        seed_everything(recipe.seed, epoch)
        if stored:
            view = stored[(epoch - 1) % len(stored)]
            for rows in shuffled(epoch):
                yield torch.from_numpy(view[rows]).to(device), torch.from_numpy(views.labels[rows])
            return
        for pictures, numbers in islice(coming, steps):
            yield below(pictures.to(device, non_blocking=True)), numbers

    curve: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    saved = resume / STATE
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        curve, best = state["curve"], state["best"]
        print(f"finetune: going on after epoch {len(curve)}, which an earlier run finished")
        for row in curve:
            on_epoch(row)

    if not stored:
        coming = loaded(len(curve) + 1)
    while len(curve) < recipe.epochs and len(curve) - best.get("epoch", 0) < recipe.settings.patience:
        epoch = len(curve) + 1
        train_loss = _one_epoch(
            model, above[model], training(epoch), steps, averaged, optimizer, rates, recipe, loss_of, epoch, device
        )
        said = said_by(shadow)
        row = {"epoch": epoch, "train_loss": train_loss} | _validation(said.numpy(), labels[val_rows])
        curve.append(row)
        if row["val_log_loss"] < best.get("log_loss", math.inf):
            weights = {k: v.detach().cpu().clone() for k, v in shadow.state_dict().items()}
            best = {"epoch": epoch, "log_loss": row["val_log_loss"], "weights": weights, "logits": said}
        if epoch % max(1, recipe.epochs // SAVES) == 0:
            _save(saved, model, averaged, optimizer, curve, best)
        on_epoch(row)
        print(
            f"finetune: epoch {epoch}/{recipe.epochs}, training loss {train_loss:.3f}, validation log-loss "
            f"{row['val_log_loss']:.3f}, accuracy {row['val_accuracy']:.3f}",
            flush=True,
        )

    trained = {key: value.cpu() for key, value in best["weights"].items()}
    shares = (1.0,) if recipe.scratch else MIXTURES
    found: list[Tensor] = []
    for share in shares[:-1]:
        model.load_state_dict(mix(initial, trained, share))
        found.append(said_by(model))
    found.append(best["logits"].cpu())  # of the trained weights alone
    losses = [calibrated_losses(logits.numpy(), labels[val_rows]) for logits in found]
    best_share = within_one_standard_error(losses)
    weights, logits = mix(initial, trained, shares[best_share]), found[best_share]
    with replacing(folder / WEIGHTS) as part:
        save_file({key: value.contiguous() for key, value in weights.items()}, part)
    with replacing(folder / VAL_LOGITS) as part:
        save_file({"logits": logits}, part)
    details = {
        "ran": True,
        "scratch": recipe.scratch,
        "size": size,
        "blocks_unfrozen": recipe.blocks_unfrozen(trunk),
        "frozen_part": told,
        "epochs": len(curve),
        "best_epoch": best["epoch"],
        "trained_share": shares[best_share],
        "mixtures": [
            {"trained_share": share, "val_log_loss": float(loss.mean())} for share, loss in zip(shares, losses, strict=True)
        ],
        "temperature": fit_temperature(logits.numpy(), labels[val_rows]),
        "classes": classes,
    }
    write_json(folder / DETAILS, details)
    write_rows(curve, folder / CURVE)
    shutil.rmtree(resume, ignore_errors=True)


def mix(start: dict[str, Tensor], trained: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """``share`` of the trained weights and the rest of the start's, key by key; counters are the trained ones'."""
    return {
        key: torch.lerp(start[key], value, share) if value.is_floating_point() else value for key, value in trained.items()
    }


def load_finetuned(folder: Path, trunk: Trunk, head: LinearHead) -> Classifier | None:
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


def _one_epoch(
    model: Classifier,
    above: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    averaged: AveragedModel,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    recipe: Recipe,
    loss_of: nn.Module,
    epoch: int,
    device: torch.device,
) -> float:
    """Train for one epoch; the mean loss.

    Args:
        batches: ``steps`` times what ``above`` takes, and its labels.
    """
    above.train()
    if not recipe.batch_norm_trained:
        for module in above.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    losses = []
    with progress(f"finetune {epoch}/{recipe.epochs}", steps * recipe.settings.batch_size) as advance:
        for step, (inputs, labels) in enumerate(batches, start=(epoch - 1) * steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.schedule(step, recipe.epochs * steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.settings.precision == "bf16"):
                loss = loss_of(model.head(above(inputs)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
            losses.append(loss.detach())
            advance(len(labels))
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise HeadstartError(f"training diverged in epoch {epoch} (loss {mean}); lower finetune.lr or finetune.scratch_lr")
    return mean


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that starts short, so that the first epochs are not mostly the starting point."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = float(count)
        d = min(decay, (1 + n) / (10 + n))
        if averaged[0].is_floating_point():  # AveragedModel hands over one kind of tensor at a time
            torch._foreach_lerp_(averaged, current, 1 - d)
        else:
            torch._foreach_copy_(averaged, current)

    return update


def _validation(logits: NDArray[Any], labels: Ints) -> dict[str, float]:
    """Log-loss after calibration, and accuracy."""
    return {
        "val_log_loss": float(calibrated_losses(logits, labels).mean()),
        "val_accuracy": float((logits.argmax(1) == labels).mean()),
    }


def _save(
    file: Path,
    model: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    curve: list[dict[str, float]],
    best: dict[str, Any],
) -> None:
    state = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curve": curve,
        "best": best,
    }
    with replacing(file) as part:
        torch.save(state, part)
