"""Parquet files that hold the pictures themselves as a source, as Hugging Face's data sets have them."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.paths import users_path
from headstart.base.safe_text import shortened
from headstart.base.sections import Data
from headstart.data.in_place import File, Place
from headstart.data.picture import InPlace, Listing, Picture, Source
from headstart.data.shards import files_of, holds_shards, in_splits, look_through, place_of, split_of
from headstart.data.user_tables import MOST_ROWS

PICTURE_COLUMNS, LABEL_COLUMNS = ("image", "img", "picture"), ("label", "labels")
MOST_BYTES = 2 << 30  # of a row group, which is read at once
GROUPS_KEPT = 2


class ParquetPictures(Source):
    """A folder of .parquet files, or one of them, with a column of pictures and one of labels."""

    form = "an existing folder of .parquet shards that hold the pictures"

    def takes(self, source: str) -> bool:
        path = users_path(source)
        if path.is_file() and path.suffix.lower() == ".parquet":
            return has_pictures(path)
        return path.is_dir() and holds_shards(path, ".parquet")

    def listing(self, data: Data) -> Listing:
        path = users_path(data.source)
        return list_parquet(place_of(path), files_of(path, ".parquet"))

    def root(self, data: Data) -> Path | InPlace:
        return ParquetRows(place_of(users_path(data.source)))


def has_pictures(file: Path) -> bool:
    """Whether a Parquet file holds pictures and not paths to them."""
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except Exception:  # damaged, of which whoever reads it speaks
        return False
    return "path" not in schema.names and any(map(_holds_bytes, schema))


class ParquetRows(InPlace):
    """The pictures in Parquet files; a row group is read at once and kept until others are."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._lock = threading.Lock()
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetRows, (self.place,)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def is_everywhere(self) -> bool:
        return self.place.is_everywhere

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        shard, _, row = path.rpartition("/")
        with self._lock:
            try:
                content = self._value(shard, int(row) - 1)
            except HeadstartError:
                raise
            except Exception as error:  # pyarrow and file systems raise many kinds of errors
                raise _unreadable(f"{self.place}: {shard}", error) from None
        return content[start:end]

    def _value(self, shard: str, row: int) -> bytes:
        if shard not in self._files:
            self._files[shard] = _with_dictionary(self.place, shard)
            while len(self._files) > GROUPS_KEPT:
                self._files.popitem(last=False)
        file, group = self._files[shard], 0
        while row >= (count := file.metadata.row_group(group).num_rows):
            row, group = row - count, group + 1
        if (shard, group) not in self._groups:
            size = file.metadata.row_group(group).total_byte_size
            if size > MOST_BYTES:
                raise HeadstartError(
                    f"{self.place}: {shard} has a row group of {size / 1e9:.1f} GB; write it with smaller ones, of 100 rows"
                )
            column = _picture_column(file.schema_arrow, f"{self.place}: {shard}")
            self._groups[shard, group] = file.read_row_group(group, [_leaf(file.schema_arrow, column)])[column]
            while len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        value = self._groups[shard, group][row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        return content or b""


def list_parquet(place: Place, files: Mapping[str, File]) -> Listing:
    """The pictures in the shards of a place.

    Raises:
        HeadstartError: a shard is damaged, or has no such columns, or a row has no label.
    """
    shards = look_through(place, files, lambda place, shard, _: _labels(place, shard))
    pictures, stamps = [], {}
    for shard, labels in shards.found.items():
        stamp, split = files[shard].stamp, split_of(shard)
        for row, label in enumerate(labels, start=1):
            path = f"{shard}/{row:08}"  # in order of the rows, of which a group is read at once
            pictures.append(Picture(path, label, split))
            stamps[path] = stamp and f"{stamp} {row}"
    return Listing(ParquetRows(place), in_splits(pictures, place), stamps)


def _labels(place: Place, shard: str) -> list[str]:
    """The label of each row."""
    where = f"{place}: {shard}"
    try:
        opened = _opened(place, shard)
        if opened.metadata.num_rows > MOST_ROWS:
            raise HeadstartError(f"{where} has {opened.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read")
        schema = opened.schema_arrow
        _picture_column(schema, where)
        column, names = _label_column(schema, where)
        values = opened.read([column])[column].to_pylist()
    except HeadstartError:
        raise
    except Exception as error:  # pyarrow and file systems raise many kinds of errors
        raise _unreadable(where, error) from None
    return [_label(value, names, column, f"{where}, row {row}") for row, value in enumerate(values, start=1)]


def _label(value: Any, names: list[str], column: str, where: str) -> str:
    if names and isinstance(value, int) and not 0 <= value < len(names):
        raise HeadstartError(f"{where}: {column} {value} is none of the {len(names)} classes; leave out unlabelled shards")
    text = names[value] if names and isinstance(value, int) else value
    if not isinstance(text, str | int) or isinstance(text, bool) or not str(text).strip():
        raise HeadstartError(f"{where}: {column} is {shortened(repr(value), 80)}; the name or number of a class is needed")
    return str(text).strip()


def _opened(place: Place, shard: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(place.open(shard))


def _with_dictionary(place: Place, shard: str) -> Any:
    """The file, of which bytes that are stored once for many rows also take memory once."""
    import pyarrow.parquet as pq

    schema = (opened := _opened(place, shard)).schema_arrow
    leaf = _leaf(schema, _picture_column(schema, f"{place}: {shard}"))
    return pq.ParquetFile(place.open(shard), metadata=opened.metadata, read_dictionary=[leaf])


def _leaf(schema: Any, column: str) -> str:
    """Where the bytes of a column are."""
    import pyarrow as pa

    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def _holds_bytes(field: Any) -> bool:
    """Whether a column holds bytes, or what Hugging Face stores for a picture: a struct of bytes and path."""
    import pyarrow as pa

    kind = field.type
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        kind = kind.field(at).type if at >= 0 else kind
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _picture_column(schema: Any, where: str) -> str:
    columns = [field.name for field in schema if _holds_bytes(field)]
    named = [name for name in PICTURE_COLUMNS if name in columns]
    if not named and len(columns) != 1:
        found = f"several columns of bytes ({', '.join(columns)})" if columns else "no column of bytes"
        raise HeadstartError(f"{where} has {found}; the pictures have to be in a column called image")
    return str((named or columns)[0])


def _label_column(schema: Any, where: str) -> tuple[str, list[str]]:
    """The column of labels, and the names of the classes where it has numbers and the schema says what they mean."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        told = {}
    features = {
        name: [str(one) for one in feature.get("names", [])]
        for name, feature in (told.items() if isinstance(told, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names", []), list)
    }
    columns = [name for name in LABEL_COLUMNS if name in schema.names] or [n for n in features if n in schema.names]
    if not columns or (len(columns) > 1 and columns[0] not in LABEL_COLUMNS):
        which = f"several columns of classes ({', '.join(columns)})" if columns else "no column label"
        raise HeadstartError(f"{where} has {which}, among {', '.join(schema.names)}; call the one of the classes label")
    return columns[0], features.get(columns[0], [])


def _unreadable(where: str, error: Exception) -> HeadstartError:
    return HeadstartError(
        f"{where} cannot be read ({shortened(' '.join(str(error).split()), 200)}); is it a whole Parquet file?"
    )
