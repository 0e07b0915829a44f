"""why.json: is pre-training worth it, and how much of the network should be trained?"""

from __future__ import annotations

from typing import ClassVar, Literal

from headstart.base.artifacts.json_file import Interval, JsonFile, Part, absent, default

Start = Literal["frozen", "finetuned", "scratch"]
Cut = Literal["none", "last", "half", "all"]
Size = Literal["small", "medium", "large"]
Verdict = Literal["worth it", "not worth it", "can't tell"]


class CurvePoint(Part):
    """Accuracy on held-out pictures of one start, trained on ``n`` pictures."""

    start: Start
    n: int
    accuracy: float
    low: float
    high: float
    seconds: float


class WorthLabels(Part):
    """How many pictures do with pre-training what ``scratch`` do without; None where they never do.

    Attributes:
        at_most: whether the smallest number that was tried does it already.
    """

    pretrained: float | None
    at_most: bool
    scratch: int


class WorthMinutes(Part):
    """Minutes of training with and without pre-training."""

    pretrained: float
    scratch: float


class Forecast(Part):
    """Accuracy to expect of ``n`` pictures, or why there is no forecast (``refused``)."""

    n: int
    accuracy: float | None = absent()
    low: float | None = absent()
    high: float | None = absent()
    exponent: float | None = absent()
    refused: str | None = absent()


class CutResult(Part):
    """What a cut, as ``finetune.unfreeze``, reached on all pictures."""

    cut: Cut
    accuracy: float
    low: float
    high: float
    log_loss: float
    seconds: float


class Gap(Interval):
    """Accuracy with ``cut`` trained minus that of the head alone."""

    cut: Cut


class Rule(Part):
    """What a rule of thumb advises, and whether that is what was measured."""

    cut: Cut
    words: str
    agrees: bool


class Freezing(Part):
    """How much to freeze.

    Attributes:
        measured: the cut to take.
        similar: whether the pictures are like ImageNet's; None where that is not known.
        confidence, on_imagenet: mean probability of the ImageNet classifier's first choice, on these and on its pictures.
    """

    measured: Cut
    table: list[CutResult]
    per_class: int
    size: Size
    similar: bool | None
    confidence: float | None
    on_imagenet: float | None
    gap: Gap
    rules: dict[str, Rule]


class TransferGain(JsonFile):
    """
    Attributes:
        pretrained: the better of the two pre-trained starts.
        worth_points: accuracy with pre-training minus that without, in points.
        held_out: pictures that all starts were asked about.
        sentences: the answers in the order in which people ask.
        left_out: classes with too few pictures.
        repeated: whether every training was done several times, so that intervals of differences know of chance in
            training.
    """

    made_by: ClassVar[str] = "dvc repro studies/dvc.yaml:why"

    backbone: str
    verdict: Verdict
    pretrained: Start
    worth_points: Interval
    worth_labels: WorthLabels
    worth_minutes: WorthMinutes
    more: Forecast
    freeze: Freezing
    held_out: int
    curves: list[CurvePoint]
    sentences: list[str]
    left_out: list[str]
    repeated: bool = default(False)
