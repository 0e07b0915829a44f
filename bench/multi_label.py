"""Several labels per picture: headstart's stages beside a plain loop that trains the whole network, on the same pictures.

    python bench/multi_label.py --pictures 1500     # about half an hour on two quiet cores
    python bench/multi_label.py --unfreeze all      # headstart trains the whole network too
    python bench/multi_label.py --source TABLE      # your own, with the columns path and labels

The pictures are canvases with one to three emoji each (tests/data/pictures.py), of 160 pixels. The plain loop is what a
tutorial does: the pre-trained network with a new last layer, a sigmoid for each class, binary cross-entropy, AdamW and one
cycle at 1e-3 over all layers, flips, the last epoch taken. Both get the same network, weights, split, views and number of
epochs, and are measured on the same test pictures. Prints mean average precision (log-loss) and minutes of each, and the
difference of each of headstart's answers from the plain loop in points of mean average precision, with its paired 95%
bootstrap interval.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _project import ROOT, clone, stages
from torch import nn

from headstart.base.artifacts import DataFolder
from headstart.data.manifest import class_names, read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation import report
from headstart.evaluation.intervals import bootstrap, percentile_interval
from headstart.evaluation.metrics import MEAN_AVERAGE_PRECISION, Scores
from headstart.models.backbones import load_trunk
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import MULTI_LABEL

NETWORK, BATCH, RATE = "tf_efficientnet_lite0", 32, 1e-3


def plain_loop(data: DataFolder, epochs: int, seed: int) -> Scores:
    torch.manual_seed(seed)
    trunk, _ = load_trunk(data.backbone, data.fetch.network)
    manifest, pixels = read_manifest(data.prepare), Pixels(data.prepare)
    classes = class_names(manifest)
    labels = torch.from_numpy(MULTI_LABEL.labels_of(manifest, classes))
    rows = {split: np.flatnonzero(manifest["split"] == split) for split in ("train", "test")}
    network = nn.Sequential(Normalise(trunk.view), trunk.requires_grad_(True), nn.LazyLinear(len(classes)))
    network(next(batches(trunk.view, pixels, rows["train"][:2].tolist(), 2))[1])  # finds the number of features
    optimizer, loss_of = torch.optim.AdamW(network.parameters(), RATE), nn.BCEWithLogitsLoss()
    steps = len(rows["train"]) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps)
    order = np.random.default_rng(seed)
    network.train()
    for _ in range(epochs):
        shown = order.permutation(rows["train"])[: steps * BATCH].tolist()
        for chunk, pictures in batches(trunk.view, pixels, shown, BATCH):
            flipped = torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, pictures, pictures.flip(-1))
            loss = loss_of(network(flipped), labels[list(chunk)].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(each) for _, each in batches(trunk.view, pixels, rows["test"].tolist(), BATCH)])
    return Scores(MULTI_LABEL.probabilities(logits.double()).numpy(), labels.numpy()[rows["test"]], MULTI_LABEL)


def precision(scores: Scores, rows: np.ndarray | None = None) -> float:
    return MEAN_AVERAGE_PRECISION.measure(scores, np.arange(len(scores.labels)) if rows is None else rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a table with the columns path and labels (default: canvases)")
    parser.add_argument("--pictures", type=int, default=1500, help="canvases to make; default: 1500")
    parser.add_argument("--epochs", type=int, default=4, help="on both sides; default: 4")
    parser.add_argument("--unfreeze", default="half", help="finetune.unfreeze of headstart's side; default: half")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.source is None:
            sys.path.insert(0, str(ROOT))
            from tests.data.pictures import write_canvases

            asked.source = write_canvases(Path(name, "canvases"), asked.pictures, asked.seed)
        folder = Path(name, "project")
        clone(
            folder, backbone=NETWORK, seed=asked.seed, data={"source": str(Path(asked.source).resolve())},
            finetune={"epochs": asked.epochs, "unfreeze": asked.unfreeze},
        )  # fmt: skip
        stages(folder, "fetch", "prepare", "backbone")
        data, start = DataFolder(folder / "data"), time.perf_counter()
        stages(folder, "features", "head")
        minutes = {"head": (time.perf_counter() - start) / 60}
        stages(folder, "finetune")
        minutes["finetune"] = minutes["ensemble"] = (time.perf_counter() - start) / 60
        found = report._candidates(data, read_manifest(data.prepare), Pixels(data.prepare), torch.device("cpu"))
        start = time.perf_counter()
        plain = plain_loop(data, asked.epochs, asked.seed)
        minutes["plain loop"] = (time.perf_counter() - start) / 60
    print(f"\n{'':<12}{'mAP':>8}{'log-loss':>10}{'minutes':>9}   points of mAP over the plain loop")
    print(f"{'plain loop':<12}{precision(plain):>8.3f}{plain.losses.mean():>10.3f}{minutes['plain loop']:>9.1f}")
    for name, by_split in found.scores.items():
        ours = by_split["test"]
        draws = bootstrap(lambda rows, ours=ours: precision(ours, rows) - precision(plain, rows), len(ours.labels), 0)
        low, high = percentile_interval(100 * draws)
        points = 100 * (precision(ours) - precision(plain))
        print(
            f"{name:<12}{precision(ours):>8.3f}{ours.losses.mean():>10.3f}{minutes[name]:>9.1f}"
            f"   {points:+.1f} ({low:+.1f} to {high:+.1f})"
        )


if __name__ == "__main__":
    main()
