"""A few pictures of each class in each split, on one sheet."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

from headstart.base.files import replacing
from headstart.base.safe_text import visible
from headstart.data.manifest import class_names, one_row_per_label
from headstart.data.packed import Pixels
from headstart.data.splits import SPLITS

LABEL_WIDTH, HEADER_HEIGHT, GAP = 150, 22, 12  # pixels


def write_contact_sheet(
    pixels: Pixels, manifest: pd.DataFrame, path: Path, side: int = 72, per_split: int = 4, max_classes: int = 30
) -> None:
    """Write a PNG with the first stored pictures of each class in each split, and their counts."""
    classes, labels = class_names(manifest)[:max_classes], one_row_per_label(manifest)
    width = LABEL_WIDTH + len(SPLITS) * (per_split * side + GAP)
    canvas = Image.new("RGB", (width, HEADER_HEIGHT + len(classes) * (side + 4)), "white")
    draw = ImageDraw.Draw(canvas)
    counts = labels.groupby(["label", "split"]).size()
    left = {split: LABEL_WIDTH + number * (per_split * side + GAP) for number, split in enumerate(SPLITS)}
    for split in SPLITS:
        draw.text((left[split], 5), split, fill="black")
    for number, label in enumerate(classes):
        y = HEADER_HEIGHT + number * (side + 4)
        per_class = " / ".join(str(counts.get((label, split), 0)) for split in SPLITS)
        draw.text((6, y + side // 2 - 14), f"{_latin_1(label)[:24]}\n{per_class}", fill="black")
        for split in SPLITS:
            rows = labels.index[(labels["label"] == label) & (labels["split"] == split)][:per_split]
            for position, row in enumerate(rows):
                thumbnail = Image.fromarray(pixels[int(row)])
                thumbnail.thumbnail((side - 2, side - 2))
                canvas.paste(thumbnail, (left[split] + position * side, y))
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    with replacing(path) as part:
        part.write_bytes(stream.getvalue())


def _latin_1(text: str) -> str:
    """The text with an escape, such as \\u732b, for what Pillow's built-in font cannot draw."""
    return visible(text).encode("latin-1", "backslashreplace").decode("latin-1")
