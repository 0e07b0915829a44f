"""One picture of a source, and a source's listing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """One row of the fetch manifest. ``split`` and ``group`` are empty where the source gives none."""

    path: str
    label: str
    split: str = ""
    group: str = ""
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Listing:
    root: Path
    pictures: list[Picture]
