"""How well frozen features suit a set of pictures: a probe, nearest neighbours, LogME."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from headstart.base.arrays import Bools, Floats, Ints
from headstart.models.task import SINGLE_LABEL, Task
from headstart.training.linear_probe import Folds, held_out_logits

NEIGHBOURS = 5


@dataclass(frozen=True)
class Probe:
    """What a logistic regression on frozen features says of pictures that were held out when it was fitted.

    Attributes:
        losses: (N,) log-losses, calibrated.
        correct: (N,) whether the answer was right.
        groups: (N,) numbers of the groups that the pictures belong to; None where each is on its own.
    """

    losses: Floats
    correct: Bools
    groups: Ints | None = None


def probe(features: Tensor, labels: Ints, folds: Folds, task: Task = SINGLE_LABEL, groups: Ints | None = None) -> Probe:
    """(N, D) features → what five regressions say of them, each of the fold that it was not fitted on."""
    logits = held_out_logits(features, labels, folds, task)
    return Probe(task.losses(logits, labels), task.correct(task.predict(logits), labels), groups)


def knn_accuracy(features: Tensor, labels: Ints, folds: Folds, task: Task = SINGLE_LABEL) -> float:
    """Accuracy of the five nearest neighbours by cosine, those in a picture's own fold left out."""
    from sklearn.neighbors import KNeighborsClassifier

    x, right, asked = features.cpu().numpy(), 0, labels
    if labels.ndim == 2 and labels.shape[1] == 1:  # scikit-learn warns of an axis for one class
        asked = labels[:, 0]
    for fitted, held_out in folds:
        nearest = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(x[fitted], asked[fitted])
        answers = nearest.predict(x[held_out]).reshape(labels[held_out].shape)
        right += int(task.correct(answers, labels[held_out]).sum())
    return right / len(labels)


def log_me(features: Floats, labels: Ints) -> float:
    """LogME (You et al. 2021, "LogME: practical assessment of pre-trained models for transfer learning"): the logarithm of
    the evidence, per picture and averaged over classes, for a Bayesian linear regression from features to "of this class".

    With F = U diag(s) V' the evidence for prior precision alpha and noise precision beta needs no more than s and U'y; both
    precisions are raised to its maximum by the fixed-point iteration of You et al. 2022, section 4.

    Args:
        features: (N, D).
        labels: (N,) numbers of two classes or more, or (N, classes) ones and zeros.
    """
    n = len(labels)
    u, s, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    some = s > s.max() * 1e-7  # directions in which the features have any extent
    u, squared = u[:, some], s[some] ** 2
    evidences = []
    of_class = labels.T if labels.ndim == 2 else [labels == number for number in np.unique(labels)]
    for y in (each for each in of_class if each.any() and not each.all()):
        along = (u.T @ y) ** 2
        outside = y.sum() - along.sum()  # of |y|², what no weights can reach
        alpha = beta = 1.0
        for _ in range(100):
            ratio = alpha / beta
            free = (squared / (squared + ratio)).sum()  # well-determined directions, MacKay's gamma
            weights = (squared * along / (squared + ratio) ** 2).sum()
            residual = (along * (ratio / (squared + ratio)) ** 2).sum() + outside
            alpha, beta = free / max(weights, 1e-12), (n - free) / max(residual, 1e-12)
            if abs(alpha / beta - ratio) <= 1e-4 * ratio:
                break
        fit = n * np.log(beta / (2 * np.pi)) - beta * residual - alpha * weights
        evidences.append((fit + np.log(alpha / (alpha + beta * squared)).sum()) / (2 * n))
    return float(np.mean(evidences))
