"""shortcuts.json, and what audit.json says of the same: what tells the classes apart without a look at the subject."""

from __future__ import annotations

from typing import ClassVar, Literal

from headstart.base.artifacts.json_file import Interval, JsonFile, Part, absent


class BlindScore(Part):
    """How well a classifier that sees one thing only tells the classes apart, or one class from the others.

    Attributes:
        sees: what it sees, such as ``file``; ``shortcuts.json`` explains each.
        label: the class; left out where it is all of them.
        accuracy: on held-out pictures, with its interval; of one class balanced accuracy, the mean of the shares that are
            right of its pictures and of the others.
        guessing: what always naming the commonest class reaches; 0.5 for one class.
        p: how often pictures without anything to tell would look so, corrected for all looks of the file (Holm); 1 where
            the score is too low to matter, chance or not.
        probe: what the probe on frozen features reaches, with the same pictures held out; left out where it was not run.
    """

    sees: str
    label: str | None = absent()
    accuracy: Interval
    guessing: float
    p: float
    probe: float | None = absent()


class Shortcut(BlindScore):
    """A blind score that is worth a warning or a look.

    Attributes:
        kind: ``shortcut`` if what it sees has nothing to do with the subject; ``look`` if it may be the subject's own.
        clue: the plainest sign, in words; empty where no single one stands out.
        sentence: all of it in words.
    """

    kind: Literal["shortcut", "look"]
    clue: str
    sentence: str


class Shortcuts(JsonFile):
    """
    Attributes:
        pictures: of training and validation that were judged.
        left_out: classes with too few pictures to be judged.
        alarms: the share of sets without anything to tell in which anything at all is found, at most.
        sees: what each blind classifier sees, in words.
        found: shortcuts first, then what is worth a look, the plainest first.
        scores: of every blind classifier, for all classes together (unless pictures have several) and for each.
    """

    made_by: ClassVar[str] = "dvc repro studies/dvc.yaml:shortcuts"

    pictures: int
    left_out: list[str]
    alarms: float
    sees: dict[str, str]
    found: list[Shortcut]
    scores: list[BlindScore]
