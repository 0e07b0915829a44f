"""Logistic regression over a whole path of regularisation strengths (bench/head_path.py): multinomial for single labels,
and one regression for each class where pictures have several.

The optimum is scikit-learn's: C times the (weighted) sum of log-losses plus half the squared weights, the bias free. What
makes a fit long is that some directions of the features vary a thousand times more than others. Turned into their
principal axes and scaled by an estimate of the curvature along each, all directions are alike to L-BFGS, and a dozen steps
are enough. The estimate is Böhning's (1992, "Multinomial logistic regression algorithm"): the features' second moments,
times the variance of the answers, which here is each class's mean p(1 - p) at the strength before. The axes are found once
and serve all strengths, and each strength starts where the two before it point to. It is the weights that are turned, of
which there are few, and not the features; and since a poor estimate costs a step at most, a sample of the rows is enough
for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from headstart.base.arrays import Floats

LEAST_CURVATURE = 1e-5  # of a class that is certain
MAX_ITERATIONS = 200
TOLERANCE = 1e-5  # of the mean log-loss from one step to the next
ROWS_PER_AXIS, ROWS_FOR_CURVATURE = 16, 4096
BLOCK = 4096  # rows: few enough to be in the cache still when the gradient needs them


def fit_path(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], class_weight: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """For each C of ``strengths``, weights (classes, D), bias (classes,) and the number of steps taken.

    Each solution is a start for the next, so give the strengths in ascending order.

    Args:
        features: (N, D) float32 with mean 0; the device they are on does the work.
        labels: (N,) int64, in which every class occurs; or (N, classes) ones and zeros, for which the optimum is that of
            scikit-learn's ``OneVsRestClassifier``.
        class_weight: (classes,) weights of the classes' losses; of ones and zeros, of each class's ones.
    """
    n, width = features.shape
    if n < width:  # what the rows do not span costs weight and changes no answer: the optimum has none of it
        basis = torch.linalg.qr(features.T).Q
        for weight, bias, steps in fit_path(features @ basis, labels, classes, strengths, class_weight):
            yield weight @ basis.T, bias, steps
        return
    objective: type[_Softmax] | type[_Sigmoid] = _Softmax if labels.ndim == 1 else _Sigmoid
    weights = loss_weights(labels, class_weight)
    share = weights if labels.ndim == 1 else torch.full((n,), 1 / n, device=features.device)
    axis_rows, curvature_rows = (slice(None, None, max(1, n // k)) for k in (ROWS_PER_AXIS * width, ROWS_FOR_CURVATURE))
    moments, axes = _eigen((features[axis_rows].T * share[axis_rows]) @ features[axis_rows] / share[axis_rows].sum())
    blocks = range(0, n, BLOCK if features.device.type == "cpu" else n)
    # Per class; to begin with, where all classes are equally likely, or each as likely to be there as not.
    first = (classes - 1) / classes**2 if objective is _Softmax else 1 / 4
    curvature = torch.full((classes,), first, device=features.device)
    solutions: list[tuple[float, Tensor]] = []  # logarithm of the strength, and weights along the axes beside the bias
    for strength in strengths:
        if solutions:
            last = solutions[-1][1]
            weight, offset = last[:, :-1].contiguous(), last[:, -1].contiguous()
            p = objective.probabilities(torch.addmm(offset, features[curvature_rows], (weight @ axes.T).T))
            shares = share[curvature_rows] / share[curvature_rows].sum()
            curvature = (p * (1 - p) * shares[:, None]).sum(0).clamp(min=LEAST_CURVATURE)
        # For two classes scikit-learn has one row where softmax has two: w counts twice.
        decay = (2 if classes == 2 and objective is _Softmax else 1) / (strength * n)
        scale = (curvature[:, None] * moments.clamp(min=0) + decay).rsqrt()
        bias_scale = curvature.rsqrt()

        def loss(
            flat: Floats, scale: Tensor = scale, bias_scale: Tensor = bias_scale, decay: float = decay
        ) -> tuple[float, Floats]:
            given = torch.from_numpy(flat).to(features).view(classes, width + 1)
            weight, offset = given[:, :-1] * scale, given[:, -1] * bias_scale
            value = 0.5 * decay * weight.double().square().sum()
            by_feature, by_bias = torch.zeros_like(weight), torch.zeros_like(offset)
            turned = (weight @ axes.T).T  # eigenvectors are in columns: as axes @ weight.T it takes ten times as long
            for at in blocks:
                x, y, counted = (each[at : at + blocks.step] for each in (features, labels, weights))
                added, slope = objective.loss_and_slope(torch.addmm(offset, x, turned), y, counted)
                value += added
                by_feature.addmm_(slope.T, x)
                by_bias += slope.sum(0)
            by_weight = (by_feature @ axes + decay * weight) * scale
            gradient = torch.cat([by_weight, (by_bias * bias_scale)[:, None]], dim=1)
            return float(value), gradient.double().cpu().numpy().ravel()

        units = torch.cat([scale, bias_scale[:, None]], dim=1)
        start = units.reciprocal_() * _starting_point(solutions, math.log(strength))
        solved, steps = _minimised(loss, start.double().cpu().numpy().ravel())
        given = torch.from_numpy(solved).to(features).view(classes, width + 1)
        solution, bias = given[:, :-1] * scale, given[:, -1] * bias_scale
        solutions.append((math.log(strength), torch.cat([solution, bias[:, None]], dim=1)))
        yield solution @ axes.T, bias, steps


def _minimised(loss: Callable[[Floats], tuple[float, Floats]], start: Floats) -> tuple[Floats, int]:
    """Where ``loss`` is least, and the number of steps. SciPy's first step goes one unit along the gradient. Since the
    curvature is about one in every direction, the right length is the gradient's own, so that is made the unit."""
    at_start = loss(start)
    unit = float(np.linalg.norm(at_start[1])) or 1.0
    known = [(at_start[0], at_start[1] * unit)]  # SciPy's first call asks for the start

    def in_units(flat: Floats) -> tuple[float, Floats]:
        if known:
            return known.pop()
        value, gradient = loss(flat * unit)
        return value, gradient * unit

    options = {"maxiter": MAX_ITERATIONS, "maxcor": 20, "ftol": TOLERANCE, "gtol": 0.0}
    result = minimize(in_units, start / unit, jac=True, method="L-BFGS-B", options=options)
    return result.x * unit, int(result.nit)


