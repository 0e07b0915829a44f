"""The user's corrections of a source: pictures to leave out, and labels to put right."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headstart.base.errors import HeadstartError, nearest, some
from headstart.base.params import Data
from headstart.base.paths import users_path
from headstart.base.terminal import say
from headstart.data.user_tables import read_table

if TYPE_CHECKING:
    from headstart.data.picture import Picture


def corrected(pictures: list[Picture], data: Data) -> list[Picture]:
    """The pictures without those in data.exclude, with the labels of data.relabel, and all labels and groups composed.

    A row without effect is a warning, not an error, because the source may have been corrected in the meantime: it names a
    picture that the source does not have, or the label that the picture has anyway.

    Raises:
        HeadstartError: a file is missing or is not such a table, or data.relabel contradicts itself or names a class that
            no picture of the source has.
    """
    pictures = [replace(p, label=composed(p.label), group=composed(p.group)) for p in pictures]
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
        path, label = row["path"], composed(row["label"])
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
            f"data.relabel gives {some(unchanged)} the label that the source has; in a row pasted from suspects.csv, the "
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
    as_written = {composed(path): path for path in original}
    for _, row in rows:
        path = PurePosixPath(row["path"]).as_posix()
        row["path"] = path if path in original else as_written.get(composed(path), path)
    unknown = dict.fromkeys(row["path"] for _, row in rows if row["path"] not in original)
    if unknown:
        _warn(f"{key} names {some(unknown)}, which data.source does not have (any more); ignored")
    return [(place, row) for place, row in rows if row["path"] not in unknown]


def composed(text: str) -> str:
    """The text with é as one letter. macOS and others write it as an e and an accent, which is the same class."""
    return unicodedata.normalize("NFC", text)


def _warn(sentence: str) -> None:
    say(f"headstart: {sentence}", file=sys.stderr)
