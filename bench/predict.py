"""``headstart predict`` over a folder of photographs against what features takes for them.

    python bench/predict.py              # about four minutes on two quiet cores
    python bench/predict.py --pictures 5000 --rounds 5

One side is features from end to end, as a pipeline that sees the pictures for the first time has it: listing, hashing and
decoding (fetch and prepare), and the frozen pass. The other is headstart predict: it loads the packaged model, picks the
engine, decodes, answers, and writes a .csv. Both get the same generated 400×533 JPEGs, the same network
(tf_efficientnet_lite0, random weights) and all cores; they run alternately, each time in a process of its own. Imports are
on no clock. Prints pictures per second of both and, per round, their ratio as median (least–most), and whether the answers
are those of the packaged predictor.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

from _sides import measured, report
from tutorial_loop import generate

FEATURES, PREDICT = "features", "predict"
NETWORK = "tf_efficientnet_lite0"
COMPARED = 64


def fill(asked: argparse.Namespace) -> None:
    generate(asked.folder, asked.pictures)
    package(asked.folder.parent / "model")


def package(model: Path) -> None:
    """A packaged model with random weights, as the package stage leaves it to ``served``."""
    import torch
    from safetensors.torch import save_file

    from headstart.base.artifacts import ModelFolder
    from headstart.base.artifacts.classifier import ClassifierDetails
    from headstart.models.backbones import architecture
    from headstart.models.classifier import Classifier, FittedHead
    from headstart.models.heads import LinearHead
    from headstart.models.trunk import feature_width

    folder = ModelFolder(model).classifier
    folder.mkdir(parents=True)
    trunk = architecture(NETWORK).trunk()
    head = FittedHead(LinearHead.of(torch.randn(2, feature_width(trunk)), torch.zeros(2)), 1.0, ("even", "odd"))
    state = Classifier(trunk, head).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder.weights)
    folder.network.touch()
    ClassifierDetails(
        backbone=NETWORK,
        weights="default",
        preprocessing=trunk.view.stored(),
        classes=list(head.classes),
        temperature=1.0,
        chosen="head",
        max_megapixels=100.0,
        short_side=384,
    ).write(folder.details)


def features(folder: Path) -> dict[str, float]:
    from headstart.base.device import set_up
    from headstart.base.sections import Data, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch
    from headstart.data.packed import Pixels
    from headstart.data.prepare import prepare
    from headstart.models.backbones import architecture
    from headstart.training.features import extract

    device = set_up(None)
    trunk = architecture(NETWORK).trunk()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        start = time.perf_counter()
        pictures = fetch(Data(source=str(folder)), out / "manifest.csv")
        manifest = prepare(pictures, folder, Prepare(), Split(), 0, cores(), out / "prepare")
        extract(trunk, Pixels(out / "prepare"), manifest, device, out / "features")
        return {"rate": len(pictures) / (time.perf_counter() - start)}


def predict(folder: Path) -> dict[str, float]:
    from headstart.inference.batch import predict as answer
    from headstart.inference.predictor import load_predictor

    files, model = sorted(folder.rglob("*.jpg")), folder.parent / "model"
    load_predictor(model)  # timm and torchvision are imported here
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "answers.csv"
        start = time.perf_counter()
        answer(files, model, "csv", table, None)
        rate = len(files) / (time.perf_counter() - start)
        rows = list(csv.DictReader(table.open(encoding="utf-8")))[:COMPARED]
    expected = load_predictor(model).predict(files[:COMPARED])
    differences = [abs(float(row["even"]) - e.probabilities["even"]) for row, e in zip(rows, expected, strict=True)]
    assert max(differences) <= 1e-3, f"answers differ by {max(differences):.2g}"
    return {"rate": rate}


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    return (features if side == FEATURES else predict)(asked.folder)


if __name__ == "__main__":
    _, rounds = measured(__doc__, (FEATURES, PREDICT), measure, 3, {"pictures": 2000}, fill)
    theirs, ours = ([found[side]["rate"] for found in rounds] for side in (FEATURES, PREDICT))
    report("headstart predict over a folder", theirs, ours, "pictures/s", ("features, end to end", "predict"))
