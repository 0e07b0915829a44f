"""rank.json: which backbone is best for these pictures."""

from __future__ import annotations

from typing import ClassVar

from headstart.base.artifacts.card import Frame
from headstart.base.artifacts.json_file import JsonFile, Part


class RankedBackbone(Part):
    """A row of the table; null where nothing is known.

    Attributes:
        backbone: as ``rank.candidates`` has it.
        size, frame: of what it is shown.
        probe_accuracy, low, high: of a logistic regression on frozen features, cross-validated, with its 95% interval.
        pictures: that it was measured on.
        note: why it has no figures, was dropped, or is over the budget.
    """

    backbone: str
    size: int | None = None
    frame: Frame | None = None
    probe_accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    log_loss: float | None = None
    log_loss_low: float | None = None
    log_loss_high: float | None = None
    logme: float | None = None
    knn_accuracy: float | None = None
    imagenet_top1: float | None = None
    imagenet_top5: float | None = None
    gmacs: float | None = None
    parameters: int | None = None
    megabytes: float | None = None
    images_per_s: float | None = None
    finetune_minutes: float | None = None
    pictures: int | None = None
    note: str | None = None


class Ranking(JsonFile):
    """
    Attributes:
        choice: the backbone to take; None where none is to be chosen.
        table: best first.
    """

    made_by: ClassVar[str] = "dvc repro studies/dvc.yaml:rank"

    choice: str | None
    reason: str
    table: list[RankedBackbone]
