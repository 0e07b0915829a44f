"""Decoded pictures in one file, each at its own size, raw or as high-quality JPEG: reading them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.data.decode import Array


class Pixels:
    """The pictures of data/prepare in manifest order. Each is read from disk when indexed; none stays in memory.

    Attributes:
        digest: SHA-256 of the index, which names the content of every picture.
        settings: how the pictures were packed, as prepare wrote it into the index.
    """

    def __init__(self, folder: Path) -> None:
        files = PrepareFolder(folder)
        try:
            # Without the thumbnails, which are most of the index: loaded, they take 2.8 KB of memory each.
            index = pq.read_table(files.pixels_index, columns=["offset", "length", "height", "width"])
            with files.pixels_index.open("rb") as stream:
                self.digest = hashlib.file_digest(stream, "sha256").hexdigest()
            self._file = os.open(files.pixels, os.O_RDONLY)
        except (OSError, ValueError) as error:
            raise HeadstartError(f"{folder} has no packed pictures ({error}); run `dvc repro prepare`") from None
        weakref.finalize(self, os.close, self._file)
        self.settings: dict[bytes, bytes] = index.schema.metadata or {}
        self._raw = json.loads(self.settings.get(b"headstart", b"{}")).get("jpeg_quality") is None
        self._offset = index["offset"].to_numpy()
        self._length = index["length"].to_numpy()
        self._height = index["height"].to_numpy()
        self._width = index["width"].to_numpy()
        if os.fstat(self._file).st_size < (self._offset + self._length).max(initial=0):
            raise HeadstartError(f"{files.pixels} is cut short; run `dvc repro prepare`")

    def __len__(self) -> int:
        return len(self._offset)

    def raw(self, row: int) -> Array:
        """The stored bytes of picture ``row``."""
        stored = np.empty(self._length[row], np.uint8)
        os.preadv(self._file, [stored.data], int(self._offset[row]))  # unlike seek and read, safe from several threads
        return stored

    def __getitem__(self, row: int) -> Array:
        """Picture ``row`` as (height, width, 3) uint8."""
        height, width = int(self._height[row]), int(self._width[row])
        stored = self.raw(row)
        if self._raw:
            return stored.reshape(height, width, 3)
        return np.array(Image.open(io.BytesIO(stored.data)).convert("RGB"))
