"""Tables that users write; errors name the line."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.safe_text import quoted, shortened
from headstart.data.picture import SEPARATOR

LONGEST_CELL = 10_000  # characters; a path has fewer, and so has a name that people read
MOST_ROWS = 10_000_000  # a Parquet file of a few bytes may say that it has more than there is memory for


def read_table(
    path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = (), separator: str = ""
) -> list[tuple[str, dict[str, str]]]:
    """The rows of a .parquet or .csv: the place of each in the file ("line 3"), and its columns as text.

    A missing optional column is empty, and so may cells of ``labels`` be. Other columns are ignored.

    Args:
        separator: what joins the texts of a cell of Parquet that is a list; by default a list is no text.

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
    texts = [
        (place, {column: _text(row.get(column), separator, f"{path}, {place}") for column in (*needed, *optional)})
        for place, row in rows
    ]
    for place, row in texts:
        for column in needed:
            if not row[column] and column != "labels":
                raise HeadstartError(f"{path}, {place}: empty {column}")
        for column, text in row.items():
            if len(text) > LONGEST_CELL:
                raise HeadstartError(
                    f"{path}, {place}: a {column} of {len(text):,} characters; at most {LONGEST_CELL:,} are allowed"
                )
    return texts


def has_labels(path: Path) -> bool:
    """Whether a table is one of a multi-label set: with the column ``labels`` in place of ``label``.

    Raises:
        HeadstartError: it has both.
    """
    columns = table_columns(path)
    if {"label", "labels"} <= set(columns):
        raise HeadstartError(
            f"{path} has a column 'label' and a column 'labels'; keep 'label' if every picture has one label, and 'labels' "
            "if it may have several or none"
        )
    return "labels" in columns


def table_columns(path: Path) -> list[str]:
    """The names of a table's columns; none where it cannot be read, of which ``read_table`` says why."""
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(path).names)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _header(csv.reader(stream, strict=True))
    except Exception:  # pyarrow raises many kinds of errors on damaged files
        return []


def _header(rows: Iterator[list[str]]) -> list[str]:
    return [name.strip() for name in next((row for row in rows if row), [])]


def label_names(cell: str, separator: str, place: str) -> list[str]:
    """The class names in a cell of the column ``labels``.

    Args:
        place: of the cell, for what is wrong with it.

    Raises:
        HeadstartError: a name holds what headstart itself puts between names.
    """
    names = [composed(name.strip()) for name in cell.split(separator)]
    for name in names:
        check_name(name, f"{place}: the class", "rename it, or tell by data.label_separator what stands between the names")
    return [name for name in names if name]


def check_name(name: str, place: str, advice: str) -> None:
    """Whether a class of a multi-label set may be called so.

    Raises:
        HeadstartError: it may not.
    """
    if SEPARATOR in name:
        raise HeadstartError(
            f"{place} {quoted(name)} holds {SEPARATOR!r}, which headstart itself puts between names; {advice}"
        )


def composed(text: str) -> str:
    """The text with é as one letter. macOS and others write it as an e and an accent, which is the same class."""
    return unicodedata.normalize("NFC", text)


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
            columns = _header(reader)
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


def _text(value: Any, separator: str, where: str) -> str:
    """A cell as text, a list joined by ``separator``.

    Raises:
        HeadstartError: something in a list is no name, or holds the separator.
    """
    if separator and isinstance(value, list):
        for one in value:
            if not isinstance(one, str | int | float):
                raise HeadstartError(f"{where}: {quoted(str(one))} among the labels is no text; give the names of classes")
            if separator in str(one):
                raise HeadstartError(
                    f"{where}: the class {quoted(str(one))} holds {separator!r}, which data.label_separator says stands "
                    "between names; set that to something that no name holds"
                )
        return separator.join(_text(one, "", where) for one in value)
    empty = value is None or value != value  # noqa: PLR0124  # pandas writes an empty cell as NaN
    return "" if empty else str(value).strip()
