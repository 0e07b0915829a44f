"""What came of shortcuts: a file to go on from, a page of pictures, and a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.base.artifacts import ShortcutsFolder
from headstart.base.artifacts.shortcuts import BlindScore, Shortcuts
from headstart.base.terminal import console, many

if TYPE_CHECKING:
    import pandas as pd

    from headstart.data.packed import Pixels

SHOWN = 8  # pictures under a heading of the page


def write(
    found: Shortcuts, shown: list[dict[str, list[int]]], pixels: Pixels, manifest: pd.DataFrame, folder: ShortcutsFolder
) -> None:
    """All scores as JSON, and what was found as a page.

    Args:
        shown: for each that was found, headings with the rows of the manifest that are shown below them.
    """
    from headstart.evaluation import pages

    found.write(folder.details)
    pages.write(
        folder.page, pages.template("shortcuts.html.j2", thumbnail=lambda row: pages.thumbnail(pixels[row])),
        sentence=sentence(found), found=list(zip(found.found, shown, strict=True)), paths=manifest["path"].tolist(),
        labels=manifest["label"].tolist(), rows=rows(found), left_out=found.left_out,
    )  # fmt: skip


def show(found: Shortcuts, folder: ShortcutsFolder) -> None:
    """Print what each blind classifier reaches, what was found, and where there is more."""
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False)
    for heading in ("seen", "reached", "guessing", "network"):
        table.add_column(heading, overflow="fold", justify="left" if heading == "seen" else "right")
    for words, score in rows(found):
        table.add_row(words, reached(score), f"{score.guessing:.3f}", "" if score.probe is None else f"{score.probe:.3f}")
    out.print(table)
    for one in found.found:
        out.print(f"{one.kind}: {one.sentence}")
    out.print(sentence(found))
    out.print(f"With the pictures, and what to do: {folder.page}")


def rows(found: Shortcuts) -> list[tuple[str, BlindScore]]:
    """What was seen, in words, with the score for all classes; where pictures have several labels, with that of the class
    that is told best."""
    best: dict[str, BlindScore] = {}
    for score in sorted(found.scores, key=lambda score: (score.label is not None, -score.accuracy.value)):
        best.setdefault(score.sees, score)
    return [
        (f"{words}{f' ({best[sees].label})' if best[sees].label else ''}", best[sees]) for sees, words in found.sees.items()
    ]


def reached(score: BlindScore) -> str:
    """The accuracy with its interval."""
    return f"{score.accuracy.value:.3f} ({score.accuracy.low:.3f}–{score.accuracy.high:.3f})"


def sentence(found: Shortcuts) -> str:
    """How much was found, in words."""
    kinds = [one.kind for one in found.found]
    shortcuts, looks = kinds.count("shortcut"), kinds.count("look")
    words = f"In {found.pictures} training and validation pictures, "
    if not kinds:
        words += "nothing was found that tells classes apart without a look at the subject."
    else:
        words += f"{many(shortcuts, 'shortcut was', 'shortcuts were')} found, and "
        words += f"{many(looks, 'sign is', 'signs are')} worth a look."
    words += f" Where nothing can be told, something is found in at most {found.alarms:.0%} of sets."
    if found.left_out:
        words += f" Classes with too few pictures to be judged: {', '.join(found.left_out)}."
    return words
