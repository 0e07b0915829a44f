"""Decoded pictures in one file, each at its own size, raw or as high-quality JPEG: reading them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError, made_again
from headstart.base.files import sha256_of
from headstart.data.decode import Array

Packed = tuple[Array, tuple[int, int] | None]  # stored bytes; height and width where they are raw
AGAIN = made_again("dvc repro prepare")


def read_file_properties(folder: Path) -> pd.DataFrame:
    """What the files of the packed pictures say of themselves, in the order of the manifest: the attributes of
    ``FileProperties``, and bytes, width and height of the original.

    Raises:
        HeadstartError: the index is missing, damaged or of another version.
    """
    path = PrepareFolder(folder).pixels_index
    try:
        index = pq.read_table(path, columns=["file", "bytes", "original_width", "original_height"]).flatten()
    except (OSError, ValueError) as error:
        raise HeadstartError(f"{path} does not say what the files are like ({error}); {AGAIN}") from None
    names = [name.removeprefix("file.").removeprefix("original_") for name in index.column_names]
    properties: pd.DataFrame = index.rename_columns(names).to_pandas()
    return properties


class Pixels:
    """The pictures of data/prepare in manifest order. Each is read from disk when indexed; none stays in memory.

    Attributes:
        digest: SHA-256 of the index, which names the content of every picture.
        digests: SHA-256 of the stored bytes of each; None where an older version has packed them.
        settings: how the pictures were packed, as prepare wrote it into the index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._reading = folder, threading.Lock()
        files = PrepareFolder(folder)
        try:
            # Without the thumbnails, which are most of the index: loaded, they take 2.8 KB of memory each.
            self.digest = sha256_of(files.pixels_index)
            if files.pixels_digest.exists() and files.pixels_digest.read_text() != f"{self.digest}\n":
                raise ValueError(f"{files.pixels_index.name} is damaged")
            columns = ["offset", "length", "height", "width", "digest"]
            index = pq.read_table(
                files.pixels_index, columns=columns[: 5 if "digest" in pq.read_schema(files.pixels_index).names else 4]
            )
            self._file = os.open(files.pixels, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            raise HeadstartError(f"{folder} has no packed pictures ({error}); {AGAIN}") from None
        weakref.finalize(self, os.close, self._file)
        self.settings: dict[bytes, bytes] = index.schema.metadata or {}
        self._raw = json.loads(self.settings.get(b"headstart", b"{}")).get("jpeg_quality") is None
        self._offset = index["offset"].to_numpy()
        self._length = index["length"].to_numpy()
        self._height = index["height"].to_numpy()
        self._width = index["width"].to_numpy()
        self.digests = index["digest"] if "digest" in index.column_names else None
        self._checked, self._name = np.zeros(len(self), bool), files.pixels  # each is checked once
        if os.fstat(self._file).st_size < (self._offset + self._length).max(initial=0):
            raise HeadstartError(f"{files.pixels} is cut short; {AGAIN}")

    def __reduce__(self) -> tuple[type[Pixels], tuple[Path]]:
        """For a process that is started afresh: it opens the folder itself."""
        return Pixels, (self._folder.absolute(),)

    def __len__(self) -> int:
        return len(self._offset)

    def raw(self, row: int) -> Array:
        """The stored bytes of picture ``row``.

        Raises:
            HeadstartError: they are damaged.
        """
        stored = np.empty(self._length[row], np.uint8)
        if hasattr(os, "preadv"):
            os.preadv(self._file, [stored.data], int(self._offset[row]))  # unlike seek and read, safe from several threads
        else:  # on Windows
            with self._reading:
                os.lseek(self._file, int(self._offset[row]), os.SEEK_SET)
                stored[:] = np.frombuffer(os.read(self._file, len(stored)), np.uint8)
        if self.digests is not None and not self._checked[row]:
            if hashlib.sha256(stored.data).digest() != self.digests[row].as_py():
                raise HeadstartError(f"{self._name} is damaged, at picture {row}; {AGAIN}")
            self._checked[row] = True
        return stored

    def names(self) -> list[str]:
        """What tells each picture from every other: the digest of its stored bytes, with its size where they are raw."""
        if self.digests is None:
            return [f"{self.digest} {row}" for row in range(len(self))]
        return [
            f"{digest.hex()} {height} {width}" if self._raw else digest.hex()
            for digest, height, width in zip(self.digests.to_pylist(), self._height, self._width, strict=True)
        ]

    def is_whole(self, row: int) -> bool:
        """Whether the stored bytes of picture ``row`` are those that were packed."""
        try:
            self.raw(row)
        except HeadstartError:
            return False
        return True

    def __getitem__(self, row: int) -> Array:
        """Picture ``row`` as (height, width, 3) uint8."""
        return unpacked(*self.packed(row))

    def packed(self, row: int) -> Packed:
        """Picture ``row`` as ``unpacked`` takes it, elsewhere too."""
        return self.raw(row), (int(self._height[row]), int(self._width[row])) if self._raw else None


def unpacked(stored: Array, shape: tuple[int, int] | None) -> Array:
    """(height, width, 3) uint8.

    Args:
        stored: its bytes.
        shape: height and width of a picture that is stored raw; None for a JPEG.
    """
    if shape:
        return stored.reshape(*shape, 3)
    return np.array(Image.open(io.BytesIO(stored.data)).convert("RGB"))
