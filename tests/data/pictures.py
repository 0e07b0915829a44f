"""Real pictures, made here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.base.sections import Data
from headstart.data.sources_emoji import Emoji


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


# The classes of write_canvases, each a group of emoji; those of OTHERS belong to no class.
CANVAS_CLASSES = {
    "animals": "Animals & Nature",
    "faces": "Smileys & Emotion",
    "flags": "Flags",
    "food": "Food & Drink",
    "objects": "Objects",
    "travel": "Travel & Places",
}
OTHERS = "Symbols"


def write_canvases(folder: Path, count: int, seed: int) -> Path:
    """A small multi-label set: pictures of one to three emoji each, and the table of their labels, which is returned.

    A class is a group of emoji. Some pictures have one class only, and every twelfth or so none: it shows a symbol.
    """
    listing = Emoji().listing(Data())
    drawn = {
        name: [p.path for p in listing.pictures if p.label == group]
        for name, group in (*CANVAS_CLASSES.items(), ("", OTHERS))
    }
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,labels"]
    for number in range(count):
        kinds = int(rng.choice(3, p=[0.2, 0.4, 0.4])) + 1
        names = [""] if rng.random() < 1 / 12 else rng.choice(list(CANVAS_CLASSES), kinds, replace=False).tolist()
        canvas = Image.new("RGB", (160, 160), "white")
        for name, quarter in zip(names, rng.permutation(4).tolist(), strict=False):
            side = int(rng.integers(50, 71))
            x, y = rng.integers(0, 80 - side, 2).tolist()
            emoji = Image.open(listing.root / str(rng.choice(drawn[name]))).convert("RGBA").resize((side, side))
            canvas.paste(emoji, (80 * (quarter % 2) + x, 80 * (quarter // 2) + y), emoji)
        path = f"{number:04d}.png"
        canvas.save(folder / path)
        rows.append(f"{path},{';'.join(sorted(names))}")
    table = folder / "table.csv"
    table.write_text("\n".join([*rows, ""]), encoding="utf-8")
    return table
