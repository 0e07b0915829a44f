"""A table of paths and labels as a source."""

from __future__ import annotations

import os
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.params import Data
from headstart.base.paths import users_path
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
        return Listing(path.parent, sorted(with_test_split(pictures), key=lambda picture: picture.path))


def _pictures(path: Path) -> list[Picture]:
    root, pictures = path.parent, []
    for place, row in read_table(path, ("path", "label"), ("split", "group")):
        name, label, split, group = row["path"], row["label"], row["split"], row["group"]
        if split and split.lower() not in SPLIT_NAMES:
            raise HeadstartError(f"{path}, {place}: split {split!r}; allowed: train, val, test or empty")
        relative = os.path.relpath(root / os.path.expanduser(name), root)  # noqa: PTH111 - no error for ~nobody
        if not (root / relative).is_file():
            raise HeadstartError(f"{path}, {place}: {name} is not there; paths are relative to {root}")
        pictures.append(Picture(Path(relative).as_posix(), label, SPLIT_NAMES.get(split.lower(), ""), group))
    return pictures
