"""The table of pictures that prepare writes and every later stage reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError


def read_manifest(folder: Path) -> pd.DataFrame:
    """data/prepare/manifest.parquet: path, label, split, group, sha256, width, height. Row i is picture i in every stage.

    Raises:
        HeadstartError: it is missing or damaged.
    """
    path = PrepareFolder(folder).manifest
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError):
        raise HeadstartError(f"{path} is not there or not whole; run `dvc repro prepare`") from None


def class_names(manifest: pd.DataFrame) -> list[str]:
    """The names of the classes; a class's number is its position here."""
    return sorted(manifest["label"].unique())
