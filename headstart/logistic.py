"""Multinomial logistic regression over a whole path of regularisation strengths (bench/head_path.py).

The optimum is scikit-learn's: C times the (weighted) sum of log-losses plus half the squared weights, the bias free. What
makes a fit long is that some directions of the features vary a thousand times more than others. Turned into their
principal axes and scaled by an estimate of the curvature along each (Böhning 1992, "Multinomial logistic regression
algorithm", bounds the Hessian by the features' second moments), all directions are alike to L-BFGS, and a few dozen steps
are enough. The axes are found once and serve every strength.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

MAX_ITERATIONS = 200
TOLERANCE = 3e-7  # of the mean log-loss from one step to the next


def fit_path(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], class_weight: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """For each C of ``strengths``, weights (classes, D), bias (classes,) and the number of steps taken.

    Each solution is the start for the next, so give the strengths in order.

    Args:
        features: (N, D) float32 with mean 0; the device they are on does the work.
        labels: (N,) int64; every class occurs.
        class_weight: (classes,) weights of the classes' losses.
    """
    n, width = features.shape
    share = torch.full((n,), 1 / n, device=features.device)
    if class_weight is not None:
        share = share * class_weight.to(share)[labels]
    moments, axes = torch.linalg.eigh((features.T * share) @ features)
    turned = features @ axes
    curvature = (classes - 1) / classes**2  # of softmax where all classes are equally likely
    bias_scale = curvature**-0.5
    solution = torch.zeros(classes, width, device=features.device)  # along the axes
    bias = torch.zeros(classes, device=features.device)
    for strength in strengths:
        decay = (2 if classes == 2 else 1) / (strength * n)  # scikit-learn has one row for two classes: w counts twice
        scale = (curvature * moments.clamp(min=0) + decay).rsqrt()

        def loss(
            flat: NDArray[np.float64], scale: Tensor = scale, decay: float = decay
        ) -> tuple[float, NDArray[np.float64]]:
            given = torch.from_numpy(flat).to(features).view(classes, width + 1)
            weight, offset = given[:, :-1] * scale, given[:, -1] * bias_scale
            logits = torch.addmm(offset, turned, weight.T)
            log_p = torch.log_softmax(logits, dim=1)
            surprise = -log_p.gather(1, labels[:, None])[:, 0]
            value = (surprise.double() * share).sum() + 0.5 * decay * weight.double().square().sum()
            slope = log_p.exp_()
            slope[torch.arange(n, device=slope.device), labels] -= 1
            slope *= share[:, None]
            by_weight = (slope.T @ turned + decay * weight) * scale
            gradient = torch.cat([by_weight, (slope.sum(0) * bias_scale)[:, None]], dim=1)
            return float(value), gradient.double().cpu().numpy().ravel()

        start = torch.cat([solution / scale, (bias / bias_scale)[:, None]], dim=1).double().cpu().numpy().ravel()
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS, "maxcor": 20, "ftol": TOLERANCE, "gtol": 0.0},
        )  # fmt: skip
        given = torch.from_numpy(found.x).to(features).view(classes, width + 1)
        solution, bias = given[:, :-1] * scale, given[:, -1] * bias_scale
        yield solution @ axes.T, bias, int(found.nit)
