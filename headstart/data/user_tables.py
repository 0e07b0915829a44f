"""Tables that the user writes, read so that what is wrong in one is told with its line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError


def read_table(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a .parquet, or else a .csv: where each stands ("line 3"), and the text of the columns asked for.

    An optional column that is not there is empty. Others are passed over.

    Raises:
        HeadstartError: it cannot be read, or a needed column or a cell of one is missing.
    """
    rows: list[tuple[str, dict[str, Any]]]
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            columns = list(table.column_names)
            rows = [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]
        else:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                columns = list(reader.fieldnames or [])
                rows = [(f"line {reader.line_num}", row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise HeadstartError(f"{path} cannot be read as a table: {error}") from None
    for column in needed:
        if column not in columns:
            more = f"; optional: {', '.join(optional)}" if optional else ""
            raise HeadstartError(
                f"{path} has no column {column!r} (it has {', '.join(columns) or 'no rows'}); "
                f"needed: {', '.join(needed)}{more}"
            )
    found = [(where, {column: _text(row.get(column)) for column in (*needed, *optional)}) for where, row in rows]
    for where, texts in found:
        for column in needed:
            if not texts[column]:
                raise HeadstartError(f"{path}, {where}: empty {column}")
    return found


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is pandas' way to leave a cell empty
