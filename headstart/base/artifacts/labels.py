"""labels.json: pictures whose label looks wrong, that look like no other, or look the same."""

from __future__ import annotations

from typing import ClassVar

from headstart.base.artifacts.json_file import JsonFile, Part


class Counts(Part):
    """
    Attributes:
        pictures: of training and validation.
        judged: those whose labels could be judged.
        label_issues: of the suspects, those that cleanlab counts as wrong.
    """

    pictures: int
    judged: int
    suspects: int
    label_issues: int
    outliers: int
    duplicates: int
    duplicates_under_two_labels: int


class Suspect(Part):
    """
    Attributes:
        quality: cleanlab's score of the label; low is suspicious.
        probability, suggested_probability: of the label that it has, and of the one that the other pictures suggest.
    """

    path: str
    label: str
    suggested: str
    quality: float
    probability: float
    suggested_probability: float


class Outlier(Part):
    """
    Attributes:
        distance: to the pictures most like it, as a multiple of the median picture's.
    """

    path: str
    label: str
    distance: float


class DuplicatePair(Part):
    """Two pictures, in the same order in each list."""

    paths: list[str]
    labels: list[str]
    splits: list[str]
    distance: float


class LabelIssues(JsonFile):
    """The plainest cases first.

    Attributes:
        left_out: classes with too few pictures to be judged.
    """

    made_by: ClassVar[str] = "dvc repro studies/dvc.yaml:labels"

    counts: Counts
    left_out: list[str]
    suspects: list[Suspect]
    outliers: list[Outlier]
    duplicates: list[DuplicatePair]
