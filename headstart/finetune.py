"""finetune: from the chosen head on, train the layers that params.yaml unfreezes.

The head is trained first, on frozen features, and fine-tuning starts from it: LP-FT (Kumar et al. 2022, "Fine-tuning can
distort pretrained features and underperform out-of-distribution"). At the end the trained weights are mixed with those
they started from, as far as validation asks for (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"): on a
few hundred pictures a network learns noise too, and its start has none of it. The fine-tuned network is evaluated and
used at the size it was trained at: a mismatch (Touvron et al. 2019, "Fixing the train-test resolution discrepancy")
costs more here than fine-tuning gains.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from headstart import answers
from headstart.backbones import Trunk
from headstart.checkout import read_json, replacing, write_json
from headstart.classifier import Classifier, LinearHead
from headstart.compute import derived_seed, inference_batch, seed_everything
from headstart.data.pixels import Pixels
from headstart.engines import SAMPLE, Engine, engine_for
from headstart.errors import HeadstartError
from headstart.heads import calibrated_losses, fit_temperature, within_one_standard_error, write_rows
from headstart.params import Finetune
from headstart.progress import progress
from headstart.surgery import fold_batch_norm, split_frozen
from headstart.views import Normalise, batches

if TYPE_CHECKING:
    from torchvision.transforms import v2

WEIGHTS, DETAILS, CURVE, VAL_LOGITS = "weights.safetensors", "finetune.json", "curve.csv", "val_logits.safetensors"
STATE = "epoch.pt"  # in the folder of a training that can go on
Ints = NDArray[np.integer[Any]]
SIZE_STEP = 32  # most networks halve the picture five times
LEAST_WARMUP = 40  # steps (bench/few_steps.py)
SAVES = 20  # times that the state of a training is saved at most: of a hundred short epochs, writing it takes a third
MIXTURES = (0.5, 0.75, 1.0)  # share of the trained weights in the final ones; the rest is the start's
UNFROZEN = {"none": 0.0, "last": 0.25, "half": 0.5, "all": 1.0}  # of the blocks, from the output side


@dataclass(frozen=True)
class Recipe:
    """The settings, resolved for one backbone: what is trained, how long, how fast."""

    settings: Finetune
    scratch: bool
    seed: int

    @property
    def epochs(self) -> int:
        return self.settings.scratch_epochs if self.scratch else self.settings.epochs

    @property
    def batch_norm_trained(self) -> bool:
        return self.scratch or self.settings.batch_norm == "trained"  # statistics of a random network mean nothing

    def blocks_unfrozen(self, trunk: Trunk) -> int:
        """How many blocks are trained, from the output side: all of a network that starts from random weights, since a
        layer that stays frozen would stay random."""
        return math.ceil((1.0 if self.scratch else UNFROZEN[self.settings.unfreeze]) * len(trunk.blocks()))

    def parameter_groups(self, model: Classifier) -> list[dict[str, Any]]:
        """AdamW's groups. Earlier blocks learn slower; biases and scales are not decayed."""
        s = self.settings
        blocks = model.trunk.blocks()
        unfrozen = blocks[len(blocks) - self.blocks_unfrozen(model.trunk) :]
        model.trunk.requires_grad_(False)
        rates: list[tuple[float, list[nn.Parameter]]] = [
            (s.scratch_lr if self.scratch else s.lr * s.layer_decay**depth, block)
            for depth, block in enumerate(reversed(unfrozen))
        ]
        rates.append((s.scratch_lr if self.scratch else s.head_lr, list(model.head.parameters())))
        groups = []
        for rate, parameters in rates:
            for decayed in (True, False):
                chosen = [p.requires_grad_(True) for p in parameters if (p.ndim > 1) == decayed]
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": s.weight_decay if decayed else 0.0})
        return groups

    def schedule(self, step: int, steps: int) -> float:
        """The factor on every rate: linear warm-up, and half a cosine down to zero from the end of its fraction on.

        Adam's first steps go by the sign of gradients that it has hardly seen (Liu et al. 2020, "On the variance of the
        adaptive learning rate and beyond"). So where there are few steps in all, none is taken at the full rate, unless
        there is nothing to lose.
        """
        warmup = max(1, round(self.settings.warmup * steps))
        least = 0 if self.scratch or not self.settings.warmup else LEAST_WARMUP
        rise = min(1.0, (step + 1) / max(warmup + 1, least))
        return rise * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))


