"""What a classifier is trained for: what a label is, the training loss, and how logits become probabilities and a decision.

Heads, classifiers and scores carry their ``Task``, and whatever depends on it asks there: a second kind, such as several
labels per picture, is another class. Which metrics a task has stands with the metrics (``evaluation.metrics.METRICS``).
The heads of ``models.heads`` are fitted to single labels; what fits them names ``SINGLE_LABEL``.
The module travels inside packaged models: it imports nothing but NumPy until more is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.base.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor, nn

    Values = TypeVar("Values", Tensor, NDArray[Any])

SMALLEST = 1e-15  # probability that a loss is taken of: a certain and wrong answer costs much, but not infinitely much


class Task(ABC):
    """One kind of classification. Arrays are NumPy's or torch's, the last axis is the classes', N counts pictures."""

    @abstractmethod
    def encode(self, labels: Iterable[Any], classes: Sequence[str]) -> Ints:
        """Labels as they stand in a manifest → numbers to train on and to compare with, one entry per picture."""

    @abstractmethod
    def training_loss(self, class_weight: Tensor | None = None, label_smoothing: float = 0.0) -> nn.Module:
        """(N, classes) logits and encoded labels → the loss that a step of training reduces."""

    @abstractmethod
    def probabilities(self, logits: Values) -> Values:
        """(..., classes) → (..., classes). Calibrated where the logits were divided by the temperature."""

    @abstractmethod
    def decide(self, probabilities: Values) -> Values:
        """(..., classes) probabilities → the answer, comparable with encoded labels."""

    @abstractmethod
    def predict(self, logits: Values) -> Values:
        """(..., classes) logits → the answer, which is that of their probabilities."""

    @abstractmethod
    def correct(self, predicted: Ints, labels: Ints) -> Bools:
        """(N,) whether the answer is the encoded label."""

    @abstractmethod
    def confidence(self, probabilities: Values) -> Values:
        """(..., classes) → (...) the probability of the answer."""

    @abstractmethod
    def losses(self, logits: Floats, labels: Ints) -> Floats:
        """(N,) log-losses of (N, classes) logits, as they are."""

    @abstractmethod
    def losses_of_probabilities(self, probabilities: Floats, labels: Ints) -> Floats:
        """(N,) log-losses of (N, classes) probabilities, that of a certain and wrong answer limited."""

    @abstractmethod
    def answer(self, probabilities: Floats, classes: Sequence[str]) -> tuple[str, float]:
        """(classes,) probabilities of one picture → the answer in the classes' names, and its confidence."""


class SingleLabel(Task):
    """Each picture is of exactly one class: softmax, cross-entropy, and the most probable class is the answer."""

    def encode(self, labels: Iterable[Any], classes: Sequence[str]) -> Ints:
        """(N,) numbers of the classes; -1 for a label that is none of them."""
        numbers = {name: number for number, name in enumerate(classes)}
        return np.array([numbers.get(label, -1) for label in labels], np.int64)

    def training_loss(self, class_weight: Tensor | None = None, label_smoothing: float = 0.0) -> nn.Module:
        from torch import nn

        return nn.CrossEntropyLoss(weight=class_weight, label_smoothing=label_smoothing)

    def probabilities(self, logits: Values) -> Values:
        if isinstance(logits, np.ndarray):
            from scipy.special import softmax

            probabilities: NDArray[Any] = softmax(logits, axis=-1)
            return probabilities
        return logits.softmax(dim=-1)

    def decide(self, probabilities: Values) -> Values:
        likeliest: Values = probabilities.argmax(-1)
        return likeliest

    def predict(self, logits: Values) -> Values:
        highest: Values = logits.argmax(-1)  # softmax keeps their order
        return highest

    def correct(self, predicted: Ints, labels: Ints) -> Bools:
        correct: Bools = predicted == labels
        return correct

    def confidence(self, probabilities: Values) -> Values:
        if isinstance(probabilities, np.ndarray):
            highest: NDArray[Any] = probabilities.max(-1)
            return highest
        return probabilities.amax(-1)

    def losses(self, logits: Floats, labels: Ints) -> Floats:
        from scipy.special import log_softmax

        losses: Floats = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
        return losses

    def losses_of_probabilities(self, probabilities: Floats, labels: Ints) -> Floats:
        own = probabilities[np.arange(len(labels)), labels]
        losses: Floats = -np.log(np.clip(own, SMALLEST, 1))
        return losses

    def answer(self, probabilities: Floats, classes: Sequence[str]) -> tuple[str, float]:
        return classes[int(self.decide(probabilities))], float(self.confidence(probabilities))


SINGLE_LABEL = SingleLabel()
