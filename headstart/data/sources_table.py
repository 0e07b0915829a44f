"""A table of paths and labels as a source."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.params import Data
from headstart.base.paths import users_path
from headstart.base.terminal import say
from headstart.data.picture import Listing, Picture, Source
from headstart.data.sources_folder import SPLIT_NAMES, with_test_split
from headstart.data.user_tables import read_table


class Table(Source):
    """A .csv or .parquet with the columns path and label, optionally split and group; paths start at its folder."""

    form = "an existing .csv or .parquet"

    def takes(self, source: str) -> bool:
        path = users_path(source)
        return path.suffix.lower() in (".csv", ".parquet") and path.is_file()

    def listing(self, data: Data) -> Listing:
        path = users_path(data.source)
        pictures = _pictures(path)
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
    root, pictures = path.parent, []
    for place, row in read_table(path, ("path", "label"), ("split", "group")):
        name, label, split, group = row["path"], row["label"], row["split"], row["group"]
        if split and split.lower() not in SPLIT_NAMES:
            raise HeadstartError(f"{path}, {place}: split {split!r}; allowed: train, val, test or empty")
        relative = _relative(root, name)
        if relative is None:
            raise HeadstartError(f"{path}, {place}: {name} is not there; paths are relative to {root}")
        pictures.append(Picture(relative, label, SPLIT_NAMES.get(split.lower(), ""), group))
    return pictures


def _relative(root: Path, name: str) -> str | None:
    """The path from ``root`` of a file that a table names; None where it is not there."""
    for written in dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))):
        file = root / os.path.expanduser(written)  # noqa: PTH111 - Path's own raises for a user that is not there
        relative = os.path.relpath(file, root)
        if relative.startswith(os.pardir):  # from a folder that is a link, .. leads elsewhere than its name says
            relative = os.path.relpath(os.path.realpath(file.parent) + os.sep + file.name, os.path.realpath(root))
        if os.path.isfile(root / relative):  # noqa: PTH113 - Path's own raises for a name that is too long
            return Path(relative).as_posix()
    return None
