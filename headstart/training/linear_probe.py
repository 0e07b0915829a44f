"""head: a classifier on cached features, its regularisation chosen on held-out pictures, then calibrated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.head import HeadDetails, Strength
from headstart.base.device import one_thread, set_up
from headstart.base.params import Params
from headstart.base.progress import Advance, progress
from headstart.base.sections import Head
from headstart.data.manifest import class_names, read_manifest
from headstart.data.splits import FEW_PICTURES
from headstart.data.stratification import iterative_stratification
from headstart.models.calibration import TEMPERATURE_PRIOR, calibrated_losses, fit_temperature
from headstart.models.classifier import FittedHead
from headstart.models.heads import HEADS, ClassifierHead, LinearHead
from headstart.models.task import SINGLE_LABEL, Task, task_of
from headstart.training.feature_files import load_features
from headstart.training.head_files import load_head, store_head

FOLDS = 5
MOST_FOR_ONE_THREAD = 2e9  # pictures × features × classes: of fewer, threads that share a fit cost more than they bring
MOST_IN_FOLDS = 2e10  # the same × strengths: where there are more, the folds take minutes

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
    task: Task = SINGLE_LABEL,
) -> FittedHead:
    """Fit a head at every strength of regularisation, choose one and average all, and write both, details and sweep.

    The head that all other choices are made with is fitted on training pictures alone, and fine-tuning starts from it. Its
    strength is chosen on validation, or with few validation pictures by cross-validation, with the one-standard-error rule.

    The head that is reported on the test split and packaged is fitted on training and validation pictures together (the
    ``refit`` of scikit-learn's searches). If it is linear, it is the mean of the heads of all strengths, with the weights
    that suit their answers in five-fold cross-validation over the same pictures (``stacked``). Where there are too many
    pictures for that to take seconds, or a class has too few, the refitted head has the chosen strength.
    bench/head_choice.py compares these rules.

    Args:
        train: (N, D) features and (N, ...) encoded labels, on the device that is to do the work.
        val: likewise.
        groups: of the training pictures and then the validation pictures, (N,) names; pictures of one group resemble each
            other, and are on the same side where it is cross-validated.
    """
    kind, strengths = HEADS[settings.kind], sorted(settings.C)
    both, labels = (torch.cat(pair) for pair in zip(train, val, strict=True))
    truth, t_labels, v_labels = (each.cpu().numpy() for each in (labels, train[1], val[1]))
    work = both.numel() * len(classes) * len(strengths)
    pay = work <= MOST_IN_FOLDS if kind is LinearHead else len(v_labels) < FEW_PICTURES
    folds = folds_that_hold_each_class(truth, groups) if pay else []
    rows: list[Strength] = []
    heads: list[ClassifierHead] = []
    losses: list[Floats] = []
    with progress("head", (1 + len(folds)) * len(strengths), "fits") as advance, torch.no_grad():
        fits = _fits(*train, len(classes), strengths, settings, advance)
        for strength, (head, logits_of, steps) in zip(strengths, fits, strict=True):
            logits = logits_of(val[0]).cpu().numpy()
            temperature = fit_temperature(logits, v_labels, task)
            losses.append(task.losses(logits / temperature, v_labels))
            heads.append(head)
            rows.append(
                Strength(
                    C=strength,
                    weight=0.0,
                    val_log_loss=float(losses[-1].mean()),
                    val_accuracy=float(task.correct(task.predict(logits), v_labels).mean()),
                    train_accuracy=float(task.correct(task.predict(logits_of(train[0]).cpu().numpy()), t_labels).mean()),
                    temperature=temperature,
                    iterations=steps,
                )
            )
        of_losses = None if groups is None else groups[len(train[0]) :]
        few, refit_temperature, weights = bool(folds) and len(v_labels) < FEW_PICTURES, None, None
        if folds:
            held_out = cross_validated(both, labels, len(classes), strengths, settings, folds, advance)
            if few:
                losses, of_losses = [calibrated_losses(logits, truth, task) for logits in held_out], groups
            if kind is LinearHead:
                weights = stacked(held_out, truth, task)
                refit_temperature = 1 / float(weights.sum())
        best = within_one_standard_error(losses, of_losses)
        weights = np.eye(len(strengths))[best] if weights is None else weights / weights.sum()
        refit = refitted(both, labels, len(classes), strengths, settings, weights)
    class_weight = _class_weights(train[1], len(classes), settings)
    details = HeadDetails(
        kind=kind.kind,
        task=task.kind,
        C=rows[best].C,
        chosen_by="cross-validation" if few else "validation",
        temperature=rows[best].temperature,
        refit_temperature=refit_temperature or rows[best].temperature,
        classes=classes,
        class_weight=None if class_weight is None else class_weight.tolist(),
        sweep=[row.model_copy(update={"weight": round(float(w), 6)}) for row, w in zip(rows, weights, strict=True)],
    )
    store_head(heads[best], refit, details, folder)
    return load_head(folder)


@torch.no_grad()
def refitted(
    x: Tensor,
    y: Tensor,
    classes: int,
    strengths: list[float],
    settings: Head,
    weights: Floats,
    class_weight: Tensor | None = None,
) -> ClassifierHead:
    """The head on the CPU whose logits are the weighted mean of those of heads of all strengths. All but the weights is as
    for ``cross_validated``.

    Args:
        weights: of the strengths; they add up to 1. If ``settings`` has another kind than linear, one of them is 1.
    """
    needed = [strength for strength, weight in zip(strengths, weights, strict=True) if weight > 0]
    heads = [head for head, _, _ in _fits(x, y, classes, needed, settings, class_weight=class_weight)]
    return heads[0] if len(heads) == 1 else LinearHead.mean(heads, weights[weights > 0].tolist())


def _fits(
    x: Tensor,
    y: Tensor,
    classes: int,
    strengths: list[float],
    settings: Head,
    advance: Advance = lambda *_: None,
    class_weight: Tensor | None = None,
) -> Iterator[tuple[ClassifierHead, Callable[[Tensor], Tensor], int]]:
    """For each strength, in ascending order: the head on the CPU, what makes logits of features where ``x`` is, and the
    number of steps taken."""
    with one_thread() if x.numel() * classes < MOST_FOR_ONE_THREAD else nullcontext():
        features, mean, scale = _standardised(x)
        counted = _class_weights(y, classes, settings) if class_weight is None else class_weight
        path = HEADS[settings.kind].fit_path(features, y, classes, strengths, counted)
        for fitted, steps in path:

            def logits_of(features: Tensor, fitted: ClassifierHead = fitted) -> Tensor:
                logits: Tensor = fitted((features - mean) / scale)
                return logits

            yield fitted.unstandardised(mean, scale), logits_of, steps
            advance()


Folds = list[tuple[Ints, Ints]]


def folds_of(labels: Ints, groups: NDArray[Any] | None = None, count: int = FOLDS) -> Folds:
    """``count`` times the pictures to fit on and those held out, (N,) numbers in all; ``groups``, (N,), stay together.

    Args:
        labels: (N,) numbers of the classes, or (N, classes) ones and zeros.
    """
    if labels.ndim == 2:
        return _folds_of_several_labels(labels, np.arange(len(labels)) if groups is None else groups, count)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # seconds, which not everybody need wait for

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(kind(count, shuffle=True, random_state=0).split(labels, labels, groups))


def _folds_of_several_labels(labels: Ints, groups: NDArray[Any], count: int) -> Folds:
    """scikit-learn has no stratification of several labels."""
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    counts = np.zeros((len(sizes), labels.shape[1]), np.int64)
    np.add.at(counts, group_of, labels)
    order = np.random.default_rng(0).permutation(len(sizes))
    fold_of = iterative_stratification(counts, sizes, [1 / count] * count, order)[group_of]
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(count)]


def folds_that_hold_each_class(labels: Ints, groups: NDArray[Any] | None, count: int = FOLDS) -> Folds:
    """As ``folds_of`` has them; none where a class has fewer than ``count`` pictures that are independent. Of several
    labels a class may be rare: each has a regression of its own, which without its pictures says that it is never there."""
    if labels.ndim == 2:
        return folds_of(labels, groups, count) if len(labels if groups is None else set(groups)) >= count else []
    if groups is None or len(set(groups)) == len(groups):
        independent, groups = np.bincount(labels), None
    else:
        independent = np.array([len(set(groups[labels == number])) for number in range(int(labels.max()) + 1)])
    return folds_of(labels, groups, count) if int(independent.min()) >= count else []


def cross_validated(
    x: Tensor,
    y: Tensor,
    classes: int,
    strengths: list[float],
    settings: Head,
    folds: Folds,
    advance: Advance = lambda *_: None,
    class_weight: Tensor | None = None,
) -> NDArray[np.float32]:
    """(strengths, N, classes) logits of all pictures, each by a head that was fitted without its fold.

    Args:
        x: (N, D) features.
        y: (N, ...) encoded labels.
        strengths: in ascending order.
        class_weight: (classes,) weights of the classes' losses in place of those that ``settings`` asks for.
    """
    logits = np.zeros((len(strengths), len(y), classes), np.float32)

    @torch.no_grad()
    def fit(fold: tuple[Ints, Ints]) -> None:
        fitted, held_out = fold
        fits = _fits(x[fitted], y[fitted], classes, strengths, settings, advance, class_weight)
        for number, (_, logits_of, _) in enumerate(fits):
            logits[number, held_out] = logits_of(x[held_out]).cpu()

    # Threads that share a small fit wait for each other more than they bring, so each has a fold.
    with one_thread() as threads, ThreadPoolExecutor(threads if x.device.type == "cpu" else 1) as pool:
        for _ in pool.map(fit, folds):
            pass
    return logits


def held_out_logits(features: Tensor, labels: Ints, folds: Folds, task: Task = SINGLE_LABEL) -> Floats:
    """(N, classes) logits of all pictures, calibrated, each by a regression that was fitted without its fold, at that of a
    few strengths which has the least log-loss over all folds.

    Args:
        features: (N, D).
        labels: (N, ...), encoded.
    """
    encoded = torch.from_numpy(labels).to(features.device)
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    by_strength = cross_validated(features, encoded, classes, PROBED, Head(), folds)
    calibrated = [logits / fit_temperature(logits, labels, task) for logits in by_strength]
    return min(calibrated, key=lambda logits: float(task.losses(logits, labels).mean()))


def stacked(logits: Floats, labels: Ints, task: Task = SINGLE_LABEL) -> Floats:
    """Weights of several models, (S,) and none negative, whose weighted sum of logits has the least log-loss.

    Averaging what several models say, with weights from answers on pictures that they were not fitted on, is stacking
    (Wolpert 1992, "Stacked generalization"; Breiman 1996, "Stacked regressions", for weights that are not negative). The
    weights need not add up to one: one over their sum is the temperature, and has the prior of ``fit_temperature``.

    Args:
        logits: (S, N, classes) of N pictures by S models.
        labels: (N, ...), encoded.
    """
    logits = logits.astype(np.float64)

    def loss(weights: Floats) -> tuple[float, Floats]:
        total = max(weights.sum(), 1e-6)  # of no weight at all there is no logarithm
        log_sum = np.log(total)
        weighted = np.tensordot(weights, logits, 1)
        value = task.losses(weighted, labels).sum() + log_sum**2 / (2 * TEMPERATURE_PRIOR**2)
        gradient = np.einsum("nc,snc->s", task.slopes(weighted, labels), logits)
        gradient += log_sum / (TEMPERATURE_PRIOR**2 * total)
        return value / len(labels), gradient / len(labels)

    start = np.full(len(logits), 1 / len(logits))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, 20)] * len(logits))
    weights: Floats = found.x
    return weights


def within_one_standard_error(losses: list[Floats], groups: NDArray[Any] | None = None) -> int:
    """Which of several models to take, the most regularised first: the first that is not clearly worse than the best.

    Clearly worse is a mean loss more than one standard error above the best's, of the differences picture by picture (the
    one-standard-error rule: Breiman et al. 1984, "Classification and Regression Trees", 3.4.3). On a few dozen validation
    pictures the lowest loss is mostly luck, and the stronger regularisation is the safer guess.

    Args:
        losses: for each model, (N,) log-losses of the validation pictures after calibration.
        groups: (N,) names; of pictures that resemble each other many say no more than one.
    """
    best = losses[int(np.argmin([loss.mean() for loss in losses]))]
    for number, loss in enumerate(losses):
        difference = loss - best
        if difference.mean() <= standard_error(difference, groups):
            return number
    raise AssertionError("the best is not worse than itself")


def standard_error(values: Floats, groups: NDArray[Any] | None = None) -> float:
    """Of the mean of (N,) values; of pictures of a group, whose names are (N,) ``groups``, many say no more than one."""
    names = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    of_groups = np.bincount(names, values - values.mean())
    return float(np.sqrt(np.square(of_groups).sum()) / len(values))


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


def _class_weights(labels: Tensor, classes: int, settings: Head) -> Tensor | None:
    """(classes,) weights that make each class's share of the loss equal, scikit-learn's "balanced", where asked for."""
    if settings.class_weight is None:
        return None
    if labels.ndim == 2:  # each class's pictures weigh as much as those without it
        present = labels.sum(0).double().clamp(1, len(labels) - 1)  # a weight of nothing would leave a class untold
        return (len(labels) - present) / present
    return len(labels) / (classes * torch.bincount(labels, minlength=classes).double())


def run(params: Params, data: DataFolder) -> None:
    """The stage head: train a classifier on the cached features."""
    device = set_up(params.threads)
    train, val = (load_features(data.features, split, device) for split in ("train", "val"))
    manifest = read_manifest(data.prepare).set_index("split")
    groups = np.concatenate([manifest.loc[["train"], "group"], manifest.loc[["val"], "group"]])
    classes, task = class_names(manifest), task_of(manifest)
    train_head(train, val, classes, params.head, data.head, groups, task)
    shutil.rmtree(data.head.of_first, ignore_errors=True)
    widths = FeaturesDetails.read(data.features.details).widths
    if widths:  # fine-tuning trains the first network alone, so it starts from a head of its own
        first_train, first_val = ((features[:, : widths[0]], labels) for features, labels in (train, val))
        train_head(first_train, first_val, classes, params.head, data.head.of_first, groups, task)
