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
from headstart.data.picture import SEPARATOR
from headstart.data.user_tables import composed, label_names, read_table

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
        is_new: whether it is from outside of data.source; then ``path`` is where it has a copy, from the project's folder.
    """

    path: str
    label: str | None
    had: str
    twin: str = ""
    is_new: bool = False


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
    is_new: bool
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
            self.rows[_path(row["path"]), _path(row.get("twin", "")) if "twin" in columns else ""] = row

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
        self._column, self._separator = "labels" if several else "label", data.label_separator
        self.unnamed = {key for key in ("exclude", "relabel") if getattr(data, key) is None}
        self.exclude = _Table(exclude, ("path",), ("path",))
        self.relabel = _Table(relabel, ("path", "was", self._column), ("path", self._column))
        self.kept = _Table(checkout() / KEPT, ("path", "label", "was", "twin"), ("path",))
        self.new = _Table(checkout() / NEW, ("path", self._column), ("path", self._column))

    def of(self, path: str, twin: str = "", is_new: bool = False) -> State:
        """What they say of a picture; ``kept`` is of it beside ``twin``, where that is given."""
        key = _path(path), ""
        left_out, labels = self._tables_of(is_new)
        labelled, kept = labels.rows.get(key), self.kept.rows.get((key[0], _path(twin)))
        return State(
            excluded=key in left_out.rows,
            label=self._label_in(labelled, labels.file) if labelled else None,
            kept=(kept.get("label", ""), kept.get("was", "")) if kept and not is_new else None,
        )

    def _label_in(self, row: dict[str, str], file: Path) -> str:
        """The label in a row, which people may have written in ways of their own."""
        cell = row[self._column]
        if self._column == "label":
            return composed(cell)
        names = label_names(cell.replace(SEPARATOR, self._separator), self._separator, f"{file}, {row['path']}")
        return SEPARATOR.join(sorted(set(names)))

    def _tables_of(self, is_new: bool) -> tuple[_Table, _Table]:
        """The tables that say whether a picture is left out, and which label it gets. One from outside of data.source is
        left out by not being asked for again."""
        return (self.kept, self.new) if is_new else (self.exclude, self.relabel)

    def after(self, judged: Judgement) -> State:
        """What they say of a picture when it is judged so."""
        now = self.of(judged.path, judged.twin, judged.is_new)
        if judged.is_new:
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

    def put(self, step: Step, state: State, had: str) -> None:
        """Make them say this of the picture of a step, which has had that label until now."""
        key, twins = (_path(step.path), ""), (_path(step.path), _path(step.twin))
        left_out, labels = self._tables_of(step.is_new)
        if state.label is None:
            labels.remove(key)
        else:
            was = {} if key in labels.rows else {"was": had or NONE}
            labels.put(key, **was, **{self._column: state.label})
        if state.kept is not None:
            self.kept.put(twins, label=state.kept[0], was=state.kept[1])
        elif not step.is_new:
            self.kept.remove(twins)
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
                before = tables.of(judged.path, judged.twin, judged.is_new)
                steps.append(Step(judged.path, judged.twin, judged.is_new, before, tables.after(judged)))
                tables.put(steps[-1], steps[-1].after, judged.had)
            return steps, self._write(tables), tables

    def undo(self, steps: Sequence[Step]) -> Tables:
        """Make the tables say what they said before, and return them.

        Raises:
            JudgedSince: somebody else has judged one of the pictures since; nothing is changed.
            HeadstartError: a table cannot be read or written.
        """
        with self._locked() as tables:
            if any(tables.of(step.path, step.twin, step.is_new) != step.after for step in steps):
                raise JudgedSince
            for step in steps:
                tables.put(step, step.before, step.after.kept[0] if step.after.kept else "")
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


def _path(name: str) -> str:
    return composed(PurePosixPath(name).as_posix()) if name else ""
