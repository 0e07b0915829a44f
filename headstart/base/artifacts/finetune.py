"""finetune.json: how the network was trained further."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from headstart.base.artifacts.engine import EngineChoice
from headstart.base.artifacts.json_file import JsonFile, Part, absent, default


class Mixture(Part):
    """Validation log-loss with that share of the trained weights, the rest being the start's.

    Attributes:
        epochs: whose trained weights are averaged, the best one first.
    """

    epochs: list[int]
    trained_share: float
    val_log_loss: float


class PrecisionChoice(Part):
    """What the trained layers calculated in while they were trained, and why."""

    precision: Literal["fp32", "bf16"]
    why: str


Kept = Literal["soup", "average", "best"]

KEPT: dict[Kept, str] = {  # for people
    "soup": "one network with the mean of their weights",
    "average": "all of them, their answers averaged",
    "best": "the best of them on validation",
}


class Repeats(Part):
    """What became of several trainings that differ by chance alone.

    Attributes:
        kept: ``soup``: one network with the mean of their weights; ``average``: all of them side by side, their answers
            averaged in log-probabilities; ``best``: the one with the lowest validation log-loss.
        candidates: validation log-loss of those that could be kept.
        val_log_loss, val_accuracy: of each training.
    """

    count: int
    kept: Kept
    candidates: dict[Kept, float]
    val_log_loss: list[float]
    val_accuracy: list[float]


class FinetuneDetails(JsonFile):
    """All but ``ran`` is absent where fine-tuning is off, and ``repeats`` where there was one training. Where there were
    several, each has such a file of its own; here epochs and mixtures are those of the best.

    Attributes:
        scratch: whether it started from random weights.
        size: pixels of the network's input.
        frozen_part: what runs the layers that stay frozen.
        processes: how many shared the training, each with so many threads.
        averaged_epochs: whose weights, averaged, are the trained ones; mostly the best one's alone.
        trained_share: of the trained weights in the final ones.
    """

    made_by: ClassVar[str] = "dvc repro finetune"

    ran: bool
    scratch: bool = absent()
    size: int = absent()
    blocks_unfrozen: int = absent()
    frozen_part: EngineChoice = absent()
    precision: PrecisionChoice = absent()
    processor: str = absent()
    threads: int = absent()
    processes: int = default(1)
    epochs: int = absent()
    best_epoch: int = absent()
    averaged_epochs: list[int] = absent()
    trained_share: float = absent()
    mixtures: list[Mixture] = absent()
    temperature: float = absent()
    classes: list[str] = absent()
    repeats: Repeats | None = absent()

    @property
    def networks(self) -> int:
        """How many there are side by side."""
        return self.repeats.count if self.repeats and self.repeats.kept == "average" else 1

    @model_validator(mode="after")
    def whole_where_it_ran(self) -> Self:
        needed = [name for name in type(self).model_fields if name != "repeats"]
        if self.ran and (missing := [name for name in needed if getattr(self, name) is None]):
            raise ValueError(f"{missing[0]} is missing")
        return self
