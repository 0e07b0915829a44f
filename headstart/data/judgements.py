"""What people have judged of pictures, in the tables that params.yaml names: ``data.exclude``, ``data.relabel``, and beside
them a third of the pictures that were looked at and found right, and a fourth of those that are new and got a label.

Any number of processes may judge at once, and each may be killed at any time: whoever changes the tables holds a lock while
it reads them, changes the rows of its own pictures, and writes each table in one step.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from headstart.base.errors import HeadstartError
from headstart.base.files import write_text
from headstart.base.params import Params
from headstart.base.paths import checkout, state_folder, users_path
from headstart.base.sections import Data
from headstart.base.yaml_file import set_values
from headstart.data.user_tables import composed, read_table

EXCLUDE, RELABEL, KEPT = "exclude.csv", "relabel.csv", "kept.csv"
# Copies of pictures from outside of data.source that were given a label, and the table of their labels.
LABELLED, NEW = "labelled", "labelled.csv"
NONE = "(none)"  # what stands for no label where an empty cell says that it is not known
PATIENCE_S = 60  # for another process to end a change, which takes milliseconds

Key = tuple[str, str]  # a picture's path as ``_path`` has it, and that of its twin, or ""


@dataclass(frozen=True)
class Judgement:
    """Somebody's judgement of a picture.

    Attributes:
        label: the right one, of several labels their names joined by ``;``. None: the picture is to be left out.
        had: the label that it had when it was judged.
        twin: the path of a picture that looks the same, beside which it is to stay.
    """

    path: str
    label: str | None
    had: str
    twin: str = ""


@dataclass(frozen=True)
class State:
    """What the tables say of a picture.

    Attributes:
        excluded: whether it is left out.
        label: that data.relabel gives it; None where that has no row of it.
        kept: the label that was found right, and the one that it had then; None where nobody has kept it.
    """

    excluded: bool = False
    label: str | None = None
    kept: tuple[str, str] | None = None

    def settles(self, label: str) -> bool:
        """Whether a picture that has this label now need not be looked at again."""
        return self.excluded or self.label is not None or self.keeps(label)

    def keeps(self, label: str) -> bool:
        return self.kept is not None and label in self.kept


@dataclass(frozen=True)
class Step:
    """What a judgement has changed, for it to be undone."""

    path: str
    twin: str
    before: State
    after: State


class JudgedSince(Exception):  # noqa: N818 - somebody else was faster, which is no error
    """The tables say something else of the picture by now."""


class _Table:
    """A table with all its columns, also those that nobody here knows; a row by the picture."""

    def __init__(self, file: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
        """
        Args:
            columns: that it gets where there is no such file yet.

        Raises:
            HeadstartError: it cannot be read, or has not the columns that are ``needed``.
        """
        self.file, self.columns = file, [*columns]
        self.rows: dict[Key, dict[str, str]] = {}
        self.has_grown = self.has_shrunk = False
        if not file.exists():
            return
        read_table(file, tuple(needed))  # says what is wrong with it
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = [[cell.strip() for cell in cells] for cells in csv.reader(stream)]
        self.columns, *lines = [cells for cells in lines if any(cells)]
        for cells in lines:
            row = dict(zip(self.columns, cells, strict=False))
            self.rows[_path(row["path"]), _path(row.get("twin", ""))] = row

    def put(self, key: Key, **cells: str) -> None:
        """Add the row of a picture, or change these cells of it."""
        self.has_grown |= key not in self.rows or any(self.rows[key].get(name) != cell for name, cell in cells.items())
        self.rows.setdefault(key, {"path": key[0], "twin": key[1]}).update(cells)

    def remove(self, key: Key) -> None:
        self.has_shrunk |= self.rows.pop(key, None) is not None

    def write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_text(self.file, text.getvalue())


class Tables:
    """The tables as they were at one moment."""

    def __init__(self, data: Data, several: bool) -> None:
        exclude = _file("data.exclude", data.exclude, EXCLUDE)
        relabel = _file("data.relabel", data.relabel, RELABEL)
        self._column = "labels" if several else "label"
        self.unnamed = {key for key in ("exclude", "relabel") if getattr(data, key) is None}
        self.exclude = _Table(exclude, ("path",), ("path",))
        self.relabel = _Table(relabel, ("path", "was", self._column), ("path", self._column))
        self.kept = _Table(checkout() / KEPT, ("path", "label", "was", "twin"), ("path",))
        self.new = _Table(checkout() / NEW, ("path", self._column), ("path", self._column))

    def of(self, path: str, twin: str = "") -> State:
        """What they say of a picture; ``kept`` is of it beside ``twin``, where that is given."""
        key = _path(path), ""
        left_out, labels = self._tables_of(path)
        labelled, kept = labels.rows.get(key), self.kept.rows.get((key[0], _path(twin)))
        return State(
            excluded=key in left_out.rows,
            label=labelled[self._column] if labelled else None,
            kept=(kept.get("label", ""), kept.get("was", "")) if kept and left_out is not self.kept else None,
        )

    def _tables_of(self, path: str) -> tuple[_Table, _Table]:
        """The tables that say whether a picture is left out, and which label it gets. One from outside of data.source is
        left out by not being asked for again."""
        return (self.kept, self.new) if is_new(path) else (self.exclude, self.relabel)

    def after(self, judged: Judgement) -> State:
        """What they say of a picture when it is judged so."""
        now = self.of(judged.path, judged.twin)
        if is_new(judged.path):
            return State(judged.label is None, judged.label)
        if judged.label is None:
            return State(True, now.label)
        row = self.relabel.rows.get((_path(judged.path), ""))
        was = None if row is None else row.get("was")
        of_source = judged.had if row is None else "" if was == NONE else was or None  # where that is known
        is_kept = judged.twin != "" or judged.label in (judged.had, of_source)
        return State(
            label=None if judged.label == of_source else judged.label,
            kept=(judged.label, judged.had) if is_kept else None,
        )

    def put(self, path: str, twin: str, state: State, had: str) -> None:
        """Make them say this of a picture, which has had that label until now."""
        key = _path(path), ""
        left_out, labels = self._tables_of(path)
        if state.label is None:
            labels.remove(key)
        else:
            was = {} if key in labels.rows else {"was": had or NONE}
            labels.put(key, **was, **{self._column: state.label})
        if left_out is not self.kept and state.kept is None:
            self.kept.remove((key[0], _path(twin)))
        elif left_out is not self.kept and state.kept is not None:
            self.kept.put((key[0], _path(twin)), label=state.kept[0], was=state.kept[1])
        if state.excluded:
            left_out.put(key)
        else:
            left_out.remove(key)

    def write(self) -> None:
        """Those that have changed, first those that a picture was added to: a kill in between leaves it in two tables and
        never in none."""
        tables = (self.exclude, self.relabel, self.kept, self.new)
        for table in [table for table in tables if table.has_grown]:
            table.write()
        for table in [table for table in tables if table.has_shrunk and not table.has_grown]:
            table.write()


class Judgements:
    """The judgements of this checkout.

    Attributes:
        several: whether pictures may have several labels.
        params: the file that names the tables.
    """

    def __init__(self, several: bool, params: Path = Path("params.yaml")) -> None:
        self.several, self.params = several, params

    def tables(self) -> Tables:
        """What has been judged so far.

        Raises:
            HeadstartError: a table cannot be read, or is none that can be written.
        """
        return Tables(Params.load(self.params).data, self.several)

    def judge(self, judgements: Iterable[Judgement]) -> tuple[list[Step], list[str], Tables]:
        """Write judgements into the tables; a later one of the same picture takes the place of an earlier.

        Returns:
            What has changed, which keys of params.yaml were set for it, as "key: value", and the tables.

        Raises:
            HeadstartError: a table cannot be read or written.
        """
        steps = []
        with self._locked() as tables:
            for judged in judgements:
                before, after = tables.of(judged.path, judged.twin), tables.after(judged)
                tables.put(judged.path, judged.twin, after, judged.had)
                steps.append(Step(judged.path, judged.twin, before, after))
            return steps, self._write(tables), tables

    def undo(self, steps: Sequence[Step]) -> Tables:
        """Make the tables say what they said before, and return them.

        Raises:
            JudgedSince: somebody else has judged one of the pictures since; nothing is changed.
            HeadstartError: a table cannot be read or written.
        """
        with self._locked() as tables:
            if any(tables.of(step.path, step.twin) != step.after for step in steps):
                raise JudgedSince
            for step in steps:
                tables.put(step.path, step.twin, step.before, step.after.kept[0] if step.after.kept else "")
            self._write(tables)
            return tables

    @contextmanager
    def _locked(self) -> Iterator[Tables]:
        try:
            with FileLock(state_folder("review") / "lock", timeout=PATIENCE_S):
                yield self.tables()
        except Timeout as error:
            raise HeadstartError(f"{error.lock_file} is held by another process; has that been stopped?") from None

    def _write(self, tables: Tables) -> list[str]:
        """Where params.yaml names no table yet that is needed now, it does so before anything is in there."""
        told = []
        for key, table in (("exclude", tables.exclude), ("relabel", tables.relabel)):
            if key in tables.unnamed and table.has_grown:
                if not table.file.exists():
                    write_text(table.file, ",".join(table.columns) + "\n")
                told += set_values(self.params, {f"data.{key}": table.file.name})
        tables.write()
        return told


def _file(key: str, name: str | None, default: str) -> Path:
    if name is None:
        return _unused(default)
    if not name.lower().endswith(".csv"):
        raise HeadstartError(f"{key} {name!r} is no .csv, which judgements are written to; save it as one and name that")
    return users_path(name)


def _unused(name: str) -> Path:
    """A file in the checkout that params.yaml can name without any picture being corrected by that: none yet, or one
    without rows."""
    number, file = 1, checkout() / name
    while file.exists() and file.read_text(encoding="utf-8", errors="replace").strip().count("\n"):
        number += 1
        file = file.with_name(name.replace(".", f"-{number}."))
    return file


def is_new(path: str) -> bool:
    """Whether it is that of a picture from outside of data.source."""
    return path.startswith(f"{LABELLED}/")


def _path(name: str) -> str:
    return composed(PurePosixPath(name).as_posix()) if name else ""
