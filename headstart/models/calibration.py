"""Temperature scaling, and the log-losses after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from headstart.base.arrays import Floats, Ints
from headstart.models.task import SINGLE_LABEL, Task

TEMPERATURE_PRIOR = 0.5  # deviation of the temperature's logarithm


def fit_temperature(logits: Floats, labels: Ints, task: Task = SINGLE_LABEL) -> float:
    """The temperature with the least log-loss (Guo et al. 2017, "On calibration of modern neural networks").

    A normal prior on its logarithm, as much as says "within a factor of e most likely", keeps two dozen pictures that all
    happen to be right from making every answer certain. On hundreds of pictures it no longer shows.
    """

    def loss(log_t: float) -> float:
        losses = task.losses(logits / np.exp(log_t), labels)
        return float((losses.sum() + log_t**2 / (2 * TEMPERATURE_PRIOR**2)) / len(labels))

    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(result.x))


def calibrated_losses(logits: Floats, labels: Ints, task: Task = SINGLE_LABEL) -> Floats:
    """(N,) log-losses after calibration on the same pictures."""
    return task.losses(logits / fit_temperature(logits, labels, task), labels)


def averaged_head(
    heads: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    temperatures: Sequence[float],
    shares: Sequence[float],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of one linear head on the features of several networks, side by side, whose answers are the weighted
    mean of theirs in log-probabilities; its temperature is 1.

    Such a mean of log-probabilities is, up to a number that the softmax takes out again, the weighted sum of the logits.

    Args:
        heads: of each network, its (classes, D) weight and (classes,) bias.
        temperatures: of each.
        shares: of each; they add up to 1.
    """
    factors = [share / temperature for share, temperature in zip(shares, temperatures, strict=True)]
    pairs = list(zip(factors, heads, strict=True))
    weight = np.concatenate([factor * weight.astype(np.float64) for factor, (weight, _) in pairs], axis=1)
    bias = np.sum([factor * bias.astype(np.float64) for factor, (_, bias) in pairs], axis=0)
    return weight.astype(np.float32), bias.astype(np.float32)
