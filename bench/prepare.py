"""fetch and prepare against decoding alone.

    python bench/prepare.py              # about a minute on two quiet cores
    python bench/prepare.py --pictures 3000
    python bench/prepare.py --source FOLDER   # your own JPEGs

One side only decodes, in one process per core, with the fastest decoder at hand (Pillow with its own scaling of JPEGs,
or torchvision.io, whichever is done sooner). The other is all of fetch and prepare on the same files: listing, hashing,
decoding, resizing, fingerprints, search for near-duplicates, splitting, packing and the audit. Both get the same JPEGs
(generated ones of 400×533 pixels, where no folder is named) and all cores, alternately and each time in a process of its
own. Prints pictures per second of both and, per round, their ratio as median (least–most).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from _sides import measured, report
from tutorial_loop import generate

DECODING, HEADSTART = "decoding", "headstart"


def with_pillow(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        image.draft("RGB", (384, 384))
        image.load()
        return image.width


def with_torchvision(path: Path) -> int:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return int(decode_jpeg(read_file(str(path)), ImageReadMode.RGB).shape[2])


def decoding(folder: Path) -> float:
    from headstart.base.threads import cores

    files = sorted(folder.rglob("*.jpg"))
    best = 0.0
    with ProcessPoolExecutor(cores()) as pool:
        for decode in (with_pillow, with_torchvision):
            list(pool.map(decode, files[: 16 * cores()]))  # imports are not on the clock
            start = time.perf_counter()
            list(pool.map(decode, files, chunksize=16))
            best = max(best, len(files) / (time.perf_counter() - start))
    return best


def fill(asked: argparse.Namespace) -> None:
    if asked.source:
        asked.folder = Path(asked.source).resolve()
    else:
        generate(asked.folder, asked.pictures)


def headstart(folder: Path) -> float:
    from headstart.base.sections import Data, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch
    from headstart.data.prepare import prepare

    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        pictures = fetch(Data(source=str(folder)), Path(name) / "manifest.csv")
        prepare(pictures, folder, Prepare(), Split(), 0, cores(), Path(name) / "prepare")
        return len(pictures) / (time.perf_counter() - start)


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    return {"rate": (decoding if side == DECODING else headstart)(asked.folder)}


if __name__ == "__main__":
    asked, rounds = measured(__doc__, (DECODING, HEADSTART), measure, 5, {"pictures": 1500, "source": ""}, fill)
    alone, ours = ([found[side]["rate"] for found in rounds] for side in (DECODING, HEADSTART))
    report(
        f"fetch and prepare{', ' if asked.source else ''}{Path(asked.source).name}",
        alone,
        ours,
        "pictures/s",
        ("decoding alone", "all of it"),
    )
