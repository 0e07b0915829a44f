"""What came of groups: a table to give to data.group, a page of pictures, and a table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headstart.base.artifacts import GroupsFolder
from headstart.base.artifacts.groups import GroupSuggestion, GroupSuggestions
from headstart.base.files import write_text
from headstart.base.terminal import console
from headstart.base.wording import points

if TYPE_CHECKING:
    import pandas as pd

    from headstart.data.packed import Pixels

SHOWN, EACH = 6, 6  # groups on the page, and pictures of each


def write(
    found: GroupSuggestions, groups: Sequence[str], pictures: pd.DataFrame, pixels: Pixels, folder: GroupsFolder
) -> None:
    """The suggestions as JSON and as a page with some groups of the first, and its groups as a table.

    Args:
        groups: N names of the first suggestion, "" where a picture is on its own.
        pictures: N rows of the manifest, of all splits.
    """
    from headstart.evaluation import pages

    found.write(folder.details)
    rows = [(path, group) for path, group in zip(pictures["path"], groups, strict=True) if group]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "group"), *rows])
    write_text(folder.table, text.getvalue())
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        if group and pictures["split"].iloc[row] != "test":
            members.setdefault(group, []).append(row)
    shown = sorted(members.items(), key=lambda item: -len(item[1]))[:SHOWN]
    pages.write(
        folder.page,
        pages.template("groups.html.j2", thumbnail=lambda row: pages.thumbnail(pixels[row])),
        found=found,
        advice=[advice(one, folder) for one in found.suggestions],
        groups=[(name, rows[:EACH], len(rows)) for name, rows in shown],
        paths=pictures["path"].tolist(),
        labels=pictures["label"].tolist(),
    )


def show(found: GroupSuggestions, folder: GroupsFolder) -> None:
    """Print what each suggestion is worth, what to do, and where there is more."""
    from rich.table import Table

    out = console()
    if found.suggestions:
        table = Table(box=None, pad_edge=False)
        for heading in ("by", "groups", "largest", "apart", "together", "flattered by"):
            table.add_column(heading, overflow="fold", justify="left" if heading == "by" else "right")
        for one in found.suggestions:
            accuracies = (f"{each:.3f}" for each in (one.accuracy_apart, one.accuracy_together))
            table.add_row(one.by, str(one.groups), str(one.largest), *accuracies, flattery(one))
        out.print(table)
    out.print(found.sentence)
    for one in found.suggestions:
        out.print(f"To keep these together, in params.yaml: {advice(one, folder)}  # {one.by}", soft_wrap=True)
    if found.suggestions:
        out.print(f"With pictures: {folder.page}")


def advice(suggestion: GroupSuggestion, folder: GroupsFolder) -> str:
    """The line of params.yaml that makes the groups."""
    if suggestion.setting is None:
        return f"data.group: {folder.table.name}  (a copy: cp {folder.table} {folder.table.name})"
    quoted = suggestion.setting.replace("'", "''")
    return f"data.group: '{quoted}'"


def flattery(suggestion: GroupSuggestion) -> str:
    """By how much parting the groups makes accuracy look better."""
    optimism = suggestion.optimism
    return points(100 * optimism.value, 100 * optimism.low, 100 * optimism.high)


def sentence(suggestions: list[GroupSuggestion], best: int | None, given: bool) -> str:
    """What was found, in words."""
    already = "Your pictures have groups already, which stay together here. " if given else ""
    if not suggestions:
        further = "further " if given else ""
        return f"{already}Names, EXIF tags and looks say nothing of {further}pictures that belong together."
    first = suggestions[0]
    many = f"{already}{first.groups} groups suggest themselves (by {first.by}), which hold {first.pictures} pictures."
    folds = f"{first.accuracy_apart:.3f} in five folds that part them and {first.accuracy_together:.3f} in five that do not"
    if best is not None:
        return f"{many} A split that parts them flatters the result: accuracy is {folds}, {flattery(first)}."
    return (
        f"{many} That a split that parts them flatters the result is not shown: accuracy is {folds}, {flattery(first)}. If "
        "a group is of one person, place or day, keep it together all the same: the intervals are right only then."
    )
