"""Decoded pictures in one file: memory-mapped, each at its own size, raw or as high-quality JPEG."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from headstart.data.decode import Array
from headstart.errors import HeadstartError

PIXELS, INDEX = "pixels.bin", "pixels.parquet"


def encode(image: Image.Image, jpeg_quality: int | None) -> bytes:
    """The bytes kept for one picture: raw RGB, or JPEG without chroma subsampling where a quality is given."""
    if jpeg_quality is None:
        return image.tobytes()
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=jpeg_quality, subsampling=0)
    return stream.getvalue()


class Pixels:
    """The pictures of data/prepare, in manifest order. Opening costs nothing: pages are read when touched."""

    def __init__(self, folder: Path) -> None:
        try:
            packed = (folder / INDEX).read_bytes()
            self.index: pa.Table = pq.read_table(io.BytesIO(packed))
            self.digest = hashlib.sha256(packed).hexdigest()
            self._bytes = np.memmap(folder / PIXELS, mode="c", dtype=np.uint8)  # torch takes no read-only arrays
        except (OSError, ValueError) as error:
            raise HeadstartError(f"{folder} has no packed pictures ({error}); run `dvc repro prepare`") from None
        self._raw = json.loads(self.settings.get(b"headstart", b"{}")).get("jpeg_quality") is None
        self._offset = self.index["offset"].to_numpy()
        self._length = self.index["length"].to_numpy()
        self._height = self.index["height"].to_numpy()
        self._width = self.index["width"].to_numpy()

    def __len__(self) -> int:
        return len(self._offset)

    @property
    def settings(self) -> dict[bytes, bytes]:
        return self.index.schema.metadata or {}

    def raw(self, row: int) -> Array:
        """The stored bytes of picture ``row``."""
        start = self._offset[row]
        return self._bytes[start : start + self._length[row]]

    def __getitem__(self, row: int) -> Array:
        """Picture ``row`` as (height, width, 3) uint8; a view into the file where it is stored raw."""
        height, width = int(self._height[row]), int(self._width[row])
        stored = self.raw(row)
        if self._raw:
            return stored.reshape(height, width, 3)
        return np.array(Image.open(io.BytesIO(stored.tobytes())).convert("RGB"))
