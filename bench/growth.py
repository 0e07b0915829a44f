"""Time, disk and memory of fetch, prepare and features, as a folder grows from 1,000 pictures to 100,000.

    python bench/growth.py               # about a quarter of an hour on two quiet cores, and 4 GB in the temporary folder
    python bench/growth.py --most 10000

The three stages run on 1,000 generated JPEGs of 96×128 pixels, on 10,000, and so on, each from nothing and each in a
process of its own, with a small network (mobilenetv3_small_050 at 128 pixels, random weights: 1,024 features) and all
cores. All pictures are packed as JPEG, as 100,000 are by default (1,000 would be raw), and go through torch, so that few
pictures are not charged with compiling. Their files are in the page cache throughout.

Prints for each size and stage seconds per 1,000 pictures, imports not counted; bytes per picture of what it leaves on disk;
and two peaks of memory, imports counted. RSS (VmHWM) also counts pages of files that are mapped into memory, libraries and
data; the kernel drops those when others need the room. What has to fit is anonymous memory (RssAnon, looked at fifty times
a second from outside). Ratios are the largest size's seconds by the smallest's, which is measured three times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from statistics import median

from _sides import report

STAGES = ("fetch", "prepare", "features")
LEAST, MOST, GROWTH, REPEATS = 1000, 100_000, 10, 3
HEIGHT, WIDTH, CLASSES = 96, 128, 10
NETWORK, SIZE = "mobilenetv3_small_050", 128


def draw(folder: Path, first: int) -> None:
    """LEAST pictures, numbered from ``first``: coloured clouds, of which no two are alike, with some grain."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(first)
    for number in range(first, first + LEAST):
        clouds = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((WIDTH, HEIGHT))
        grain = random.integers(-12, 13, (HEIGHT, WIDTH, 1), np.int16)
        path = folder / f"{number % CLASSES}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(clouds) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def run(stage: str, pictures: Path) -> dict[str, float]:
    """Run a stage in the current folder, as its script does: seconds, and the peak of RSS."""
    from headstart.base.sections import Data, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch, read_manifest

    if stage == "fetch":
        start = time.perf_counter()
        fetch(Data(source=str(pictures)), Path("fetch/manifest.csv"))
    elif stage == "prepare":
        from headstart.data.prepare import prepare

        start = time.perf_counter()
        listed = read_manifest(Path("fetch/manifest.csv"))
        kept = prepare(listed, pictures, Prepare(raw_gb=0), Split(), 0, cores(), Path("prepare"))
        assert len(kept) == len(listed), "some were left out, so that fewer were measured than is said"
    else:
        from headstart.base.device import set_up
        from headstart.data import manifest
        from headstart.data.packed import Pixels
        from headstart.models.backbones import architecture
        from headstart.models.trunk import Trunk
        from headstart.training.features import extract

        device, network, packed = set_up(None), architecture(NETWORK), Path("prepare")
        trunk = Trunk(network.whole(), replace(network.view, size=SIZE))
        start = time.perf_counter()
        extract(trunk, Pixels(packed), manifest.read_manifest(packed), device, Path("features"), "torch")
    return {"seconds": time.perf_counter() - start, "rss": memory("self", "VmHWM")}


def memory(process: int | str, what: str) -> int:
    """Bytes that the kernel counts for a process; 0 for one that has just ended."""
    known = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(known.get(what, "0").split()[0])


def watched(stage: str, pictures: Path, folder: Path) -> dict[str, float]:
    """What ``run`` found in a process of its own, with the peak of its anonymous memory and the bytes it left."""
    command, anonymous = [sys.executable, __file__, "--stage", stage, "--pictures", str(pictures)], 0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            anonymous = max(anonymous, memory(process.pid, "RssAnon"))
            time.sleep(0.02)
        assert process.stdout is not None and process.returncode == 0, f"{stage} failed"
        found = json.loads(process.stdout.read().splitlines()[-1])
    left = sum(path.stat().st_size for path in (folder / stage).rglob("*") if path.is_file())
    return found | {"anonymous": anonymous, "bytes": left}


def grown(most: int) -> Iterator[tuple[str, int, list[dict[str, float]]]]:
    """For each number of pictures and each stage, what ``watched`` found, as often as it was asked."""
    with tempfile.TemporaryDirectory() as scratch:
        pictures, drawn, size = Path(scratch) / "pictures", 0, LEAST
        while size <= most:
            with Pool() as pool:
                pool.map(partial(draw, pictures), range(drawn, size, LEAST), chunksize=1)
            rounds = []
            for _ in range(REPEATS if size == LEAST else 1):
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    rounds.append({stage: watched(stage, pictures, Path(folder)) for stage in STAGES})
            yield from ((stage, size, [found[stage] for found in rounds]) for stage in STAGES)
            drawn, size = size, GROWTH * size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=MOST, help=f"default: {MOST}")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        print(json.dumps(run(asked.stage, asked.pictures)))
        sys.exit()
    seconds: dict[str, dict[int, list[float]]] = {stage: {} for stage in STAGES}
    print("| pictures | stage | s per 1,000 | bytes per picture | RSS, MB | anonymous, MB |\n|---|---|---|---|---|---|")
    for stage, size, found in grown(asked.most):
        seconds[stage][size] = [1000 * each["seconds"] / size for each in found]
        left, rss, anonymous = (median(each[what] for each in found) for what in ("bytes", "rss", "anonymous"))
        row = f"{left / size:,.0f} | {rss / 1e6:,.0f} | {anonymous / 1e6:,.0f}"
        print(f"| {size:,} | {stage} | {median(seconds[stage][size]):.2f} | {row} |", flush=True)
    for stage in STAGES[1:] if asked.most >= GROWTH * LEAST else ():  # fetch takes too short to compare
        (least, few), *_, (most, many) = seconds[stage].items()
        report(f"1,000 pictures through {stage}", few, many * len(few), "s", (f"of {least:,}", f"of {most:,}"))
