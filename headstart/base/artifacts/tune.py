"""tune.json: which settings of fine-tuning are best for these pictures."""

from __future__ import annotations

from typing import ClassVar, Literal

from headstart.base.artifacts.json_file import Interval, JsonFile, Part, default

Knob = bool | int | float | str | None
Knobs = dict[str, Knob]
State = Literal["complete", "pruned", "failed"]


class Trial(Part):
    """
    Attributes:
        epochs: that it was trained for.
        knobs: settings by name, those that are searched.
        note: why it was stopped or failed.
    """

    trial: int
    state: State
    val_log_loss: float | None
    val_accuracy: float | None
    epochs: int
    minutes: float
    knobs: Knobs
    note: str | None


class TuningGain(Interval):
    """By how much the best log-loss is lower than that of the present settings, on so many validation pictures.

    Attributes:
        repeats: trainings of each; of one the interval knows nothing of chance in training.
    """

    pictures: int
    repeats: int = default(1)


class Tuning(JsonFile):
    """
    Attributes:
        best: what the best trial has that the present settings have not; None where no trial was trained to the end.
        command: that runs the pipeline with it.
        choices: the values of each knob that is no range.
        by_logarithm: the ranges that are searched by their logarithm.
        trials: best first.
    """

    made_by: ClassVar[str] = "dvc repro studies/dvc.yaml:tune"

    best: Knobs | None
    sentence: str
    command: str | None
    gain: TuningGain | None
    present: Knobs
    choices: dict[str, list[Knob]]
    by_logarithm: list[str]
    trials: list[Trial]
