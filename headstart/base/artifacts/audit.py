"""audit.json: what was left out of the pictures, and why."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from headstart.base.artifacts.json_file import JsonFile, Part, default
from headstart.base.artifacts.shortcuts import BlindScore, Shortcut


class Dropped(Part):
    path: str
    reason: str


class AuditReport(JsonFile):
    """
    Attributes:
        kept: pictures that are used.
        dropped: files that are not, in path order.
        leaks: near-duplicates that are on two sides of the split.
        converted: how many pictures were changed, by what was done.
        classes: pictures by class and split; one with several labels counts in each of its classes.
        own_test: whether the test pictures are those of the source; left out where they were drawn from all.
        blind: what classifiers reach that see only the properties of the files; empty where too few pictures are there.
        shortcuts: those of them that tell classes apart; where one is a shortcut, the warnings say so.
    """

    made_by: ClassVar[str] = "dvc repro prepare"

    kept: int
    dropped: list[Dropped]
    warnings: list[str]
    leaks: int
    converted: dict[str, int]
    classes: dict[str, dict[str, int]]
    own_test: bool = default(False)
    blind: list[BlindScore] = Field(default_factory=list)
    shortcuts: list[Shortcut] = Field(default_factory=list)

    def known_shortcuts(self) -> list[str]:
        """What tells the classes apart and has nothing to do with what the pictures show, in sentences: of all classes,
        or of each."""
        found = [one for one in self.shortcuts if one.kind == "shortcut"]
        return [one.sentence for one in [one for one in found if one.label is None] or found]
