"""The user's corrections of a source: pictures to leave out, labels to put right, and pictures that belong together."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from headstart.base.errors import HeadstartError, nearest, some
from headstart.base.paths import users_path
from headstart.base.safe_text import quoted
from headstart.base.sections import TABLES, Data
from headstart.base.terminal import say
from headstart.data.picture import SEPARATOR, Picture, classes_of, is_multi_label
from headstart.data.user_tables import composed, label_names, read_table, table_columns


def corrected(pictures: list[Picture], data: Data) -> list[Picture]:
    """The pictures without those in data.exclude, with the labels of data.relabel, and all labels and groups composed.

    A row without effect is a warning, not an error, because the source may have been corrected in the meantime: it names a
    picture that the source does not have, or the label that the picture has anyway.

    Raises:
        HeadstartError: a file is missing or is not such a table, or data.relabel contradicts itself or names a class that
            no picture of the source has.
    """
    pictures = [_relabelled(replace(p, group=composed(p.group)), [composed(name) for name in p.classes]) for p in pictures]
    original = {picture.path: picture for picture in pictures}
    excluded = {row["path"] for _, row in _rows("data.exclude", data.exclude, ("path",), original)}
    classes = _new_classes(data.relabel, original, data.label_separator)
    return [
        _relabelled(picture, classes.get(picture.path, picture.classes))
        for picture in pictures
        if picture.path not in excluded
    ]


def grouped(pictures: list[Picture], setting: str) -> list[Picture]:
    """The pictures with the groups of ``data.group``: those of the source (auto, column), none, those of a table, or the
    part of the path that a regular expression finds (its groups in parentheses, where it has any). A picture of which that
    says nothing is on its own.

    Raises:
        HeadstartError: there are no such groups, or all pictures would be in one.
    """
    if setting in ("auto", "column"):
        if setting == "column" and not any(picture.group for picture in pictures):
            raise HeadstartError("data.group is column, and data.source has no column group; write auto, or a pattern")
        return pictures
    if setting == "none":
        return [replace(picture, group="") for picture in pictures]
    if setting.lower().endswith(TABLES):
        rows = _rows("data.group", setting, ("path", "group"), {picture.path for picture in pictures})
        names = {row["path"]: composed(row["group"]) for _, row in rows}
    else:
        pattern = re.compile(setting)
        names = {picture.path: group_in(picture.path, pattern) for picture in pictures}
    together = [replace(picture, group=names.get(picture.path, "")) for picture in pictures]
    groups = {picture.group for picture in together}
    if pictures and len(groups) == 1:
        what = "is in no group" if groups == {""} else f"is in one group ({min(groups)!r})"
        raise HeadstartError(
            f"data.group {quoted(setting)}: every picture {what}; the first path is {quoted(pictures[0].path)}. "
            "`dvc repro studies/dvc.yaml:groups` suggests some"
        )
    return together


def group_in(path: str, pattern: re.Pattern[str]) -> str:
    """The name of the group that a regular expression finds in a path; "" if it finds nothing."""
    match = pattern.search(path)
    return "" if match is None else "/".join(part for part in match.groups() if part) or match[0]


def _relabelled(picture: Picture, classes: Sequence[str]) -> Picture:
    return replace(picture, label=classes[0]) if picture.labels is None else picture.with_labels(classes)


def _new_classes(name: str | None, original: dict[str, Picture], separator: str) -> dict[str, tuple[str, ...]]:
    """The classes of each path in data.relabel: one, or any number in a multi-label set."""
    given: dict[str, tuple[str, ...]] = {}
    classes = sorted(classes_of([*original.values()]))
    several = is_multi_label([*original.values()])
    _check_column(name, several)
    columns = ("path", "labels") if several else ("path", "label")
    for place, row in _rows("data.relabel", name, columns, original, separator):
        path, where = row["path"], f"data.relabel {name!r}, {place}"
        if several:  # suspects.csv has headstart's own separator
            labels = label_names(row["labels"].replace(SEPARATOR, separator), separator, where)
        else:
            labels = [composed(row["label"])]
        for label in labels:
            if label not in classes:
                hint = nearest(label, classes) or f"it has {', '.join(classes)}"
                raise HeadstartError(f"{where}: data.source has no class {label!r}; {hint}")
        new = tuple(sorted(set(labels)))
        if given.setdefault(path, new) != new:
            here, above = (separator.join(names) for names in (new, given[path]))
            raise HeadstartError(f"{where}: {path} becomes {here!r} here and {above!r} above; keep one of them")
    unchanged = [path for path, new in given.items() if original[path].classes == new]
    if unchanged:
        _warn(
            f"data.relabel gives {some(unchanged)} the label that the source has; in a row pasted from suspects.csv, the "
            "suggested label has to become the label"
        )
    return given


def _check_column(name: str | None, several: bool) -> None:
    """Whether data.relabel has the column ``labels`` if, and only if, pictures may have ``several`` labels.

    Raises:
        HeadstartError: it has not.
    """
    if name is None:
        return
    columns, (needed, other) = table_columns(users_path(name)), ("labels", "label") if several else ("label", "labels")
    if other in columns and needed not in columns:
        may = "pictures of data.source may have several labels" if several else "each picture of data.source has one label"
        raise HeadstartError(f"data.relabel {name!r} has a column {other!r} and needs {needed!r}: {may}")


def _rows(
    key: str,
    name: str | None,
    columns: tuple[str, ...],
    original: Collection[str],
    separator: str = "",
) -> list[tuple[str, dict[str, str]]]:
    """The rows of the file that ``key`` of params.yaml names, each with its place, for pictures that the source has."""
    if name is None:
        return []
    file = users_path(name)
    if not file.is_file():
        raise HeadstartError(f"{key} {name!r}: there is no file {file}; a relative path is from the project's folder")
    rows = read_table(file, columns, separator=separator)
    as_written = {composed(path): path for path in original}
    for _, row in rows:
        path = PurePosixPath(row["path"]).as_posix()
        row["path"] = path if path in original else as_written.get(composed(path), path)
    unknown = dict.fromkeys(row["path"] for _, row in rows if row["path"] not in original)
    if unknown:
        _warn(f"{key} names {some(unknown)}, which data.source does not have (any more); ignored")
    return [(place, row) for place, row in rows if row["path"] not in unknown]


def _warn(sentence: str) -> None:
    say(f"headstart: {sentence}", file=sys.stderr)
