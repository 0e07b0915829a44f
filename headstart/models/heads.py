"""Classifiers on a network's features, registered in ``HEADS`` by the name that ``head.kind`` in params.yaml has for them.

Every one is a module that starts and ends with a linear layer. Standardisation of the features is folded into the first
and the temperature into the last, so that a head is stored, fine-tuned, packaged and exported as nothing but its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.models import logistic


class ClassifierHead(nn.Module, ABC):
    """(N, D) features → (N, classes) logits, before temperature. Its ``state_dict`` is what is stored."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit_path(
        cls,
        features: Tensor,
        labels: Tensor,
        classes: int,
        strengths: Sequence[float],
        class_weight: Tensor | None = None,
    ) -> Iterator[tuple[Self, int]]:
        """For each C of ``strengths``, the head that is fitted with it, and the number of steps taken.

        C is the inverse strength of regularisation, as scikit-learn has it: what is minimised is C times the (weighted)
        sum of log-losses plus half the squared weights. The same arguments give the same bytes.

        Args:
            features: (N, D) float32, standardised; the device they are on does the work.
            labels: (N,) int64, in which every class occurs; or (N, classes) ones and zeros where there are several labels.
            strengths: in ascending order.
            class_weight: (classes,) weights of the classes' losses; of ones and zeros, of each class's ones.
        """

    @classmethod
    @abstractmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> Self:
        """An untrained head that ``state`` fits into."""

    @property
    @abstractmethod
    def first(self) -> nn.Linear:
        """The layer that takes the features."""

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The layer that gives the logits."""

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """A new head with the weights of ``state``, on the CPU."""
        head = cls.shaped_like(state)
        head.load_state_dict(state)
        return head

    @torch.no_grad()
    def unstandardised(self, mean: Tensor, scale: Tensor) -> Self:
        """The same classifier for features before they were standardised with ``mean`` and ``scale``, both (D,)."""
        head = type(self).from_state(self.state_dict())
        mean, scale = mean.cpu(), scale.cpu()
        exact = head.first.weight.double() / scale
        head.first.bias.copy_((head.first.bias - exact @ mean.double()).float())
        head.first.weight.copy_(exact.float())
        return head

    @torch.no_grad()
    def with_logits_divided(self, by: float) -> Self:
        """The same classifier, its logits divided by a number."""
        head = type(self).from_state(self.state_dict())
        head.last.weight.div_(by)
        head.last.bias.div_(by)
        return head

    def reset_parameters(self) -> None:
        """Random weights in place of the fitted ones."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


class LinearHead(nn.Linear, ClassifierHead):
    """Logistic regression: multinomial for single labels, one regression per class for several."""

    kind = "linear"

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Self:
        """From weights (classes, D) and bias (classes,)."""
        return cls.from_state({"weight": weight, "bias": bias})

    @classmethod
    def mean(cls, heads: Sequence[ClassifierHead], weights: Sequence[float]) -> Self:
        """The head whose logits are the weighted mean of those of linear ``heads``; the weights add up to 1."""
        states = [head.state_dict() for head in heads]
        weight = torch.tensor(weights, dtype=torch.float64)
        stacks = {key: torch.stack([state[key] for state in states], dim=-1).double() for key in states[0]}
        return cls.from_state({key: (stack @ weight).float() for key, stack in stacks.items()})

    @classmethod
    def fit_path(
        cls,
        features: Tensor,
        labels: Tensor,
        classes: int,
        strengths: Sequence[float],
        class_weight: Tensor | None = None,
    ) -> Iterator[tuple[Self, int]]:
        for weight, bias, steps in logistic.fit_path(features, labels, classes, strengths, class_weight):
            yield cls.of(weight, bias).to(features.device), steps

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> Self:
        classes, width = state["weight"].shape
        return cls(width, classes)

    @property
    def first(self) -> nn.Linear:
        return self

    @property
    def last(self) -> nn.Linear:
        return self


class MlpHead(ClassifierHead):
    """A perceptron with one hidden layer, for classes that no plane through the features separates.

    It is fitted by L-BFGS on all pictures at once, as scikit-learn's ``MLPClassifier(solver="lbfgs", alpha=1 / C)`` is.
    """

    kind = "mlp"
    HIDDEN = 128  # units
    MAX_ITERATIONS = 200
    TOLERANCE = 1e-6  # of the objective from one step to the next

    def __init__(self, width: int, classes: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(functional.gelu(self.hidden(features)))
        return logits

    @classmethod
    def fit_path(
        cls,
        features: Tensor,
        labels: Tensor,
        classes: int,
        strengths: Sequence[float],
        class_weight: Tensor | None = None,
    ) -> Iterator[tuple[Self, int]]:
        n, width = features.shape
        basis = None
        if n < width:  # what the rows do not span costs weight and changes no logit: the optimum has none of it
            basis = torch.linalg.qr(features.T).Q
            features = features @ basis
        weights = logistic.loss_weights(labels, class_weight)
        for strength in strengths:
            # Each from the same start, and not from the solution before: under a strong penalty that is zero throughout,
            # where a hidden layer has no gradient.
            head = cls._start(features.shape[1], width, classes).to(features.device)
            steps = head.fit(features, labels, weights, decay=1 / (strength * n))
            if basis is not None:
                weight = head.hidden.weight.detach() @ basis.T
                head = cls.from_state(head.state_dict() | {"hidden.weight": weight}).to(features.device)
            yield head, steps

    @classmethod
    def _start(cls, inputs: int, width: int, classes: int) -> Self:
        """Always the same; hidden units get inputs of deviation 1 from ``width`` standardised features, which rotated are
        ``inputs``."""
        head, generator = cls(inputs, classes), torch.Generator().manual_seed(0)
        for layer, fan_in in ((head.hidden, width), (head.output, cls.HIDDEN)):
            nn.init.normal_(layer.weight, std=fan_in**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        return head

    @torch.enable_grad()
    def fit(self, features: Tensor, labels: Tensor, weights: Tensor, decay: float) -> int:
        """Minimise the sum of the log-losses times ``weights``, and the penalty; the number of steps taken."""
        optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=self.MAX_ITERATIONS, tolerance_grad=0.0, tolerance_change=self.TOLERANCE,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = self(features)
            if labels.ndim == 1:
                log_losses = functional.cross_entropy(logits, labels, reduction="none")
            else:
                log_losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
            squares = self.hidden.weight.square().sum() + self.output.weight.square().sum()
            value: Tensor = (log_losses * weights).sum() + 0.5 * decay * squares
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        return int(optimizer.state[self.hidden.weight]["n_iter"])

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> Self:
        hidden, width = state["hidden.weight"].shape
        return cls(width, len(state["output.bias"]), hidden)

    @property
    def first(self) -> nn.Linear:
        return self.hidden

    @property
    def last(self) -> nn.Linear:
        return self.output


HEADS: dict[str, type[ClassifierHead]] = {head.kind: head for head in (LinearHead, MlpHead)}
