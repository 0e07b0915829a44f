"""Progress for people: a bar with rate and time left on a terminal, a plain line now and then where there is none.

``progress`` counts what is alike, such as pictures. ``pieces`` is for a study of several trainings, each of which has
progress of its own: it shows as part of the whole.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Protocol

from headstart.base.safe_text import visible
from headstart.base.terminal import many, say

PLAIN_LINE_EVERY_S = 15.0
LONGEST_SILENCE_S = 60.0
_hidden = False
_whole: Pieces | None = None  # what the present work is a piece of


class Advance(Protocol):
    def __call__(self, count: int = 1) -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str = "pictures", share: float = 0.0) -> Iterator[Advance]:
    """Yield a function to call with the number of units done since the last call.

    Args:
        share: of the piece of work that it is part of, where it is part of one.
    """
    if _whole is not None:
        yield from _whole.part(what, total, share)
    elif _hidden:
        yield lambda count=1: None
    elif sys.stderr.isatty():
        yield from _bar(what, total, unit)
    else:
        yield from _lines(what, total, unit)


@contextmanager
def hidden() -> Iterator[None]:
    """Neither progress nor standard output is shown inside: one that runs many trainings shows progress of its own."""
    with _inside(None):
        yield


@contextmanager
def _inside(whole: Pieces | None) -> Iterator[None]:
    global _hidden, _whole
    before = _hidden, _whole
    _hidden, _whole = True, whole
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        _hidden, _whole = before


class Pieces:
    """Pieces of work of unequal cost, one after the other: what the present one does, and the time left."""

    def __init__(self, costs: Sequence[float], show: Callable[[Pieces, bool], None]) -> None:
        """
        Args:
            show: called when there is something new to show, with whether that may wait.
        """
        self.costs, self.show = costs, show
        self.number, self.done, self.reached, self.doing, self.name = 0, 0.0, 0.0, "", ""
        self.seconds, self.start = 0.0, time.monotonic()  # that those took which cost anything; of the present one

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """The next piece: inside neither progress nor standard output is shown but as part of the whole."""
        self.number, self.name, self.reached, self.doing, self.start = self.number + 1, name, 0.0, "", time.monotonic()
        self.show(self, True)
        with _inside(self):
            yield
        self.done += self._cost
        self.seconds += self._spent

    def part(self, what: str, total: int, share: float) -> Iterator[Advance]:
        before, done = self.reached, 0

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            self.doing = f"{what}: {done}/{total}"
            self.reached = min(1.0, before + share * done / max(total, 1))
            self.show(self, True)

        yield advance

    @property
    def now(self) -> str:
        """What the present piece does and what it is."""
        return f"{self.doing} ({self.name})" if self.doing else self.name

    @property
    def share(self) -> float:
        """Of all that has to be done."""
        return (self.done + self._cost * self.reached) / (sum(self.costs) or 1.0)

    @property
    def left(self) -> str:
        """The time, if all that is left goes as what was done; empty where nothing was measured yet."""
        if not self.share:
            return ""
        seconds = (self.seconds + self._spent) * (1 / self.share - 1)
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} minutes left"

    @property
    def _cost(self) -> float:
        return self.costs[self.number - 1] if self.number else 0.0

    @property
    def _spent(self) -> float:
        return time.monotonic() - self.start if self._cost else 0.0


@contextmanager
def pieces(what: str, costs: Sequence[float], unit: str) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Yield a context for each piece of work, to be called with its name.

    On a terminal there is a bar; elsewhere a line now and then, and one at least every minute, whatever a piece does.

    Args:
        costs: of the pieces, in a unit of any kind; 0: not worth counting.
        unit: what a piece is called.
    """
    start = time.monotonic()
    if _hidden or not costs:
        yield lambda name: hidden()
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(12),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[now]}", markup=False, table_column=rest),
        )
        with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
            task = bar.add_task(visible(what), total=1.0, left="", now="")

            def show_bar(whole: Pieces, _may_wait: bool) -> None:
                name = f"{visible(what)} {whole.number}/{len(costs)}"
                bar.update(task, description=name, completed=whole.share, left=whole.left, now=visible(whole.now))

            yield Pieces(costs, show_bar).piece
    else:
        yield from _lines_of_pieces(what, costs, unit)
        say(f"{what}: {many(len(costs), unit)} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _lines_of_pieces(
    what: str, costs: Sequence[float], unit: str
) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    last, over = time.monotonic(), threading.Event()

    def show(whole: Pieces, may_wait: bool) -> None:
        nonlocal last
        if not may_wait or time.monotonic() - last >= PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            left = f"; {whole.left}" if whole.left else ""
            say(f"{what}: {unit} {whole.number} of {len(costs)}, {whole.now}{left}", file=sys.stderr, flush=True)

    whole = Pieces(costs, show)

    def break_silence() -> None:
        while not over.wait(max(1.0, last + LONGEST_SILENCE_S - time.monotonic())):
            if time.monotonic() - last >= LONGEST_SILENCE_S:
                show(whole, False)

    threading.Thread(target=break_silence, daemon=True).start()
    try:
        yield whole.piece
    finally:
        over.set()


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
