"""A table of paths and labels as a source."""

from __future__ import annotations

import os
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.paths import users_path
from headstart.base.sections import Data
from headstart.base.terminal import say
from headstart.data.picture import Listing, Picture, Source
from headstart.data.sources_folder import SPLIT_NAMES, with_test_split
from headstart.data.user_tables import has_labels, label_names, read_table

LIKELY_SEPARATORS = ("|", ",", ";", " ")


class Table(Source):
    """A .csv or .parquet with the columns path and label, optionally split and group; paths start at its folder.

    With a column labels in place of label it is a multi-label set; an empty cell there is a picture without a label.
    """

    form = "an existing .csv or .parquet"

    def takes(self, source: str) -> bool:
        path = users_path(source)
        return path.suffix.lower() in (".csv", ".parquet") and path.is_file()

    def listing(self, data: Data) -> Listing:
        path = users_path(data.source)
        pictures = _multi_label_pictures(path, data.label_separator) if has_labels(path) else _pictures(path)
        if not pictures:
            raise HeadstartError(f"{path} has no rows")
        splits = {picture.split for picture in pictures}
        if "" in splits and len(splits) > 1:
            raise HeadstartError(f"{path}: some rows have a split and others none; fill the column or leave it out")
        if splits != {""} and "train" not in splits:
            raise HeadstartError(f"{path}: the split column has no 'train' row; there is nothing to learn from")
        once = list(dict.fromkeys(pictures))
        if len(once) < len(pictures):
            say(f"headstart: {path} lists {len(pictures) - len(once)} rows twice; each counts once", file=sys.stderr)
        return Listing(path.parent, sorted(with_test_split(once), key=lambda picture: picture.path))


def _pictures(path: Path) -> list[Picture]:
    return [
        replace(_picture(path, place, row), label=row["label"])
        for place, row in read_table(path, ("path", "label"), ("split", "group"))
    ]


def _multi_label_pictures(path: Path, separator: str) -> list[Picture]:
    pictures, cells, first = [], [], dict[str, tuple[str, Picture]]()
    for place, row in read_table(path, ("path", "labels"), ("split", "group"), separator):
        names = label_names(row["labels"], separator, f"{path}, {place}")
        picture = _picture(path, place, row).with_labels(names)
        earlier, same = first.setdefault(picture.path, (place, picture))
        if same.labels != picture.labels:
            raise HeadstartError(
                f"{path}, {place}: {row['path']} has other labels here than in {earlier}; put all its classes into one row"
            )
        pictures.append(picture)
        cells.append((row["labels"], len(names)))
    if pictures and (likely := _likely_separator(cells, separator)):
        say(
            f"headstart: {path}: no cell of the column labels holds {separator!r}, so none has two class names; if "
            f"{likely!r} stands between names, set data.label_separator to it",
            file=sys.stderr,
        )
    return pictures


def _likely_separator(cells: list[tuple[str, int]], separator: str) -> str | None:
    """What seems to stand between class names, where ``separator`` never does: most cells hold it, or taken for one it
    leaves fewer names than there are different cells. Of a space only the latter counts, since many names have one.

    Args:
        cells: each with the number of names that were found in it.
    """
    texts = [text for text, _ in cells if text]
    if any(count > 1 for _, count in cells):
        return None
    different = set(texts)
    for sign in LIKELY_SEPARATORS:
        if sign == separator:
            continue
        names = {name.strip() for text in different for name in text.split(sign)} - {""}
        if len(names) < len(different) or (sign != " " and 2 * sum(sign in text for text in texts) > len(texts)):
            return sign
    return None


def _picture(path: Path, place: str, row: dict[str, str]) -> Picture:
    """The picture of a row, without its label.

    Raises:
        HeadstartError: it is not there, or there is no such split.
    """
    split = row["split"]
    if split and split.lower() not in SPLIT_NAMES:
        raise HeadstartError(f"{path}, {place}: split {split!r}; allowed: train, val, test or empty")
    relative = relative_file(path.parent, row["path"])
    if relative is None:
        raise HeadstartError(f"{path}, {place}: {row['path']} is not there; paths are relative to {path.parent}")
    return Picture(relative, "", SPLIT_NAMES.get(split.lower(), ""), row["group"])


def relative_file(root: Path, name: str) -> str | None:
    """The path from ``root`` of a file that a table names; None where it is not there."""
    for written in dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))):
        file = root / os.path.expanduser(written)  # noqa: PTH111 - Path's own raises for a user that is not there
        relative = os.path.relpath(file, root)
        if relative.startswith(os.pardir):  # from a folder that is a link, .. leads elsewhere than its name says
            relative = os.path.relpath(os.path.realpath(file.parent) + os.sep + file.name, os.path.realpath(root))
        if os.path.isfile(root / relative):  # noqa: PTH113 - Path's own raises for a name that is too long
            return Path(relative).as_posix()
    return None
