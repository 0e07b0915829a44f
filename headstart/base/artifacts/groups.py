"""groups.json: which pictures seem to belong together, and how much a split that parts them flatters the result."""

from __future__ import annotations

from typing import ClassVar

from headstart.base.artifacts.json_file import Interval, JsonFile, Part


class GroupSuggestion(Part):
    """
    Attributes:
        by: what it goes by, of names, EXIF tags or looks.
        setting: the value of data.group that makes these groups; None where only a table can.
        groups: how many there are.
        pictures: how many share a group with another.
        largest: pictures in the largest group.
        accuracy_apart, accuracy_together: of a probe in five folds that part the groups, and in five that do not.
        optimism: the first minus the second.
    """

    by: str
    setting: str | None
    groups: int
    pictures: int
    largest: int
    accuracy_apart: float
    accuracy_together: float
    optimism: Interval


class GroupSuggestions(JsonFile):
    """
    Attributes:
        suggestions: the most optimism first.
        best: which of them to take; None where none changes the accuracy for certain.
        given: whether the pictures have groups already, by data.group or their source.
    """

    made_by: ClassVar[str] = "dvc repro studies/dvc.yaml:groups"

    suggestions: list[GroupSuggestion]
    best: int | None
    given: bool
    sentence: str
