"""head: multinomial logistic regression on cached features, its strength chosen on validation, then calibrated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstart.base.arrays import Floats, Ints
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, replacing, write_json, write_rows
from headstart.base.params import Head, Params
from headstart.base.progress import progress
from headstart.data.manifest import class_names, read_manifest
from headstart.data.splits import FEW_PICTURES
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.classifier import LinearHead
from headstart.models.logistic import fit_path
from headstart.models.task import SINGLE_LABEL
from headstart.training.feature_files import load_features

WEIGHTS, DETAILS, SWEEP = "head.safetensors", "head.json", "sweep.csv"

FOLDS = 5

PROBED = [0.001, 0.01, 0.1]  # strengths of a probe, in ascending order: it need not hit the best one, only come near

# Of the median deviation of the features that vary: hardly any feature of photographs has less. For 400 handwritten digits
# it takes the cross-validated log-loss from 1.07 to 0.32, for 100 of them from 1.51 to 0.70 (bench/least_deviation.py).
LEAST_DEVIATION = 0.1


def train_head(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: list[str],
    settings: Head,
    folder: Path,
    groups: NDArray[Any] | None = None,
) -> LinearHead:
    """Fit one head per C, let validation log-loss choose, and write head, details and sweep.

    With few validation pictures the strength is chosen by cross-validation over training and validation pictures. Every
    other choice is made with heads fitted on training pictures alone, and fine-tuning starts from the one chosen. The
    head that is reported on the test split and packaged is fitted once more at the chosen C, on training and validation
    pictures together (the ``refit`` of scikit-learn's searches).

    Args:
        train: (N, D) features and (N,) labels, on the device that is to do the work.
        val: likewise.
        groups: of the training pictures and then the validation pictures, (N,) names; pictures of one group resemble each
            other, and are on the same side where it is cross-validated.
    """
    strengths = sorted(settings.C)  # from strong to weak: each solution is a start for the next
    weights = _class_weights(train[1], len(classes), settings)
    x, mean, scale = _standardised(train[0])
    v, v_labels = (val[0] - mean) / scale, val[1].cpu().numpy()
    rows: list[dict[str, Any]] = []
    candidates: list[tuple[Tensor, Tensor]] = []
    losses: list[Floats] = []
    with progress("head", len(strengths), "strengths") as advance:
        for strength, (weight, bias, steps) in zip(
            strengths, fit_path(x, train[1], len(classes), strengths, weights), strict=True
        ):
            logits = torch.addmm(bias, v, weight.T).cpu().numpy()
            predicted = SINGLE_LABEL.predict(torch.addmm(bias, x, weight.T))
            temperature = fit_temperature(logits, v_labels)
            losses.append(SINGLE_LABEL.losses(logits / temperature, v_labels))
            candidates.append(_raw(weight, bias, mean, scale))
            rows.append(
                {
                    "C": strength,
                    "val_log_loss": float(losses[-1].mean()),
                    "val_accuracy": float((SINGLE_LABEL.predict(logits) == v_labels).mean()),
                    "train_accuracy": float((predicted == train[1]).float().mean()),
                    "temperature": temperature,
                    "iterations": steps,
                }
            )
            advance()
    both, labels = (torch.cat(pair) for pair in zip(train, val, strict=True))
    truth = labels.cpu().numpy()
    if groups is None or len(set(groups)) == len(groups):
        independent, groups = np.bincount(truth, minlength=len(classes)), None
    else:
        independent = np.array([len(set(groups[truth == number])) for number in range(len(classes))])
    few = len(v) < FEW_PICTURES and int(independent.min()) >= FOLDS
    if few:
        held_out = cross_validated(both, labels, len(classes), strengths, settings, folds_of(truth, groups))
        losses = [calibrated_losses(logits, truth) for logits in held_out]
    best = within_one_standard_error(losses)
    chosen, temperature = rows[best]["C"], rows[best]["temperature"]
    x, mean, scale = _standardised(both)
    ((weight, bias, _),) = fit_path(x, labels, len(classes), [chosen], _class_weights(labels, len(classes), settings))
    final = _raw(weight, bias, mean, scale)
    details = {
        "C": chosen,
        "chosen_by": "cross-validation" if few else "validation",
        "temperature": temperature,
        "classes": classes,
        "class_weight": None if weights is None else weights.tolist(),
        "sweep": rows,
    }
    _store(
        dict(zip(("weight", "bias", "refit_weight", "refit_bias"), (*candidates[best], *final), strict=True)),
        details,
        folder,
    )
    return load_head(folder)


Folds = list[tuple[Ints, Ints]]


def folds_of(labels: Ints, groups: NDArray[Any] | None = None) -> Folds:
    """Five times the pictures to fit on and those held out, (N,) numbers in all; ``groups``, (N,), stay together."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # seconds, which not everybody need wait for

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(kind(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups))


def cross_validated(
    x: Tensor, y: Tensor, classes: int, strengths: list[float], settings: Head, folds: Folds
) -> NDArray[np.float32]:
    """(strengths, N, classes) logits of all pictures, each by a head that was fitted without its fold.

    Args:
        x: (N, D) features.
        y: (N,) labels.
        strengths: in ascending order.
    """
    logits = np.zeros((len(strengths), len(y), classes), np.float32)
    for fitted, held_out in folds:
        features, mean, scale = _standardised(x[fitted])
        weights = _class_weights(y[fitted], classes, settings)
        for number, (weight, bias, _) in enumerate(fit_path(features, y[fitted], classes, strengths, weights)):
            logits[number, held_out] = torch.addmm(bias, (x[held_out] - mean) / scale, weight.T).cpu()
    return logits


def held_out_logits(features: Tensor, labels: Ints, folds: Folds) -> Floats:
    """(N, classes) logits of all pictures, calibrated, each by a regression that was fitted without its fold, at that of a
    few strengths which has the least log-loss over all folds.

    Args:
        features: (N, D).
        labels: (N,) numbers of the classes.
    """
    numbers = torch.from_numpy(labels).to(features.device)
    by_strength = cross_validated(features, numbers, int(labels.max()) + 1, PROBED, Head(), folds)
    calibrated = [logits / fit_temperature(logits, labels) for logits in by_strength]
    return min(calibrated, key=lambda logits: float(SINGLE_LABEL.losses(logits, labels).mean()))


def within_one_standard_error(losses: list[Floats]) -> int:
    """Which of several models to take, the most regularised first: the first that is not clearly worse than the best.

    Clearly worse is a mean loss more than one standard error above the best's, of the differences picture by picture (the
    one-standard-error rule: Breiman et al. 1984, "Classification and Regression Trees", 3.4.3). On a few dozen validation
    pictures the lowest loss is mostly luck, and the stronger regularisation is the safer guess.

    Args:
        losses: for each model, (N,) log-losses of the validation pictures after calibration.
    """
    best = losses[int(np.argmin([loss.mean() for loss in losses]))]
    for number, loss in enumerate(losses):
        difference = loss - best
        if difference.mean() <= difference.std() / np.sqrt(len(loss)):
            return number
    raise AssertionError("the best is not worse than itself")


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and deviation 1, and the mean and deviation they had.

    On pictures that are unlike those of its training, many of a network's features hardly vary. Blown up to the deviation
    of the others they are noise, so those of little deviation stay little.
    """
    mean = features.mean(0, dtype=torch.float64).float()
    centred = features - mean
    scale = centred.square().mean(0, dtype=torch.float64).sqrt().float()
    never = scale < 1e-8  # such features say nothing, and must not be divided by nothing
    if not never.all():
        scale = scale.clamp(min=LEAST_DEVIATION * float(scale[~never].median()))
    scale[never] = 1.0
    return centred / scale, mean, scale


def _raw(weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same classifier on features that are not standardised."""
    exact = weight.double() / scale
    return exact.float(), (bias - exact @ mean.double()).float()


def load_head(folder: Path, refit: bool = False) -> LinearHead:
    """The chosen head, fitted on training pictures alone or (``refit``) on training and validation pictures."""
    try:
        details = read_json(folder / DETAILS)
        tensors = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise HeadstartError(f"{folder} holds no head ({error}); run `dvc repro head`") from None
    prefix = "refit_" if refit else ""
    weights = details["class_weight"]
    return LinearHead(
        tensors[f"{prefix}weight"],
        tensors[f"{prefix}bias"],
        details["temperature"],
        tuple(details["classes"]),
        tuple(weights) if weights else None,
    )


def _class_weights(labels: Tensor, classes: int, settings: Head) -> Tensor | None:
    """(classes,) weights that make each class's share of the loss equal, scikit-learn's "balanced", where asked for."""
    if settings.class_weight is None:
        return None
    return len(labels) / (classes * torch.bincount(labels, minlength=classes).double())


def _store(tensors: dict[str, Tensor], details: dict[str, Any], folder: Path) -> None:
    with replacing(folder / WEIGHTS) as part:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)
    write_json(folder / DETAILS, details)
    write_rows(details["sweep"], folder / SWEEP)


def run(params: Params, data: Path) -> None:
    """The stage head: train a classifier on the cached features."""
    device = set_up(params.threads)
    train, val = (load_features(data / "features", split, device) for split in ("train", "val"))
    manifest = read_manifest(data / "prepare").set_index("split")
    groups = np.concatenate([manifest.loc[["train"], "group"], manifest.loc[["val"], "group"]])
    train_head(train, val, class_names(manifest), params.head, data / "head", groups)
