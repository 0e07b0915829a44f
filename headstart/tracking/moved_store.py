"""The MLflow database of a checkout that was moved or copied.

MLflow enters artifacts by their absolute address when it creates an experiment, a run or a model. After a move they would
be looked for, and new ones written, where the checkout was before; in a copy, among those of the original.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from headstart.base.terminal import say

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

RUNS = ("runs", "artifact_uri")
ADDRESSES = (
    ("experiments", "artifact_location"), RUNS, ("logged_models", "artifact_location"), ("model_versions", "source"),
    ("model_versions", "storage_location"),
)  # fmt: skip


def follow(engine: Engine, tables: Iterable[str], artifacts: str) -> None:
    """Enter the artifacts of a checkout's database where they are now, if they were entered elsewhere.

    An experiment whose artifacts are in another checkout, which uses this database too, is left alone: that checkout is
    still there, and what its runs have logged is not here.

    Args:
        tables: of the database.
        artifacts: the address of the folder that they are in now, file:///CHECKOUT/mlartifacts.
    """
    from sqlalchemy import text

    if not {name for name, _ in ADDRESSES} <= set(tables):
        return
    folder = artifacts.rpartition("/")[2]
    with engine.begin() as connection:
        entered = connection.execute(text("SELECT DISTINCT artifact_location FROM experiments")).scalars()
        for old in [one for one in entered if one.startswith("file:") and one.endswith(f"/{folder}") and one != artifacts]:
            if _folder(old).exists() and not _is_here(connection, old, artifacts):
                continue
            for table, column in ADDRESSES:
                connection.execute(
                    text(
                        f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                        f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'"
                    ),
                    {"old": old, "new": artifacts},
                )
            say(
                f"headstart: MLflow's artifacts were entered in {_folder(old)}; they are in {_folder(artifacts)} now",
                file=sys.stderr,
            )


def _is_here(connection: Connection, old: str, artifacts: str) -> bool:
    """Whether any run that is entered at another place has its artifacts here."""
    from sqlalchemy import text

    table, column = RUNS
    runs = connection.execute(text(f"SELECT {column} FROM {table}")).scalars()
    return any(_folder(artifacts + run.removeprefix(old)).exists() for run in runs if run.startswith(f"{old}/"))


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
