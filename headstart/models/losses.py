"""Losses of training that torch has not in this form."""

from __future__ import annotations

from torch import Tensor, nn


class BinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """(N, classes) logits and (N, classes) zeros and ones → the mean binary cross-entropy.

    Labels are smoothed as by ``timm.loss.BinaryCrossEntropy``: smoothing is divided by the number of classes, or it would
    make rare classes likelier than they are.

    Args:
        class_weight: (classes,) weights of each class's ones, torch's ``pos_weight``.
        label_smoothing: as for ``torch.nn.CrossEntropyLoss``.
    """

    def __init__(self, class_weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(pos_weight=class_weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        off = self.label_smoothing / logits.shape[1]
        targets = labels.to(logits.dtype) * (1 - self.label_smoothing) + off
        return super().forward(logits, targets)
