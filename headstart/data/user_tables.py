"""Tables that users write; errors name the line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.safe_text import shortened

LONGEST_CELL = 10_000  # characters; a path has fewer, and so has a name that people read
MOST_ROWS = 10_000_000  # a Parquet file of a few bytes may say that it has more than there is memory for


def read_table(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a .parquet or .csv: the place of each in the file ("line 3"), and its columns as text.

    A missing optional column is empty. Other columns are ignored.

    Raises:
        HeadstartError: the file cannot be read, or a needed column is missing or has an empty cell.
    """
    rows: list[tuple[str, dict[str, Any]]]
    try:
        columns, rows = _read_parquet(path, {*needed, *optional}) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except UnicodeDecodeError:
        raise HeadstartError(f"{path} cannot be read as a table: it is not UTF-8; save it as CSV in UTF-8") from None
    except (OSError, ValueError) as error:
        raise HeadstartError(f"{path} cannot be read as a table: {error}") from None
    for column in needed:
        if column not in columns:
            hint = (
                "; its columns have to be separated by commas" if len(columns) == 1 and set(";\t") & set(columns[0]) else ""
            )
            more = f"; optional: {', '.join(optional)}" if optional else ""
            raise HeadstartError(
                f"{path} has no column {column!r} (it has {', '.join(columns) or 'no rows'}); "
                f"needed: {', '.join(needed)}{more}{hint}"
            )
        if columns.count(column) > 1:
            raise HeadstartError(f"{path} has {columns.count(column)} columns called {column!r}; keep one of them")
    texts = [(place, {column: _text(row.get(column)) for column in (*needed, *optional)}) for place, row in rows]
    for place, row in texts:
        for column in needed:
            if not row[column]:
                raise HeadstartError(f"{path}, {place}: empty {column}")
        for column, text in row.items():
            if len(text) > LONGEST_CELL:
                raise HeadstartError(
                    f"{path}, {place}: a {column} of {len(text):,} characters; at most {LONGEST_CELL:,} are allowed"
                )
    return texts


def _read_parquet(path: Path, wanted: set[str]) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """All columns' names, and the rows of those that are wanted.

    Raises:
        HeadstartError: it has too many rows, or a wanted column holds what Python cannot.
        ValueError: the file cannot be read.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns, count = list(file.schema_arrow.names), file.metadata.num_rows
            if count > MOST_ROWS:
                raise HeadstartError(f"{path} has {count:,} rows; at most {MOST_ROWS:,} are read")
            table = file.read([name for name in columns if name in wanted])
        return columns, [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]
    except (HeadstartError, OSError):
        raise
    except Exception as error:  # of a damaged file, and of dates and time zones that Python does not have
        reason = shortened(str(error), 300)
        raise ValueError(f"{reason}; is it a whole Parquet file, with text in the columns?") from None


def _read_csv(path: Path) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """The columns, and the rows with their lines.

    Raises:
        HeadstartError: a row has more cells than there are columns, or a quotation mark is not closed.
        OSError, ValueError: the file cannot be read.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            columns = [name.strip() for name in next((row for row in reader if row), [])]
            for cells in reader:
                place = f"line {reader.line_num}"
                if any(map(str.strip, cells[len(columns) :])):
                    raise HeadstartError(
                        f"{path}, {place}: {len(cells)} cells, and there are {len(columns)} columns; put a text with a "
                        f'comma in it between quotation marks ("rock, paper")'
                    )
                if any(map(str.strip, cells)):  # no empty line, which spreadsheets write as commas
                    rows.append((place, dict(zip(columns, cells, strict=False))))
        except csv.Error as error:
            raise HeadstartError(f"{path}, line {reader.line_num}: {error}; look at its quotation marks") from None
    return columns, rows


def _text(value: Any) -> str:
    empty = value is None or value != value  # noqa: PLR0124  # pandas writes an empty cell as NaN
    return "" if empty else str(value).strip()
