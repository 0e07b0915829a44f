"""What is printed: lines, and tables with an object a row and an empty cell where nothing is known.

Nothing else in headstart prints, so that secrets and control characters in people's file names, labels and addresses reach
no terminal and no log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from headstart.base.safe_text import masked, visible

if TYPE_CHECKING:
    from rich.console import Console

Column = tuple[str, str, Callable[[Any], str]]  # heading, attribute of a row, and how a value is written


def number(form: str) -> Callable[[Any], str]:
    return lambda value: "" if value is None else format(value, form)


def cells(row: object, columns: Iterable[Column]) -> list[str]:
    return [written(getattr(row, name)) for _, name, written in columns]


def many(count: int, one: str, more: str | None = None) -> str:
    """``1 picture``, ``3 pictures``.

    Args:
        more: what several are called; ``one`` with an s where it is not given.
    """
    return f"{count} {one if count == 1 else more or f'{one}s'}"


def say(*lines: str, file: TextIO | None = None, flush: bool = False) -> None:
    """Print each of ``lines`` as one line, whatever is in it; by default to standard output."""
    for line in lines:
        print(visible(masked(line)), file=file, flush=flush)


def say_json(value: Any, indent: int | None = None, file: TextIO | None = None) -> None:
    """Print ``value`` as JSON that says the same, with what a terminal would act on escaped."""
    print(visible(json.dumps(value, indent=indent, ensure_ascii=False), keep="\n"), file=file)


def console() -> Console:
    """Standard output, as wide as the terminal, and 124 characters where there is none.

    [Brackets] and :colons: in people's file names are no markup.
    """
    from rich import console
    from rich.text import Text

    class Console(console.Console):
        def render_str(self, text: str, **settings: Any) -> Text:
            return super().render_str(visible(masked(text)), **settings)

    return Console(width=None if sys.stdout.isatty() else 124, highlight=False, markup=False, emoji=False)


class Row(Protocol):
    """What a table shows a line of."""

    @property
    def backbone(self) -> str: ...


def show(rows: Iterable[Row], columns: Sequence[Column], bold: str | None = None) -> None:
    """Print a table: numbers to the right, names to the left, the headings and the row of the backbone ``bold`` in bold.

    A line is as long as it takes, since half a number is worse than a line that the terminal breaks. (rich's own tables cut
    numbers off, and take seconds for a thousand rows.)
    """
    rows = list(rows)
    written = [[heading for heading, _, _ in columns], *(cells(row, columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*written, strict=True)]
    places = [str.ljust if write is str else str.rjust for _, _, write in columns]
    terminal = console()
    for line, row in zip(written, [None, *rows], strict=True):
        text = "  ".join(place(cell, width) for place, cell, width in zip(places, line, widths, strict=True)).rstrip()
        style = "bold" if row is None or row.backbone == bold else None
        terminal.print(text, style=style, soft_wrap=True)
