"""The table of pictures that prepare leaves to all other stages."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from headstart.base.errors import HeadstartError

MANIFEST = "manifest.parquet"


def read_manifest(folder: Path) -> pd.DataFrame:
    """data/prepare/manifest.parquet: path, label, split, group, sha256, width, height; row i is picture i everywhere."""
    try:
        return pd.read_parquet(folder / MANIFEST)
    except (OSError, ValueError):
        raise HeadstartError(f"{folder / MANIFEST} is not there or not whole; run `dvc repro prepare`") from None


def class_names(manifest: pd.DataFrame) -> list[str]:
    """The classes in the order of their numbers."""
    return sorted(manifest["label"].unique())