def train_size(trunk: Trunk, ratio: float) -> int:
    """Pixels to train at: ``ratio`` of the network's own size in whole steps of 32, or that size itself where the network
    takes no other (some transformers)."""
    wanted = max(SIZE_STEP, round(trunk.view.size * ratio / SIZE_STEP) * SIZE_STEP)
    try:
        with torch.inference_mode():
            trunk.eval()(torch.zeros(1, 3, wanted, wanted))
    except (RuntimeError, AssertionError, ValueError):
        return trunk.view.size
    return wanted


class TrainingViews(Dataset[tuple[Tensor, int]]):
    """Random views of the training pictures, by epoch and number; each depends on those, the seed, and nothing else."""

    def __init__(self, pixels: Pixels, rows: Ints, labels: Ints, transform: v2.Transform, seed: int) -> None:
        self.pixels, self.rows, self.labels = pixels, rows, labels
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, number = at
        # In a loader's process, whose generator is its own. torch.manual_seed would seed accelerators too, and note where
        # it was called from: a tenth of all the work.
        torch.default_generator.manual_seed(derived_seed(self.seed, epoch, number))
        picture = torch.from_numpy(np.array(self.pixels[int(self.rows[number])])).permute(2, 0, 1)
        return self.transform(picture), int(self.labels[number])

    def all(self, epoch: int, batch: int, first: int = 0) -> Iterator[Tensor]:
        """(N, 3, size, size) uint8, batch by batch: the views of one epoch in the order of the rows, from ``first`` on."""
        order = [(epoch, number) for number in range(first, len(self))]
        yield from (p for p, _ in DataLoader(self, batch, sampler=order, num_workers=1, multiprocessing_context="fork"))


def augmentation(settings: Finetune, size: int) -> v2.Transform:
    """(3, H, W) uint8 → (3, size, size) uint8."""
    from torchvision.transforms import v2

    steps: list[nn.Module] = [
        v2.RandomResizedCrop(size, scale=(settings.crop_min, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
        if settings.augment != "none"
        else v2.Resize((size, size), antialias=True)
    ]
    if settings.hflip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.augment == "light":
        steps += [v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3)], p=0.8), v2.RandomApply([v2.RandomRotation(10)], p=0.3)]
    if settings.augment == "trivial":
        steps.append(v2.TrivialAugmentWide())
    return v2.Compose(steps)


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
    timings: Path | None = None,
    kept: Path | None = None,
) -> None:
    """Train, keep the best epoch on validation, calibrate it, and write weights, details and the curve into ``folder``.

    After every epoch, or every few of very many, the whole state goes to ``resume``; a run that finds it there goes on from
    it and ends with the same bytes as one that was never stopped. It is removed at the end.

    Args:
        on_epoch: called with each epoch's row of the curve, for live tracking; also with those of resumed epochs.
        engine, timings: what runs the layers that stay frozen, as ``engines.engine_for`` takes ``wanted`` and ``timings``.
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
    below: Engine = normalise  # uint8 pictures → what the trained layers see of them
    told = {"engine": "torch", "why": "no part of the network can be taken off as frozen"}
    if parts := cut[model]:
        passes = len(train_rows) * recipe.epochs + len(val_rows)
        below, told = engine_for(nn.Sequential(normalise, parts[0]).eval(), passes, sample, device, engine, timings=timings)
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
        how = (str(views.transform), trunk.view.as_dict(), recipe.seed, train_rows.tolist(), val_rows.tolist())
        home = answers.folder_for(kept or resume, parts[0], told["engine"], pixels, how)
        val_answers = answers.known_or_made(home / "validation", (len(val_rows), *shape), below, seen_of_validation)
        count = min(recipe.settings.views or 0, recipe.epochs)
        for epoch in range(1, count + 1):
            seen = partial(views.all, epoch, eval_batch)
            stored.append(answers.known_or_made(home / f"view-{epoch}", (len(views), *shape), below, seen))

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


def resume_key(*parts: Any) -> str:
    """A name for one training: equal exactly where everything that shapes it is equal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


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
