"""features.json: what ran the frozen backbone, and where."""

from __future__ import annotations

from typing import ClassVar

from headstart.base.artifacts.json_file import JsonFile, Part, absent


class EngineChoice(Part):
    """
    Attributes:
        engine: its name, with "bf16" behind it where it calculates in bfloat16.
        why: it was chosen, in words.
    """

    engine: str
    why: str


class FeaturesDetails(JsonFile):
    """An ``EngineChoice`` and what the last digits depend on besides the inputs.

    Attributes:
        widths: how many features each network has, where several stand side by side; of a first one with the features of
            all its stages, its last layer's and the others come apart. Absent where there is one such part.
    """

    made_by: ClassVar[str] = "dvc repro features"

    engine: str
    why: str
    processor: str
    threads: int
    widths: list[int] | None = absent()
