"""What came of labels: files to go on from, a page of pictures, and a table for the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.base.artifacts import LabelsFolder
from headstart.base.artifacts.labels import LabelIssues
from headstart.base.files import write_text
from headstart.base.terminal import console, many

if TYPE_CHECKING:
    import pandas as pd

    from headstart.data.packed import Pixels

COLUMNS = ("path", "label", "suggested", "quality")  # those of suspects.csv
FIRST = 15  # suspects in the terminal
MANY = 0.1  # of the pictures; only the worst of sets have so many wrong labels


def write(issues: LabelIssues, pixels: Pixels, pictures: pd.DataFrame, shown: int, folder: LabelsFolder) -> None:
    """All issues as JSON, the suspects as a table to be cut down, and the first ``shown`` of each kind as a page.

    Args:
        pictures: with their rows of ``pixels`` as the index.
    """
    issues.write(folder.details)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in issues.suspects)
    write_text(folder.suspects, text.getvalue())
    _write_page(issues, pixels, pictures, shown, folder.page)


def _write_page(issues: LabelIssues, pixels: Pixels, pictures: pd.DataFrame, shown: int, path: Path) -> None:
    from headstart.evaluation import pages

    rows = dict(zip(pictures["path"], pictures.index, strict=True))
    pages.write(
        path, pages.template("labels.html.j2", thumbnail=lambda name: pages.thumbnail(pixels[int(rows[name])])),
        sentence=sentence(issues), left_out=issues.left_out, counts=issues.counts,
        suspects=issues.suspects[:shown], outliers=issues.outliers[:shown], duplicates=issues.duplicates[:shown],
    )  # fmt: skip


def show(issues: LabelIssues, folder: LabelsFolder) -> None:
    """Print the first suspects, the counts in a sentence, and where there is more."""
    from rich.table import Table

    out = console()
    if issues.suspects:
        table = Table(box=None, pad_edge=False)
        table.add_column("picture", overflow="fold")
        table.add_column("label")
        table.add_column("suggested")
        for heading in ("quality", "p(label)", "p(suggested)"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in issues.suspects[:FIRST]:
            numbers = (row.quality, row.probability, row.suggested_probability)
            table.add_row(row.path, row.label, row.suggested, *(f"{number:.3f}" for number in numbers))
        out.print(table)
    out.print(sentence(issues))
    out.print(f"With the pictures, and what to do: {folder.page}; all suspects as a table: {folder.suspects}")
    out.print("To judge them by keyboard: headstart review")


def sentence(issues: LabelIssues) -> str:
    """The counts in words."""
    counts = issues.counts
    words = (
        f"Of {counts.judged} training and validation pictures, {counts.suspects} have a label that the others "
        f"contradict, of which cleanlab counts {counts.label_issues} as wrong. "
        f"{many(counts.outliers, 'picture is', 'pictures are')} unlike the others, and "
        f"{many(counts.duplicates, 'pair looks', 'pairs look')} the same, "
        f"{counts.duplicates_under_two_labels} under two labels."
    )
    if counts.suspects > MANY * counts.judged:
        words += " So many mean that the features hardly tell some classes apart, not that so many labels are wrong."
    if issues.left_out:
        words += f" Labels with too few pictures to be judged: {', '.join(issues.left_out)}."
    return words
