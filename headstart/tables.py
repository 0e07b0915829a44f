"""Tables for the terminal: a dictionary a row, an empty cell where nothing is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Column = tuple[str, str, Callable[[Any], str]]  # heading, key of a row, and how a value is written


def number(form: str) -> Callable[[Any], str]:
    return lambda value: "" if value is None else format(value, form)


def cells(row: dict[str, Any], columns: Iterable[Column]) -> list[str]:
    return [written(row[key]) for _, key, written in columns]


def console(width: int | None = None) -> Console:
    """Standard output, ``width`` characters wide: by default as wide as the terminal, and 124 where there is none.

    Text is printed as it is: [brackets] and :colons: in people's file names are no markup.
    """
    from rich.console import Console

    return Console(width=width or (None if sys.stdout.isatty() else 124), highlight=False, markup=False, emoji=False)


def table(rows: Iterable[dict[str, Any]], columns: Iterable[Column], bold: str | None = None) -> Table:
    """Numbers stand to the right, names to the left; the row of the backbone ``bold`` is printed that way."""
    from rich.table import Table

    columns = list(columns)
    made = Table(box=None, pad_edge=False)
    for heading, _, written in columns:
        made.add_column(heading, justify="left" if written is str else "right", no_wrap=True)
    for row in rows:
        made.add_row(*cells(row, columns), style="bold" if row["backbone"] == bold else None)
    return made
