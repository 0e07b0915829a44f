"""Does the search for shortcuts find those that are planted, and nothing where labels say nothing?

Planted: the pictures of a set are written again, all in the same way; so many of one class, and of the others so many
fewer, get a line of one pixel around them, another format, a watermark in a corner, or another size. At 80% it is on 80%
of the class and on 20% of the others. Clean: the labels are shuffled 100 times.

    python bench/shortcuts.py               # the emoji; takes about ten minutes on one core
    python bench/shortcuts.py FOLDER        # a folder of class folders instead
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from headstart.base.artifacts.shortcuts import BlindScore, Shortcut
from headstart.base.sections import Data, Prepare, Split
from headstart.data import blind
from headstart.data.blind import FALSE_ALARMS, Blindfold, cases_of, corrected, is_large
from headstart.data.decode import decode
from headstart.data.fetch import fetch
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels, read_file_properties
from headstart.data.picture import Picture
from headstart.data.prepare import prepare
from headstart.data.shortcuts import FILES, file_numbers, found_in_files, matters
from headstart.data.sources import source_of
from headstart.studies.shortcuts import examine, found_in_pixels, pixel_numbers, smooth

SHUFFLES = 100
CORRELATIONS = (1.0, 0.8, 0.6)


def line(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline="black")
    return image


def watermark(image: Image.Image) -> Image.Image:
    """White letters on a dark, half transparent ground, a third as wide as the picture."""
    layer = Image.new("RGBA", image.size)
    draw, size = ImageDraw.Draw(layer), max(8, min(image.size) // 9)
    draw.rectangle((image.width - 3.2 * size, image.height - 1.3 * size, image.width, image.height), fill=(0, 0, 0, 90))
    font = ImageFont.load_default(size)
    draw.text((image.width - 2, image.height - 2), "NEWS", font=font, fill=(255, 255, 255, 230), anchor="rb")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def larger(image: Image.Image) -> Image.Image:
    return image.resize((round(1.1 * image.width), round(1.1 * image.height)), Image.Resampling.BICUBIC)


KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "line": (line, "png"),
    "format": (lambda image: image, "webp"),
    "watermark": (watermark, "png"),
    "size": (larger, "png"),
}


def planted(pictures: list[Picture], root: Path, kind: str, correlation: float, target: str, folder: Path) -> Path:
    """The pictures, written again with a shortcut to one class."""
    change, suffix = KINDS[kind]
    random = np.random.default_rng(0)
    for number, picture in enumerate(pictures):
        share = correlation if picture.label == target else 1 - correlation
        image, end = decode(root / picture.path, 384).image, "png"
        if random.random() < share:
            image, end = change(image), suffix
        path = folder / picture.label / f"{number}.{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, lossless=True)
    return folder


def prepared(source: str, folder: Path) -> Path:
    data = Data(source=source)
    pictures = fetch(data, folder / "manifest.csv")
    prepare(pictures, source_of(data).root(data), Prepare(), Split(), 0, os.cpu_count() or 1, folder / "prepare")
    return folder / "prepare"


def found_in(folder: Path) -> list[Shortcut]:
    return examine(read_manifest(folder), read_file_properties(folder), Pixels(folder), None, 0).result.found


def told(found: list[Shortcut]) -> str:
    return ", ".join(f"{one.sees} ({one.label or 'all'} {one.accuracy.value:.2f})" for one in found) or "nothing"


def clean(folder: Path) -> tuple[int, int]:
    """In how many of the shuffles something is found, and in how many a score is clearly above chance."""
    cases = cases_of(read_manifest(folder))
    properties = read_file_properties(folder).iloc[cases.rows]
    seen = {sees: file_numbers(properties, sees) for sees in FILES}
    seen |= {sees: smooth(numbers) for sees, numbers in pixel_numbers(Pixels(folder), cases).items()}
    once: dict[tuple[int, bytes], list[object]] = {}
    solve = blind._smoothers

    @functools.wraps(solve)
    def solved(numbers, fold):  # type: ignore[no-untyped-def]  # the same for all labels
        key = (id(numbers), fold.tobytes())
        if key not in once:
            once[key] = list(solve(numbers, fold))
        return once[key]

    blind._smoothers = solved
    first = np.unique(cases.groups, return_index=True)[1]
    anything = clear = 0
    for seed in range(SHUFFLES):
        order = np.random.default_rng(seed).permutation(len(first))
        shuffled = dataclasses.replace(cases, truth=cases.truth[first[order]][cases.groups])
        fold, scores = Blindfold(shuffled), list[BlindScore]()
        for sees, numbers in seen.items():
            scores += fold.scores(sees, numbers, matters if sees in FILES else None)
        scores = corrected(scores)
        anything += bool(found_in_files(scores, shuffled, properties) + found_in_pixels(scores))
        clear += any(score.p < FALSE_ALARMS and is_large(score) for score in scores)
    blind._smoothers = solve
    return anything, clear


def main() -> None:
    source = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else "emoji"
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        folder = prepared(source, Path("clean"))
        found = found_in(folder)
        print(f"as it is: {told(found)}", flush=True)
        before = {(one.sees, one.label) for one in found}
        anything, clear = clean(folder)
        print(f"{SHUFFLES} shuffles: something found in {anything}, a score clearly above chance in {clear}", flush=True)
        data = Data(source=source)
        pictures, root = fetch(data, Path("again.csv")), source_of(data).root(data)
        target = sorted({picture.label for picture in pictures})[1]
        for kind in KINDS:
            for correlation in CORRELATIONS:
                here = Path(f"{kind}{correlation}")
                planted(pictures, root, kind, correlation, target, here / "set")
                found = found_in(prepared(str((here / "set").resolve()), here))
                new = [one for one in found if (one.sees, one.label) not in before]
                print(f"{kind} at {correlation:.0%} of {target!r}: {told(new)}", flush=True)


if __name__ == "__main__":
    main()
