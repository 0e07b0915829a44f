"""What a classifier is trained for: what a label is, the training loss, and how logits become probabilities and a decision.

Heads, classifiers and scores carry their ``Task``, and whatever depends on it asks there. Which metrics a task has stands
with the metrics (``evaluation.metrics.METRICS``).
The module travels inside packaged models: it imports nothing but NumPy until more is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.base.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    Values = TypeVar("Values", Tensor, NDArray[Any])

SMALLEST = 1e-15  # probability that a loss is taken of: a certain and wrong answer costs much, but not infinitely much


class Task(ABC):
    """One kind of classification. Arrays are NumPy's or torch's, the last axis is the classes', N counts pictures.

    Encoded labels are (N,) numbers of the classes, or (N, classes) zeros and ones.

    Attributes:
        kind: its name in files.
        column: of the manifest, which holds the labels.
        thresholds: the probabilities from which on each class is an answer; None where the most probable one is.
    """

    kind: ClassVar[Literal["single-label", "multi-label"]]
    column: ClassVar[str]
    thresholds: tuple[float, ...] | None = None

    def labels_of(self, manifest: pd.DataFrame, classes: Sequence[str]) -> Ints:
        """The encoded labels of a manifest's pictures."""
        return self.encode(manifest[self.column], classes)

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
    def slopes(self, logits: Floats, labels: Ints) -> Floats:
        """(N, classes) derivatives of the log-losses of (N, classes) logits, each picture's with respect to its own."""

    @abstractmethod
    def losses_of_probabilities(self, probabilities: Floats, labels: Ints) -> Floats:
        """(N,) log-losses of (N, classes) probabilities, that of a certain and wrong answer limited."""

    @abstractmethod
    def answer(self, probabilities: Floats, classes: Sequence[str]) -> tuple[str, float]:
        """(classes,) probabilities of one picture → the answer in the classes' names, and its confidence."""

    def with_thresholds(self, probabilities: Floats, labels: Ints) -> Task:
        """The task with thresholds of decision, where it has any, that suit (N, classes) calibrated probabilities of
        pictures that the classifier was not fitted on."""
        return self


class SingleLabel(Task):
    """Each picture is of exactly one class: softmax, cross-entropy, and the most probable class is the answer."""

    kind = "single-label"
    column = "label"

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

    def slopes(self, logits: Floats, labels: Ints) -> Floats:
        slopes: Floats = self.probabilities(logits)
        slopes[np.arange(len(labels)), labels] -= 1
        return slopes

    def losses_of_probabilities(self, probabilities: Floats, labels: Ints) -> Floats:
        own = probabilities[np.arange(len(labels)), labels]
        losses: Floats = -np.log(np.clip(own, SMALLEST, 1))
        return losses

    def answer(self, probabilities: Floats, classes: Sequence[str]) -> tuple[str, float]:
        return classes[int(self.decide(probabilities))], float(self.confidence(probabilities))


