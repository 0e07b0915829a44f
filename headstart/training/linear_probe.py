"""head: a classifier on cached features, its regularisation chosen on validation, then calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
from headstart.base.artifacts.head import ChosenBy, HeadDetails, Strength
from headstart.base.device import one_thread, set_up
from headstart.base.params import Head, Params
from headstart.base.progress import Advance, progress
from headstart.data.manifest import class_names, read_manifest
from headstart.data.splits import FEW_PICTURES
from headstart.models.calibration import TEMPERATURE_PRIOR, calibrated_losses, fit_temperature
from headstart.models.classifier import FittedHead
from headstart.models.heads import HEADS, ClassifierHead, LinearHead
from headstart.models.task import SINGLE_LABEL
from headstart.training.feature_files import load_features
from headstart.training.head_files import load_head, store_head

FOLDS = 5
MOST_FOR_ONE_THREAD = 2e9  # features times classes: of fewer, threads that share a fit cost more than they bring
MOST_IN_FOLDS = 30_000  # pictures; the folds of a linear head take minutes where there are more

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
    """Fit a head at every strength of regularisation, average or choose, and write the head, its details and the sweep.

    Linear heads are averaged, which makes a linear head, with the weights that suit their answers on pictures that they
    were not fitted on: those of five-fold cross-validation over training and validation pictures (``stacked``). One head is
    chosen where they are not linear, where there are so many pictures that the folds would take minutes, and where a class
    has too few pictures for folds: by cross-validation or on validation, with the one-standard-error rule.
    ``bench/head_choice.py`` compares these rules.

    Every other choice is made with the head of training pictures alone, and fine-tuning starts from it. The head that is
    reported on the test split and packaged is fitted on training and validation pictures together, with the same weights
    (the ``refit`` of scikit-learn's searches).

    Args:
        train: (N, D) features and (N,) labels, on the device that is to do the work.
        val: likewise.
        groups: of the training pictures and then the validation pictures, (N,) names; pictures of one group resemble each
            other, and are on the same side where it is cross-validated.
    """
    kind, strengths = HEADS[settings.kind], sorted(settings.C)
    both, labels = (torch.cat(pair) for pair in zip(train, val, strict=True))
    truth, v_labels = labels.cpu().numpy(), val[1].cpu().numpy()
    folds = _folds_where_they_pay(kind, truth, len(v_labels), groups)
    rows: list[Strength] = []
    heads: list[ClassifierHead] = []
    losses: list[Floats] = []
    with progress("head", (2 + len(folds)) * len(strengths), "fits") as advance, torch.no_grad():
        fits = _fits(*train, len(classes), strengths, settings, advance)
        for strength, (head, logits_of, steps) in zip(strengths, fits, strict=True):
            logits = logits_of(val[0]).cpu().numpy()
            temperature = fit_temperature(logits, v_labels)
            losses.append(SINGLE_LABEL.losses(logits / temperature, v_labels))
            heads.append(head)
            rows.append(
                Strength(
                    C=strength,
                    weight=0.0,
                    val_log_loss=float(losses[-1].mean()),
                    val_accuracy=float((SINGLE_LABEL.predict(logits) == v_labels).mean()),
                    train_accuracy=float((SINGLE_LABEL.predict(logits_of(train[0])) == train[1]).float().mean()),
                    temperature=temperature,
                    iterations=steps,
                )
            )
        chosen_by: ChosenBy = "validation"
        weights, refit_temperature = _all_on(within_one_standard_error(losses), len(strengths)), None
        if folds:
            held_out = cross_validated(both, labels, len(classes), strengths, settings, folds, advance)
            if kind is LinearHead:
                chosen_by, weights = "stacking", stacked(held_out, truth)
                refit_temperature = 1 / float(weights.sum())
                weights = weights / weights.sum()
            else:
                losses = [calibrated_losses(logits, truth) for logits in held_out]
                chosen_by, weights = "cross-validation", _all_on(within_one_standard_error(losses), len(strengths))
        refits = [head for head, _, _ in _fits(both, labels, len(classes), strengths, settings, advance)]
        head, refit = _weighted(heads, weights), _weighted(refits, weights)
        temperature = fit_temperature(head(val[0].cpu()).numpy(), v_labels)
    class_weight = _class_weights(train[1], len(classes), settings)
    details = HeadDetails(
        kind=kind.kind,
        C=strengths[int(weights.argmax())],
        chosen_by=chosen_by,
        temperature=temperature,
        refit_temperature=refit_temperature or temperature,
        classes=classes,
        class_weight=None if class_weight is None else class_weight.tolist(),
        sweep=[row.model_copy(update={"weight": round(float(w), 6)}) for row, w in zip(rows, weights, strict=True)],
    )
    store_head(head, refit, details, folder)
    return load_head(folder)


def _fits(
    x: Tensor, y: Tensor, classes: int, strengths: list[float], settings: Head, advance: Advance
) -> Iterator[tuple[ClassifierHead, Callable[[Tensor], Tensor], int]]:
    """For each strength, in ascending order: the head on the CPU, what makes logits of features where ``x`` is, and the
    number of steps taken."""
    with one_thread() if x.numel() * classes < MOST_FOR_ONE_THREAD else nullcontext():
        features, mean, scale = standardised(x)
        path = HEADS[settings.kind].fit_path(features, y, classes, strengths, _class_weights(y, classes, settings))
        for fitted, steps in path:

            def logits_of(features: Tensor, fitted: ClassifierHead = fitted) -> Tensor:
                logits: Tensor = fitted((features - mean) / scale)
                return logits

            yield fitted.unstandardised(mean, scale), logits_of, steps
            advance()


def _all_on(number: int, count: int) -> Floats:
    """(count,) weights of which one is all."""
    weights: Floats = np.eye(count)[number]
    return weights


def _weighted(heads: list[ClassifierHead], weights: Floats) -> ClassifierHead:
    """The head whose logits are the weighted mean of theirs; only linear ones have more than one weight above 0."""
    if weights.max() == 1:
        return heads[int(weights.argmax())]
    return LinearHead.mean([head for head in heads if isinstance(head, LinearHead)], weights.tolist())


Folds = list[tuple[Ints, Ints]]


def folds_of(labels: Ints, groups: NDArray[Any] | None = None) -> Folds:
    """Five times the pictures to fit on and those held out, (N,) numbers in all; ``groups``, (N,), stay together."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # seconds, which not everybody need wait for

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(kind(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups))


def _folds_where_they_pay(kind: type[ClassifierHead], labels: Ints, validation: int, groups: NDArray[Any] | None) -> Folds:
    """Folds, if every one can hold each class and they take seconds, or there are few pictures to choose with otherwise.

    Args:
        labels: (N,) of training and validation pictures.
        validation: how many of them are validation pictures.
    """
    if groups is None or len(set(groups)) == len(groups):
        independent, groups = np.bincount(labels), None
    else:
        independent = np.array([len(set(groups[labels == number])) for number in range(int(labels.max()) + 1)])
    pay = len(labels) <= MOST_IN_FOLDS if kind is LinearHead else validation < FEW_PICTURES
    return folds_of(labels, groups) if pay and int(independent.min()) >= FOLDS else []


def cross_validated(
    x: Tensor,
    y: Tensor,
    classes: int,
    strengths: list[float],
    settings: Head,
    folds: Folds,
    advance: Advance = lambda *_: None,
) -> NDArray[np.float32]:
    """(strengths, N, classes) logits of all pictures, each by a head that was fitted without its fold.

    Args:
        x: (N, D) features.
        y: (N,) labels.
        strengths: in ascending order.
    """
    logits = np.zeros((len(strengths), len(y), classes), np.float32)

    @torch.no_grad()
    def fit(fold: tuple[Ints, Ints]) -> None:
        fitted, held_out = fold
        fits = _fits(x[fitted], y[fitted], classes, strengths, settings, advance)
        for number, (_, logits_of, _) in enumerate(fits):
            logits[number, held_out] = logits_of(x[held_out]).cpu()

    # Threads that share one fit wait for each other more than they bring (bench/head_path.py), so each has a fold.
    with one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fit, folds):
            pass
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
        total = max(weights.sum(), 1e-6)  # of no weight at all there is no logarithm
        log_sum = np.log(total)
        weighted = np.tensordot(weights, logits, 1)
        weighted -= logsumexp(weighted, axis=1, keepdims=True)
        value = -weighted[np.arange(len(labels)), labels].sum() + log_sum**2 / (2 * TEMPERATURE_PRIOR**2)
        expected = np.einsum("nc,snc->s", np.exp(weighted), logits)
        gradient = expected - own.sum(1) + log_sum / (TEMPERATURE_PRIOR**2 * total)
        return value / len(labels), gradient / len(labels)

    start = np.full(len(logits), 1 / len(logits))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, 20)] * len(logits))
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
