"""A few pictures of each class in each split, on one sheet."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from headstart.base.files import replacing
from headstart.data.manifest import class_names
from headstart.data.packed import Pixels
from headstart.data.splits import SPLITS


def sheet(pixels: Pixels, manifest: pd.DataFrame, path: Path, side: int = 72, each: int = 4, most: int = 30) -> None:
    """A few pictures of each class in each split, as they are stored."""
    classes = class_names(manifest)[:most]
    left, gap, top = 150, 12, 22
    width = left + len(SPLITS) * (each * side + gap)
    canvas = Image.new("RGB", (width, top + len(classes) * (side + 4)), "white")
    draw = ImageDraw.Draw(canvas)
    counts = manifest.groupby(["label", "split"]).size()
    for s, split in enumerate(SPLITS):
        draw.text((left + s * (each * side + gap), 5), split, fill="black")
    for c, label in enumerate(classes):
        y = top + c * (side + 4)
        numbers = " / ".join(str(counts.get((label, split), 0)) for split in SPLITS)
        draw.text((6, y + side // 2 - 14), f"{_latin(label)[:24]}\n{numbers}", fill="black")
        for s, split in enumerate(SPLITS):
            rows = np.flatnonzero((manifest["label"] == label) & (manifest["split"] == split))[:each]
            for p, row in enumerate(rows):
                thumbnail = Image.fromarray(pixels[int(row)])
                thumbnail.thumbnail((side - 2, side - 2))
                canvas.paste(thumbnail, (left + s * (each * side + gap) + p * side, y))
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    with replacing(path) as part:
        part.write_bytes(stream.getvalue())


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")  # Pillow's built-in font has no more
