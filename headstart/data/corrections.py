"""What the user knows better than the source: pictures to leave out, and labels to put right."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headstart.base.errors import HeadstartError, nearest
from headstart.base.params import Data
from headstart.base.paths import users_path
from headstart.data.user_tables import read_table

if TYPE_CHECKING:
    from headstart.data.picture import Picture

NAMED = 3  # of many paths, how many a message names


def corrected(pictures: list[Picture], data: Data) -> list[Picture]:
    """The pictures but those that data.exclude names, with the labels that data.relabel gives them.

    What has no effect, since the source has no such picture or has it under that label already, is named on the error
    stream and no error: the source may have been put right meanwhile.

    Raises:
        HeadstartError: a file is missing or is no such table, or data.relabel contradicts itself or names a class that no
            picture of the source has.
    """
    given = {picture.path: picture.label for picture in pictures}
    excluded = {row["path"] for _, row in _rows("data.exclude", data.exclude, ("path",), given)}
    labels = _labels(data.relabel, given)
    return [
        replace(picture, label=labels[picture.path]) if picture.path in labels else picture
        for picture in pictures
        if picture.path not in excluded
    ]


def _labels(name: str | None, given: dict[str, str]) -> dict[str, str]:
    """The new label of each path in data.relabel."""
    found: dict[str, str] = {}
    classes = sorted(set(given.values()))
    for where, row in _rows("data.relabel", name, ("path", "label"), given):
        path, label = row["path"], row["label"]
        if label not in classes:
            hint = nearest(label, classes) or f"it has {', '.join(classes)}"
            raise HeadstartError(f"data.relabel {name!r}, {where}: data.source has no class {label!r}, {hint}")
        if found.setdefault(path, label) != label:
            raise HeadstartError(
                f"data.relabel {name!r}, {where}: {path} becomes {label!r} here and {found[path]!r} above; keep one of them"
            )
    as_before = [path for path, label in found.items() if given[path] == label]
    if as_before:
        _tell(
            f"data.relabel gives {_some(as_before)} the label that the source has; in a row pasted from suspects.csv, the "
            "suggested label has to become the label"
        )
    return found


def _rows(key: str, name: str | None, columns: tuple[str, ...], given: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Where each row stands in the file that ``key`` of params.yaml names, and what it says; of the source's pictures."""
    if name is None:
        return []
    file = users_path(name)
    if not file.is_file():
        raise HeadstartError(f"{key} {name!r}: there is no file {file}; a relative path is from the project's folder")
    rows = read_table(file, columns)
    for _, row in rows:
        row["path"] = PurePosixPath(row["path"]).as_posix()
    unknown = dict.fromkeys(row["path"] for _, row in rows if row["path"] not in given)
    if unknown:
        _tell(f"{key} names {_some(unknown)}, which data.source does not have (any more); passed over")
    return [(where, row) for where, row in rows if row["path"] not in unknown]


def _some(paths: Iterable[str]) -> str:
    named = list(paths)
    more = len(named) - NAMED
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _tell(sentence: str) -> None:
    print(f"headstart: {sentence}", file=sys.stderr)
