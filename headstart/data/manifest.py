"""The table of pictures that prepare writes and every later stage reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError


def read_manifest(folder: Path) -> pd.DataFrame:
    """data/prepare/manifest.parquet: path, label, split, group, sha256, width, height. Row i is picture i in every stage.

    That of a multi-label set has a column ``labels`` beside ``label``: the class names as a list, and joined as text.

    Raises:
        HeadstartError: it is missing or damaged.
    """
    path = PrepareFolder(folder).manifest
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError):
        raise HeadstartError(f"{path} is not there or not whole; run `dvc repro prepare`") from None


def is_multi_label(manifest: pd.DataFrame) -> bool:
    """Whether pictures may have several labels, or none."""
    return "labels" in manifest.columns


def class_names(manifest: pd.DataFrame) -> list[str]:
    """The names of the classes; a class's number is its position here."""
    return sorted(one_row_per_label(manifest)["label"].unique())


def groups_per_class(manifest: pd.DataFrame) -> pd.Series:
    """By class, how many of its pictures are independent: near-duplicates and pictures of one group count once."""
    groups: pd.Series = one_row_per_label(manifest).groupby("label")["group"].nunique()
    return groups


def one_row_per_label(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with a row per picture and label, under the picture's own row number; ``label`` is one class."""
    if not is_multi_label(manifest):
        return manifest
    return manifest.drop(columns="label").explode("labels").rename(columns={"labels": "label"}).dropna(subset="label")