def loss_weights(labels: Tensor, class_weight: Tensor | None) -> Tensor:
    """What each log-loss counts, 1/N where classes have no weights: (N,), or (N, classes) where there are several labels.

    Args:
        labels: as for ``fit_path``.
        class_weight: as for ``fit_path``.
    """
    weights = torch.full(labels.shape, 1 / len(labels), device=labels.device)
    if class_weight is None:
        return weights
    given = class_weight.to(weights)
    return weights * (given[labels] if labels.ndim == 1 else torch.where(labels == 1, given, 1.0))


class _Softmax:
    """One label per picture: (N,) numbers of the classes."""

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)

    @staticmethod
    def loss_and_slope(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the log-losses, and its (N, classes) derivatives."""
        slope = torch.log_softmax(logits, dim=1)
        loss = -(slope.gather(1, labels[:, None])[:, 0].double() * weights).sum()
        slope.exp_()[torch.arange(len(labels), device=labels.device), labels] -= 1
        slope *= weights[:, None]
        return loss, slope


class _Sigmoid:
    """Any number of labels per picture: (N, classes) ones and zeros."""

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    @staticmethod
    def loss_and_slope(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        loss = ((functional.softplus(logits) - labels * logits).double() * weights).sum()
        return loss, (torch.sigmoid(logits) - labels) * weights


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix. Of few pictures that hardly vary it has a low rank, and for some
    such matrices LAPACK gives up in single precision, or answers with what are no numbers."""
    with contextlib.suppress(RuntimeError):  # torch.linalg.LinAlgError is one
        values, vectors = torch.linalg.eigh(matrix)
        if values.isfinite().all() and vectors.isfinite().all():
            return values, vectors
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix), vectors.to(matrix)


def _starting_point(solutions: list[tuple[float, Tensor]], at: float) -> Tensor | float:
    """Where the line through the last two solutions, over the logarithm of the strength, has got to at ``at``."""
    if len(solutions) < 2:
        return solutions[-1][1] if solutions else 0.0
    (first, before), (second, last) = solutions[-2:]
    return torch.lerp(before, last, (at - first) / (second - first)) if second > first else last
