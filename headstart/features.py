"""features: a frozen backbone over every picture, once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headstart.answers import answers_of
from headstart.backbones import Trunk
from headstart.checkout import replacing, write_json
from headstart.compute import inference_batch
from headstart.data.manifest import class_names
from headstart.data.pixels import Pixels
from headstart.data.splits import SPLITS
from headstart.engines import PROBED, SAMPLE, engine_for
from headstart.errors import HeadstartError
from headstart.progress import progress
from headstart.views import Normalise, batches

CARD = "features.json"
MANY = 8 * PROBED  # pictures; of fewer, showing so many to several engines would cost more than the fastest one saves


def extract(
    trunk: Trunk,
    pixels: Pixels,
    manifest: pd.DataFrame,
    device: torch.device,
    folder: Path,
    wanted: str = "auto",
    timings: Path | None = None,
) -> None:
    """Write one file per split: ``features`` (N, D) float32 and ``labels`` (N,) int64, rows in manifest order; and a card
    that says which engine made them.

    Memory does not grow with the set.

    Args:
        wanted, timings: as ``engines.engine_for`` takes them.
    """
    trunk = trunk.eval().requires_grad_(False).to(device)
    network = nn.Sequential(Normalise(trunk.view), trunk).to(device).eval()
    batch = inference_batch(trunk, trunk.view, device)
    labels = manifest["label"].map({name: number for number, name in enumerate(class_names(manifest))}).to_numpy()
    many = len(manifest) >= MANY
    rows = np.unique(np.linspace(0, len(manifest) - 1, PROBED if many else SAMPLE).astype(int))
    sample = torch.cat([pictures for _, pictures in batches(trunk.view, pixels, rows.tolist(), batch)])
    known = torch.from_numpy(labels[rows]) if many else None
    engine, told = engine_for(network, len(manifest), sample, device, wanted, known, timings)
    folder.mkdir(parents=True, exist_ok=True)
    with progress("features", len(manifest)) as advance, tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:

        def check(at: int, found: NDArray[np.float32]) -> None:
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                path = manifest["path"].iloc[rows[at + int(np.argmin(finite))]]
                raise HeadstartError(
                    f"the backbone gives features that are no finite numbers, first for {path}; take other weights, or "
                    "mend the network if it is your own"
                )
            advance(len(found))

        for split in SPLITS:
            rows = np.flatnonzero(manifest["split"] == split)  # prepare sees to it that no split is empty
            pictures = (pictures for _, pictures in batches(trunk.view, pixels, rows.tolist(), batch))
            stored = answers_of(engine, pictures, len(rows), Path(scratch) / split, check)
            with replacing(folder / f"{split}.safetensors") as part:
                save_file({"features": torch.from_numpy(stored), "labels": torch.from_numpy(labels[rows])}, part)
    write_json(folder / CARD, told)


def load_features(folder: Path, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The (N, D) features and (N,) labels of one split."""
    try:
        stored = load_file(folder / f"{split}.safetensors", device=str(device))
        return stored["features"], stored["labels"]
    except (OSError, KeyError, SafetensorError) as error:
        raise HeadstartError(f"{folder} has no features of {split} ({error}); run `dvc repro features`") from None
