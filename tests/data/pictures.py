"""Real pictures, made here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photograph(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture with structure at all scales that no other seed's resembles."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for n in (3, 6, 24)
    ]
    return Image.blend(Image.blend(layers[0], layers[1], 0.5), layers[2], 0.2)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_pictures(folder: Path, names: dict[str, int], kind: str = "PNG") -> Path:
    """Picture files by name, each with the content of its number."""
    for name, seed in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photograph(seed), kind))
    return folder


def everything_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file: what must not change in a user's folder."""
    return {
        p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }
