"""audit.json: what prepare left out and why, and what it found odd."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from headstart.base.artifacts.audit import AuditReport, Dropped
from headstart.data.splits import SPLITS


class Audit:
    """What is left out and why, what is kept although it is doubtful, and which conversions were made.

    Attributes:
        dropped: the reason, by path.
        warnings: sentences.
        notes: how many pictures needed each conversion.
    """

    def __init__(self) -> None:
        self.dropped: dict[str, str] = {}
        self.warnings: list[str] = []
        self.notes: Counter[str] = Counter()

    def drop(self, path: str, reason: str) -> None:
        self.dropped[path] = reason

    def report(self, manifest: pd.DataFrame, leaks: int) -> AuditReport:
        """What is written to audit.json, in order of paths and names."""
        counts = manifest.groupby(["label", "split"]).size()
        return AuditReport(
            kept=len(manifest),
            dropped=[Dropped(path=path, reason=self.dropped[path]) for path in sorted(self.dropped)],
            warnings=self.warnings,
            leaks=leaks,
            converted=dict(sorted(self.notes.items())),
            classes={
                str(label): {split: int(counts.get((label, split), 0)) for split in SPLITS}
                for label in sorted(manifest["label"].unique())
            },
        )
