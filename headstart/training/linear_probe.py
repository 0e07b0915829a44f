"""head: a classifier on cached features, its regularisation chosen on validation, then calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.head import HeadDetails, Strength
from headstart.base.device import set_up
from headstart.base.params import Head, Params
from headstart.base.progress import progress
from headstart.data.manifest import class_names, read_manifest
from headstart.data.splits import FEW_PICTURES
from headstart.models.calibration import TEMPERATURE_PRIOR, calibrated_losses, fit_temperature
from headstart.models.classifier import FittedHead
from headstart.models.heads import HEADS, ClassifierHead
from headstart.models.task import SINGLE_LABEL
from headstart.training.feature_files import load_features
from headstart.training.head_files import load_head, store_head

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
) -> FittedHead:
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
    kind = HEADS[settings.kind]
    strengths = sorted(settings.C)  # from strong to weak: each solution may be a start for the next
    weights = _class_weights(train[1], len(classes), settings)
    x, mean, scale = standardised(train[0])
    v, v_labels = (val[0] - mean) / scale, val[1].cpu().numpy()
    rows: list[Strength] = []
    heads: list[ClassifierHead] = []
    losses: list[Floats] = []
    with progress("head", len(strengths), "strengths") as advance, torch.no_grad():
        path = kind.fit_path(x, train[1], len(classes), strengths, weights)
        for strength, (head, steps) in zip(strengths, path, strict=True):
            logits = head(v).cpu().numpy()
            temperature = fit_temperature(logits, v_labels)
            losses.append(SINGLE_LABEL.losses(logits / temperature, v_labels))
            heads.append(head.unstandardised(mean, scale))
            rows.append(
                Strength(
                    C=strength,
                    val_log_loss=float(losses[-1].mean()),
                    val_accuracy=float((SINGLE_LABEL.predict(logits) == v_labels).mean()),
                    train_accuracy=float((SINGLE_LABEL.predict(head(x)) == train[1]).float().mean()),
                    temperature=temperature,
                    iterations=steps,
                )
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
    chosen, temperature = rows[best].C, rows[best].temperature
    x, mean, scale = standardised(both)
    ((head, _),) = kind.fit_path(x, labels, len(classes), [chosen], _class_weights(labels, len(classes), settings))
    refit = head.unstandardised(mean, scale)
    details = HeadDetails(
        kind=kind.kind,
        C=chosen,
        chosen_by="cross-validation" if few else "validation",
        temperature=temperature,
        classes=classes,
        class_weight=None if weights is None else weights.tolist(),
        sweep=rows,
    )
    store_head(heads[best], refit, details, folder)
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
        features, mean, scale = standardised(x[fitted])
        weights = _class_weights(y[fitted], classes, settings)
        path = HEADS[settings.kind].fit_path(features, y[fitted], classes, strengths, weights)
        for number, (head, _) in enumerate(path):
            with torch.no_grad():
                logits[number, held_out] = head((x[held_out] - mean) / scale).cpu()
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


def stacked(logits: Floats, labels: Ints) -> Floats:
    """Weights of several models, (S,) and none negative, whose weighted sum of logits has the least log-loss.

    Averaging what several models say, with weights from answers on pictures that they were not fitted on, is stacking
    (Wolpert 1992, "Stacked generalization"; Breiman 1996, "Stacked regressions", for weights that are not negative). The
    weights need not add up to one: one over their sum is the temperature, and has the prior of ``fit_temperature``.

    Args:
        logits: (S, N, classes) of N pictures by S models.
        labels: (N,) numbers of the classes.
    """
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    own = logits[:, np.arange(len(labels)), labels]

    def loss(weights: Floats) -> tuple[float, Floats]:
        log_sum = np.log(weights.sum())
        weighted = np.tensordot(weights, logits, 1)
        weighted -= logsumexp(weighted, axis=1, keepdims=True)
        value = -weighted[np.arange(len(labels)), labels].sum() + log_sum**2 / (2 * TEMPERATURE_PRIOR**2)
        expected = np.einsum("nc,snc->s", np.exp(weighted), logits)
        gradient = expected - own.sum(1) + log_sum / (TEMPERATURE_PRIOR**2 * weights.sum())
        return value / len(labels), gradient / len(labels)

    # The sum has the bounds of a temperature: at zero there is no logarithm.
    start = np.full(len(logits), 1 / len(logits))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(1e-3, 20)] * len(logits))
    weights: Floats = found.x
    return weights


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


def standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _class_weights(labels: Tensor, classes: int, settings: Head) -> Tensor | None:
    """(classes,) weights that make each class's share of the loss equal, scikit-learn's "balanced", where asked for."""
    if settings.class_weight is None:
        return None
    return len(labels) / (classes * torch.bincount(labels, minlength=classes).double())


def run(params: Params, data: DataFolder) -> None:
    """The stage head: train a classifier on the cached features."""
    device = set_up(params.threads)
    train, val = (load_features(data.features, split, device) for split in ("train", "val"))
    manifest = read_manifest(data.prepare).set_index("split")
    groups = np.concatenate([manifest.loc[["train"], "group"], manifest.loc[["val"], "group"]])
    train_head(train, val, class_names(manifest), params.head, data.head, groups)
