"""The head as a scikit-learn estimator, for features that are already there: those of ``data/features``, or any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from headstart.base.arrays import Floats
from headstart.base.sections import Head
from headstart.models.task import SINGLE_LABEL
from headstart.training.linear_probe import FOLDS, cross_validated, folds_that_hold_each_class, refitted, stacked

STRENGTHS = tuple(Head().C)


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression at several strengths of regularisation, averaged with the weights that suit held-out answers
    best, and calibrated: what the stage head fits and packages, by the same code.

    Features are standardised inside, so that no scaler is needed before it. It works in float32. One label per picture.

    Args:
        C: inverse strengths of regularisation, as those of ``LogisticRegression``; by default those of ``head.C``.
        class_weight: weights of the classes by label, ``"balanced"``, or None for equal ones.

    Attributes:
        classes_: (classes,) the labels, sorted.
        coef_: (classes, D), or (1, D) of two classes.
        intercept_: (classes,), or (1,) of two classes.
        weights_: (strengths,) the share of each strength in the average, in ascending order of the strengths. They come
            from answers in cross-validation, in five folds or fewer where a class is rare. If a class has a single sample,
            or a single group, nothing can be held out; then they are equal and the answers are not calibrated.
        n_features_in_: D.
        feature_names_in_: (D,), where ``X`` had names for its columns.
    """

    def __init__(
        self,
        C: Sequence[float] = STRENGTHS,  # noqa: N803 - scikit-learn's names
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:  # noqa: N803
        """
        Args:
            X: (N, D) features.
            y: (N,) labels.
            groups: (N,) names. Samples of a group resemble each other, and are held out together.

        Raises:
            ValueError: there are fewer than two classes, or the arrays are not of these shapes, or not finite.
        """
        x, labels = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise ValueError(f"{type(self).__name__} needs two classes at least, and found one class: {self.classes_[0]}")
        balanced, weigh = self.class_weight == "balanced", None
        settings = Head(C=[float(strength) for strength in self.C], class_weight="balanced" if balanced else None)
        strengths = sorted(settings.C)
        if self.class_weight is not None and not balanced:
            weigh = torch.from_numpy(compute_class_weight(self.class_weight, classes=self.classes_, y=labels))
        given = (torch.tensor(x), torch.from_numpy(numbers), count, strengths, settings)
        names = None if groups is None else np.asarray(groups)
        tried = (folds_that_hold_each_class(numbers, names, parts) for parts in range(FOLDS, 1, -1))
        weights, temperature = np.full(len(strengths), 1 / len(strengths)), 1.0
        if folds := next(filter(None, tried), None):
            stack = stacked(cross_validated(*given, folds, class_weight=weigh), numbers)
            weights, temperature = stack / stack.sum(), 1 / float(stack.sum())
        head = refitted(*given, weights, weigh).with_logits_divided(temperature)
        self.weights_ = weights
        self.coef_, self.intercept_ = head.first.weight.detach().numpy(), head.first.bias.detach().numpy()
        if count == 2:  # as scikit-learn has it: one row, which is positive for the second class
            self.coef_, self.intercept_ = np.diff(self.coef_, axis=0), np.diff(self.intercept_)
        return self

    def decision_function(self, X: ArrayLike) -> Floats:  # noqa: N803
        """(N, classes) logits, or (N,) of two classes.

        Args:
            X: (N, D) features.
        """
        check_is_fitted(self)
        logits: Floats = validate_data(self, X, dtype=np.float32, reset=False) @ self.coef_.T + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """(N,) labels of (N, D) features."""
        numbers = SINGLE_LABEL.predict(self._logits(X))
        labels: NDArray[Any] = self.classes_[numbers]
        return labels

    def predict_proba(self, X: ArrayLike) -> Floats:  # noqa: N803
        """(N, classes) calibrated probabilities of (N, D) features."""
        return SINGLE_LABEL.probabilities(self._logits(X))

    def predict_log_proba(self, X: ArrayLike) -> Floats:  # noqa: N803
        """(N, classes) logarithms of ``predict_proba``."""
        logits = self._logits(X)
        logarithms: Floats = logits - logsumexp(logits, axis=1, keepdims=True)  # finite where a probability rounds to 0
        return logarithms

    def _logits(self, given: ArrayLike) -> Floats:
        """(N, classes), of two classes too."""
        logits = self.decision_function(given).astype(np.float64)
        return np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits
