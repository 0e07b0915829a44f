"""The user's corrections of a source: pictures to leave out, and labels to put right."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headstart.base.errors import HeadstartError, nearest
from headstart.base.params import Data
from headstart.base.paths import users_path
from headstart.base.terminal import say
from headstart.data.user_tables import read_table

if TYPE_CHECKING:
    from headstart.data.picture import Picture

PATHS_IN_MESSAGE = 3


def corrected(pictures: list[Picture], data: Data) -> list[Picture]:
    """The pictures without those in data.exclude, with the labels of data.relabel.

    A row without effect is a warning, not an error, because the source may have been corrected in the meantime: it names a
    picture that the source does not have, or the label that the picture has anyway.

    Raises:
        HeadstartError: a file is missing or is not such a table, or data.relabel contradicts itself or names a class that
            no picture of the source has.
    """
    original = {picture.path: picture.label for picture in pictures}
    excluded = {row["path"] for _, row in _rows("data.exclude", data.exclude, ("path",), original)}
    labels = _new_labels(data.relabel, original)
    return [
        replace(picture, label=labels[picture.path]) if picture.path in labels else picture
        for picture in pictures
        if picture.path not in excluded
    ]


def _new_labels(name: str | None, original: dict[str, str]) -> dict[str, str]:
    """The label of each path in data.relabel."""
    labels: dict[str, str] = {}
    classes = sorted(set(original.values()))
    for place, row in _rows("data.relabel", name, ("path", "label"), original):
        path, label = row["path"], row["label"]
        if label not in classes:
            hint = nearest(label, classes) or f"it has {', '.join(classes)}"
            raise HeadstartError(f"data.relabel {name!r}, {place}: data.source has no class {label!r}, {hint}")
        if labels.setdefault(path, label) != label:
            raise HeadstartError(
                f"data.relabel {name!r}, {place}: {path} becomes {label!r} here and {labels[path]!r} above; keep one of "
                "them"
            )
    unchanged = [path for path, label in labels.items() if original[path] == label]
    if unchanged:
        _warn(
            f"data.relabel gives {_some(unchanged)} the label that the source has; in a row pasted from suspects.csv, the "
            "suggested label has to become the label"
        )
    return labels


def _rows(
    key: str, name: str | None, columns: tuple[str, ...], original: dict[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """The rows of the file that ``key`` of params.yaml names, each with its place, for pictures that the source has."""
    if name is None:
        return []
    file = users_path(name)
    if not file.is_file():
        raise HeadstartError(f"{key} {name!r}: there is no file {file}; a relative path is from the project's folder")
    rows = read_table(file, columns)
    for _, row in rows:
        row["path"] = PurePosixPath(row["path"]).as_posix()
    unknown = dict.fromkeys(row["path"] for _, row in rows if row["path"] not in original)
    if unknown:
        _warn(f"{key} names {_some(unknown)}, which data.source does not have (any more); ignored")
    return [(place, row) for place, row in rows if row["path"] not in unknown]


def _some(paths: Iterable[str]) -> str:
    """The first few of the paths, and how many more there are."""
    listed = list(paths)
    more = len(listed) - PATHS_IN_MESSAGE
    return ", ".join(listed[:PATHS_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def _warn(sentence: str) -> None:
    say(f"headstart: {sentence}", file=sys.stderr)
