"""Features of a folder of photographs: headstart against the loop that everybody writes.

    python bench/tutorial_loop.py        # about ten minutes on two quiet cores
    python bench/tutorial_loop.py --pictures 600 --rounds 5

The loop is ImageFolder (Pillow), a DataLoader with one worker per core, batches of 32, and the network in eager fp32.
headstart's side is everything its first three stages do for the same pictures: listing and hashing, audit with search for
near-duplicates, decoding and packing, and the frozen pass. Both get the same generated 400×533 JPEGs, the same networks
(tf_efficientnet_lite0 and resnet18, random weights) and all cores; they run alternately, each time in a process of its own.
Prints pictures per second of both and, per round, ratios as median (least–most): end to end, for the next backbone, when
the pictures are packed already, and of that, compiling included, to the bare forward pass of the engine that was picked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _sides import measured, report

LOOP, HEADSTART = "loop", "headstart"
NETWORKS = ("tf_efficientnet_lite0", "resnet18")
HEIGHT, WIDTH = 400, 533
BARE = 4  # batches of 64


def generate(folder: Path, count: int, first: int = 0) -> None:
    """``count`` JPEGs of coloured clouds with some grain, in two class folders, numbered from ``first``."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(first)
    for number in range(first, first + count):
        clouds = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC
        )
        grain = random.normal(0, 8, (HEIGHT, WIDTH, 1))
        pixels = np.clip(np.asarray(clouds, np.float32) + grain, 0, 255).astype(np.uint8)
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def loop(folder: Path) -> dict[str, float]:
    import timm
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from headstart.base.threads import cores

    view = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    found = {}
    for name in NETWORKS:
        model = timm.create_model(name, num_classes=0).eval()
        start = time.perf_counter()
        pictures = ImageFolder(folder, view)
        with torch.no_grad():
            torch.cat([model(batch) for batch, _ in DataLoader(pictures, 32, num_workers=cores())])
        rate = len(pictures) / (time.perf_counter() - start)
        found |= {f"{name}, end to end": rate, f"{name}, next backbone": rate}
    return found


def headstart(folder: Path) -> dict[str, float]:
    import torch

    from headstart.base.device import set_up
    from headstart.base.sections import Data, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch
    from headstart.data.packed import Pixels
    from headstart.data.prepare import prepare
    from headstart.engines.select import engine_for
    from headstart.models.backbones import architecture
    from headstart.training.features import extract

    device = set_up(None)
    trunks = {name: architecture(name).trunk() for name in NETWORKS}
    found = {}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        start = time.perf_counter()
        pictures = fetch(Data(source=str(folder)), out / "manifest.csv")
        manifest = prepare(pictures, folder, Prepare(), Split(), 0, cores(), out / "prepare")
        packing = time.perf_counter() - start
        assert len(manifest) == len(pictures)
        for name, trunk in trunks.items():
            start = time.perf_counter()
            extract(trunk, Pixels(out / "prepare"), manifest, device, out / "features")
            extracting = time.perf_counter() - start
            sample = torch.randn(64, 3, 224, 224).contiguous(memory_format=torch.channels_last)
            engine, _ = engine_for(trunk, len(pictures), sample, device)
            engine(sample)
            start = time.perf_counter()
            for _ in range(BARE):
                engine(sample)
            found[f"{name}, bare"] = BARE * len(sample) / (time.perf_counter() - start)
            found[f"{name}, next backbone"] = len(pictures) / extracting
            found[f"{name}, end to end"] = len(pictures) / (packing + extracting)
    return found


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    return (loop if side == LOOP else headstart)(asked.folder)


if __name__ == "__main__":
    _, rounds = measured(
        __doc__, (LOOP, HEADSTART), measure, 3, {"pictures": 1500}, lambda asked: generate(asked.folder, asked.pictures)
    )
    for name in NETWORKS:
        for what in (f"{name}, end to end", f"{name}, next backbone"):
            theirs, ours = ([found[side][what] for found in rounds] for side in (LOOP, HEADSTART))
            report(f"features of a folder: {what}", theirs, ours, "pictures/s", (LOOP, HEADSTART))
        bare, ours = ([found[HEADSTART][f"{name}, {what}"] for found in rounds] for what in ("bare", "next backbone"))
        report(
            f"features: {name}, packed pixels to tensor file", bare, ours, "pictures/s", ("bare forward pass", "all of it")
        )
