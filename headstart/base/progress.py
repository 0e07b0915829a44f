"""Progress for people: a bar with rate and time left on a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Protocol

from headstart.base.safe_text import visible
from headstart.base.terminal import many, say

PLAIN_LINE_EVERY_S = 15.0
_hidden = False


class Advance(Protocol):
    def __call__(self, count: int = 1) -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str = "pictures") -> Iterator[Advance]:
    """Yield a function to call with the number of units done since the last call."""
    if _hidden:
        yield lambda count=1: None
    elif sys.stderr.isatty():
        yield from _bar(what, total, unit)
    else:
        yield from _lines(what, total, unit)


@contextmanager
def hidden() -> Iterator[None]:
    """Neither progress nor standard output is shown inside: one that runs many trainings shows progress of its own."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        _hidden = before


def _bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(_pace(task.speed, f" {unit}") if task.speed else "")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(visible(what), total=total)
        yield lambda count=1: bar.advance(task, count)


def _lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S and done < total:
            last = now
            left = (total - done) * (now - start) / done
            say(f"{what}: {done}/{total} {unit}, {_pace(done / (now - start))}, {left:.0f} s left", file=sys.stderr)

    yield advance
    seconds = time.monotonic() - start
    say(f"{what}: {many(done, unit.removesuffix('s'))} in {seconds:.1f} s", file=sys.stderr, flush=True)


def _pace(per_second: float, unit: str = "") -> str:
    return f"{per_second:.0f}{unit}/s" if per_second >= 1 else f"{1 / per_second:.0f} s each"