@dataclass(frozen=True)
class MultiLabel(Task):
    """Each picture has any number of classes, or none: a sigmoid and binary cross-entropy for each class. The answer is
    every class whose probability reaches its threshold.

    Attributes:
        thresholds: 0.5 each where there are none.
    """

    thresholds: tuple[float, ...] | None = None

    kind = "multi-label"
    column = "labels"

    def encode(self, labels: Iterable[Any], classes: Sequence[str]) -> Ints:
        """(N, classes) ones where a picture has the class. A label that is no class counts for nothing."""
        numbers = {name: number for number, name in enumerate(classes)}
        rows = [[numbers[name] for name in names if name in numbers] for names in labels]
        encoded = np.zeros((len(rows), len(classes)), np.int64)
        for row, present in zip(encoded, rows, strict=True):
            row[present] = 1
        return encoded

    def training_loss(self, class_weight: Tensor | None = None, label_smoothing: float = 0.0) -> nn.Module:
        from headstart.models.losses import BinaryCrossEntropy

        return BinaryCrossEntropy(class_weight, label_smoothing)

    def probabilities(self, logits: Values) -> Values:
        if isinstance(logits, np.ndarray):
            from scipy.special import expit

            probabilities: NDArray[Any] = expit(logits)
            return probabilities
        return logits.sigmoid()

    def decide(self, probabilities: Values) -> Values:
        """(..., classes) ones and zeros."""
        if isinstance(probabilities, np.ndarray):
            present: NDArray[Any] = (probabilities >= self._bounds(probabilities.shape[-1])).astype(np.int64)
            return present
        return (probabilities >= probabilities.new_tensor(self._bounds(probabilities.shape[-1]))).long()

    def predict(self, logits: Values) -> Values:
        return self.decide(self.probabilities(logits))

    def correct(self, predicted: Ints, labels: Ints) -> Bools:
        """(N,) whether all classes are right."""
        correct: Bools = (predicted == labels).all(-1)
        return correct

    def confidence(self, probabilities: Values) -> Values:
        """(...) the probability of the whole answer, were the classes independent of each other."""
        present = self.decide(probabilities)
        confidence: Values = (probabilities * present + (1 - probabilities) * (1 - present)).prod(-1)
        return confidence

    def losses(self, logits: Floats, labels: Ints) -> Floats:
        """(N,) binary log-losses, the mean of the classes'."""
        losses: Floats = (np.logaddexp(0, logits) - labels * logits).mean(-1)
        return losses

    def slopes(self, logits: Floats, labels: Ints) -> Floats:
        slopes: Floats = (self.probabilities(logits) - labels) / logits.shape[-1]
        return slopes

    def losses_of_probabilities(self, probabilities: Floats, labels: Ints) -> Floats:
        own = np.where(labels == 1, probabilities, 1 - probabilities)
        losses: Floats = -np.log(np.clip(own, SMALLEST, 1)).mean(-1)
        return losses

    def answer(self, probabilities: Floats, classes: Sequence[str]) -> tuple[str, float]:
        present = self.decide(probabilities)
        names = [name for name, is_there in zip(classes, present, strict=True) if is_there]
        return LABEL_SEPARATOR.join(names), float(self.confidence(probabilities))

    def with_thresholds(self, probabilities: Floats, labels: Ints) -> MultiLabel:
        """For each class the threshold with the highest F1, as far as there are pictures to tell: what a class gains is
        weighed against what pictures of all classes say together, as if those were ten more of its own.

        A threshold that is chosen for one class alone by a handful of its pictures is mostly luck (Lipton et al. 2014,
        "Optimal thresholding of classifiers to maximize F1 measure", on such "winner's curse").
        """
        together = _f1_at_steps(probabilities.ravel(), labels.ravel())
        bounds = []
        for p, present in zip(probabilities.T, labels.T, strict=True):
            count = int(present.sum())
            own = _f1_at_steps(p, present) if count else 0.0
            bounds.append(float(STEPS[int(np.argmax(count * own + PRIOR_PICTURES * together))]))
        return MultiLabel(tuple(bounds))

    def _bounds(self, classes: int) -> Floats:
        return np.full(classes, 0.5) if self.thresholds is None else np.array(self.thresholds)


LABEL_SEPARATOR = ";"  # between the names of an answer; headstart.data refuses classes that have one in their names
STEPS = np.round(np.arange(0.02, 0.99, 0.01), 2)  # thresholds to choose from
PRIOR_PICTURES = 10


def _f1_at_steps(probabilities: Floats, present: Ints) -> Floats:
    """(steps,) F1 of the answers with each of ``STEPS`` as threshold."""
    reached = np.searchsorted(STEPS, probabilities, side="right")  # how many of the thresholds
    counts = [np.bincount(reached[some], minlength=len(STEPS) + 1) for some in (slice(None), present == 1)]
    answered, hits = (count[::-1].cumsum()[::-1][1:] for count in counts)
    f1: Floats = 2 * hits / np.maximum(answered + present.sum(), 1)
    return f1


SINGLE_LABEL = SingleLabel()
MULTI_LABEL = MultiLabel()


def task_of(manifest: pd.DataFrame) -> Task:
    """The task that a manifest's pictures are for."""
    return MULTI_LABEL if MULTI_LABEL.column in manifest.columns else SINGLE_LABEL


def task_named(kind: str, thresholds: Sequence[float] | None = None) -> Task:
    """The task as files have it."""
    return MultiLabel(None if thresholds is None else tuple(thresholds)) if kind == MultiLabel.kind else SINGLE_LABEL
