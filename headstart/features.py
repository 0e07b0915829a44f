"""features: a frozen backbone over every picture, once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstart.backbones import Trunk
from headstart.checkout import replacing, write_json
from headstart.compute import inference_batch
from headstart.data.pixels import Pixels
from headstart.data.prepare import class_names
from headstart.data.splits import SPLITS
from headstart.engines import SAMPLE, engine_for
from headstart.errors import HeadstartError
from headstart.progress import progress
from headstart.views import batches

CARD = "features.json"


def extract(
    trunk: Trunk, pixels: Pixels, manifest: pd.DataFrame, device: torch.device, folder: Path, wanted: str = "auto"
) -> None:
    """Write one file per split: ``features`` (N, D) float32 and ``labels`` (N,) int64, rows in manifest order; and a card
    that says which engine made them.

    Rows go to disk as they come, so memory does not grow with the set.
    """
    trunk = trunk.eval().requires_grad_(False).to(device)
    batch = inference_batch(trunk, trunk.view, device)
    _, sample = next(batches(trunk.view, pixels, range(min(SAMPLE, len(manifest))), SAMPLE))
    engine, told = engine_for(trunk, len(manifest), sample, device, wanted)
    labels = manifest["label"].map({name: number for number, name in enumerate(class_names(manifest))}).to_numpy()
    folder.mkdir(parents=True, exist_ok=True)
    with progress("features", len(manifest)) as advance, tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        for split in SPLITS:
            rows = np.flatnonzero(manifest["split"] == split)
            stored: np.memmap[tuple[int, int], np.dtype[np.float32]] | None = None
            at = 0
            for chunk, pictures in batches(trunk.view, pixels, rows.tolist(), batch):
                found = engine(pictures).float().cpu().numpy()
                if not np.isfinite(found).all():
                    row = chunk[int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])]
                    raise HeadstartError(
                        f"the backbone gives features that are no finite numbers, first for {manifest['path'].iloc[row]}; "
                        "take other weights, or mend the network if it is your own"
                    )
                if stored is None:
                    shape = (len(rows), found.shape[1])
                    stored = np.memmap(Path(scratch) / split, np.float32, "w+", shape=shape)
                stored[at : at + len(chunk)] = found
                at += len(chunk)
                advance(len(chunk))
            assert stored is not None  # prepare sees to it that no split is empty
            with replacing(folder / f"{split}.safetensors") as part:
                save_file({"features": torch.from_numpy(stored), "labels": torch.from_numpy(labels[rows])}, part)
    write_json(folder / CARD, told)


def load_features(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The (N, D) features and (N,) labels of one split."""
    try:
        stored = load_file(folder / f"{split}.safetensors")
        return stored["features"], stored["labels"]
    except (OSError, KeyError, SafetensorError) as error:
        raise HeadstartError(f"{folder} has no features of {split} ({error}); run `dvc repro features`") from None
