"""audit.json: what prepare left out and why, and what it found odd."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pandas as pd

from headstart.base.artifacts.audit import AuditReport, Dropped
from headstart.base.artifacts.shortcuts import BlindScore, Shortcut
from headstart.base.errors import some
from headstart.data.manifest import class_names, one_row_per_label
from headstart.data.splits import SPLITS


class Audit:
    """What is left out and why, what is kept although it is doubtful, and which conversions were made.

    Attributes:
        dropped: the reason, by path.
        warnings: sentences.
        notes: how many pictures needed each conversion.
        blind, shortcuts: what the files alone tell of the classes.
    """

    def __init__(self) -> None:
        self.dropped: dict[str, str] = {}
        self.warnings: list[str] = []
        self.notes: Counter[str] = Counter()
        self.blind: list[BlindScore] = []
        self.shortcuts: list[Shortcut] = []

    def drop(self, path: str, reason: str) -> None:
        self.dropped[path] = reason

    def sentence(self) -> str:
        """How many files are left out and why, the commonest reasons first, with a file for each. Empty where none is."""
        alike: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.dropped):  # the same but for sizes and names
            alike[re.split(r"[:;,(']| of ", re.sub(r"[\d×.]+", "", self.dropped[path]))[0]].append(path)
        reasons = sorted(alike.values(), key=len, reverse=True)
        named = (f"{len(paths)} as {paths[0]} ({self.dropped[paths[0]]})" for paths in reasons)
        were = "file was" if len(self.dropped) == 1 else "files were"
        return f"{len(self.dropped)} {were} left out: {some(named)}" if self.dropped else ""

    def report(self, manifest: pd.DataFrame, leaks: int, own_test: bool) -> AuditReport:
        """What is written to audit.json, in order of paths and names."""
        counts = one_row_per_label(manifest).groupby(["label", "split"]).size()
        return AuditReport(
            kept=len(manifest),
            dropped=[Dropped(path=path, reason=self.dropped[path]) for path in sorted(self.dropped)],
            warnings=self.warnings,
            leaks=leaks,
            converted=dict(sorted(self.notes.items())),
            classes={
                str(label): {split: int(counts.get((label, split), 0)) for split in SPLITS}
                for label in class_names(manifest)
            },
            own_test=own_test,
            blind=self.blind,
            shortcuts=self.shortcuts,
        )
