"""head: multinomial logistic regression on cached features, its strength chosen on validation, then calibrated."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from headstart.checkout import read_json, replacing, write_json, write_text
from headstart.classifier import LinearHead
from headstart.errors import HeadstartError
from headstart.params import Head
from headstart.progress import progress

Floats = NDArray[np.floating[Any]]
WEIGHTS, DETAILS, SWEEP = "head.safetensors", "head.json", "sweep.csv"
MAX_ITERATIONS = 500
FEW_PICTURES = 100  # fewer validation pictures than these cannot tell good from lucky
FOLDS = 5
TEMPERATURE_PRIOR = 0.5  # deviation of the temperature's logarithm


def train_head(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: list[str], settings: Head, folder: Path
) -> LinearHead:
    """Fit one head per C, let validation log-loss choose, and write head, details and sweep.

    With few validation pictures the strength is chosen by cross-validation over training and validation pictures. Every
    other choice is made with heads fitted on training pictures alone, and fine-tuning starts from the one chosen. The
    head that is reported on the test split and packaged is fitted once more at the chosen C, on training and validation
    pictures together (the ``refit`` of scikit-learn's searches).

    Args:
        train, val: (N, D) features and (N,) labels.
    """
    from sklearn.linear_model import LogisticRegression  # seconds, which the stages that only use a head need not wait

    x, y, mean, scale = _standardised(*train)
    v, v_labels = (val[0].numpy() - mean) / scale, val[1].numpy()
    model = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight=settings.class_weight, warm_start=True, tol=1e-3)
    rows: list[dict[str, Any]] = []
    found: list[tuple[Floats, Floats]] = []
    losses: list[Floats] = []
    with progress("head", len(settings.C), "strengths") as advance:
        for strength in sorted(settings.C):  # from strong to weak: each solution is a start for the next
            model.set_params(C=strength).fit(x, y)
            weight, bias = _both_signs(model.coef_, model.intercept_, model.classes_, len(classes))
            logits = v @ weight.T + bias
            temperature = fit_temperature(logits, v_labels)
            losses.append(calibrated_losses(logits, v_labels))
            found.append(_raw(weight, bias, mean, scale))
            rows.append(
                {
                    "C": strength,
                    "val_log_loss": float(losses[-1].mean()),
                    "val_accuracy": float((logits.argmax(1) == v_labels).mean()),
                    "train_accuracy": float(((x @ weight.T + bias).argmax(1) == y).mean()),
                    "temperature": temperature,
                    "iterations": int(np.max(model.n_iter_)),
                }
            )
            advance()
    few = len(v) < FEW_PICTURES and bool(np.bincount(y, minlength=len(classes)).min() >= FOLDS)
    if few:
        losses = _cross_validated(train, val, settings)
    best = within_one_standard_error(losses)
    chosen, temperature = rows[best]["C"], rows[best]["temperature"]
    weights = _class_weights(y, len(classes)) if settings.class_weight == "balanced" else None
    x, y, mean, scale = _standardised(*(torch.cat(pair) for pair in zip(train, val, strict=True)))
    model.set_params(C=chosen).fit(x, y)
    final = _raw(*_both_signs(model.coef_, model.intercept_, model.classes_, len(classes)), mean, scale)
    details = {
        "C": chosen,
        "chosen_by": "cross-validation" if few else "validation",
        "temperature": temperature,
        "classes": classes,
        "class_weight": weights,
        "sweep": rows,
    }
    tensors = dict(zip(("weight", "bias", "refit_weight", "refit_bias"), (*found[best], *final), strict=True))
    _store({name: torch.tensor(value, dtype=torch.float32) for name, value in tensors.items()}, details, folder)
    return load_head(folder)


def _cross_validated(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], settings: Head) -> list[Floats]:
    """For each strength, the (N,) calibrated log-losses of training and validation pictures, each by a head that was
    fitted without its fifth."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = (torch.cat(pair).numpy() for pair in zip(train, val, strict=True))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    losses = []
    for strength in sorted(settings.C):
        logistic = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, class_weight=settings.class_weight, tol=1e-3)
        model = make_pipeline(StandardScaler(), logistic)
        losses.append(calibrated_losses(cross_val_predict(model, x, y, cv=folds, method="predict_log_proba"), y))
    return losses


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


def _standardised(features: Tensor, labels: Tensor) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    """Features with mean 0 and deviation 1, the labels, and the mean and deviation they had."""
    x = features.numpy().astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-8] = 1.0  # a feature that never varies says nothing, and must not be divided by nothing
    return (x - mean) / scale, labels.numpy(), mean, scale


def _raw(weight: Floats, bias: Floats, mean: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """The same classifier on features that are not standardised."""
    weight = weight / scale
    return weight, bias - weight @ mean


def fit_temperature(logits: Floats, labels: NDArray[np.integer[Any]]) -> float:
    """The temperature with the least log-loss (Guo et al. 2017, "On calibration of modern neural networks").

    A normal prior on its logarithm, as much as says "within a factor of e most likely", keeps two dozen pictures that all
    happen to be right from making every answer certain. On hundreds of pictures it no longer shows.
    """

    def loss(log_t: float) -> float:
        surprise = -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels]
        return float((surprise.sum() + log_t**2 / (2 * TEMPERATURE_PRIOR**2)) / len(labels))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def calibrated_losses(logits: Floats, labels: NDArray[np.integer[Any]]) -> Floats:
    """(N,) log-losses after calibration on the same pictures."""
    losses: Floats = -log_softmax(logits / fit_temperature(logits, labels), axis=1)[np.arange(len(labels)), labels]
    return losses


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


def _both_signs(weight: Floats, bias: Floats, present: NDArray[np.int64], classes: int) -> tuple[Floats, Floats]:
    """One row per class. For two classes scikit-learn keeps one row w; softmax over (-w/2, w/2) is the same model."""
    if len(present) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    assert len(present) == classes  # prepare leaves out classes without training pictures
    return weight, bias


def _class_weights(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(w) for w in len(labels) / (classes * counts))


def _store(tensors: dict[str, Tensor], details: dict[str, Any], folder: Path) -> None:
    with replacing(folder / WEIGHTS) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part)
    write_json(folder / DETAILS, details)
    write_rows(details["sweep"], folder / SWEEP)


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows with the same keys, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
