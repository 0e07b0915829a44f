"""Tables that users write; errors name the line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError


def read_table(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a .parquet or .csv: the place of each in the file ("line 3"), and its columns as text.

    A missing optional column is empty. Other columns are ignored.

    Raises:
        HeadstartError: the file cannot be read, or a needed column is missing or has an empty cell.
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
    texts = [(place, {column: _text(row.get(column)) for column in (*needed, *optional)}) for place, row in rows]
    for place, row in texts:
        for column in needed:
            if not row[column]:
                raise HeadstartError(f"{path}, {place}: empty {column}")
    return texts


def _text(value: Any) -> str:
    empty = value is None or value != value  # noqa: PLR0124  # pandas writes an empty cell as NaN
    return "" if empty else str(value).strip()
