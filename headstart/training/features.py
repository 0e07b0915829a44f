"""features: a frozen backbone over every picture, once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.base.arrays import Ints
from headstart.base.artifacts import DataFolder, FeaturesFolder
from headstart.base.artifacts.engine import EngineChoice, FeaturesDetails
from headstart.base.device import made_on, set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, sha256_of
from headstart.base.identity import code_of
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.progress import Advance, progress
from headstart.data.manifest import class_names, read_manifest
from headstart.data.packed import Pixels
from headstart.data.splits import SPLITS
from headstart.engines.activations import answers_of, folder_for
from headstart.engines.base import Forward
from headstart.engines.batching import inference_batch
from headstart.engines.select import PROBED, SAMPLE, engine_for
from headstart.models.backbones import Trunk, load_trunk
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import SINGLE_LABEL

MANY = 8 * PROBED  # pictures; of fewer, showing so many to several engines would cost more than the fastest one saves


def extract(
    trunk: Trunk,
    pixels: Pixels,
    manifest: pd.DataFrame,
    device: torch.device,
    folder: Path,
    wanted: str = "auto",
    kept: Path | None = None,
    made_by: Sequence[str] = (),
) -> None:
    """Write one file per split: ``features`` (N, D) float32 and ``labels`` (N,) int64, rows in manifest order; and a card
    that says which engine made them.

    Memory does not grow with the set.

    Args:
        wanted: torch, openvino or auto, as for ``engine_for``.
        kept: what is found stands there until all of it is, so that a run that is killed can be gone on with; of several
            processes that make the same one works and the others wait.
        made_by: digests of all else that shapes the features: the code.
    """
    extractor = FeatureExtractor(trunk, pixels, device)
    labels = _numbers(manifest)
    forward, choice = engine_of(extractor, manifest, wanted)
    files = FeaturesFolder(folder)
    files.mkdir(parents=True, exist_ok=True)
    seen = ("features", list(made_by), trunk.view.as_dict(), manifest["split"].tolist())
    home = folder_for(kept, extractor.network, choice.engine, pixels, seen) if kept else None

    def complaint(row: int) -> str:
        return (
            f"the backbone gives features that are no finite numbers, first for {manifest['path'].iloc[row]}; take other "
            "weights, or mend the network if it is your own"
        )

    with FileLock(home.with_suffix(".lock")) if home else nullcontext(), progress("features", len(manifest)) as advance:
        if home:
            home.mkdir(exist_ok=True)  # the process before has removed it
        for split in SPLITS:
            rows = np.flatnonzero(manifest["split"] == split)  # prepare sees to it that no split is empty
            write_features(extractor, forward, rows, labels[rows], files.split(split), advance, complaint, home)
        FeaturesDetails(**choice.model_dump(), **made_on(device)).write(files.details)
        if home:
            shutil.rmtree(home, ignore_errors=True)
            home.with_suffix(".lock").unlink(missing_ok=True)


def engine_of(extractor: FeatureExtractor, manifest: pd.DataFrame, wanted: str) -> tuple[Forward, EngineChoice]:
    """The forward pass that features are made with, as ``engine_for`` has it."""
    many = len(manifest) >= MANY
    seen = np.flatnonzero(manifest["split"] != "test")  # whose labels may take part in a choice
    rows = seen[np.unique(np.linspace(0, len(seen) - 1, PROBED if many else SAMPLE).astype(int))]
    known = torch.from_numpy(_numbers(manifest)[rows]) if many else None
    return engine_for(extractor.network, len(manifest), extractor.at_once(rows), extractor.device, wanted, known)


def _numbers(manifest: pd.DataFrame) -> Ints:
    """(N,) numbers of the pictures' classes."""
    return SINGLE_LABEL.encode(manifest["label"], class_names(manifest))


class FeatureExtractor:
    """A frozen trunk, and the pictures in the form that it expects.

    Attributes:
        network: (N, 3, size, size) uint8 pictures → (N, D) features.
    """

    def __init__(self, trunk: Trunk, pixels: Pixels, device: torch.device) -> None:
        self.trunk, self.pixels, self.device = trunk.eval().requires_grad_(False).to(device), pixels, device
        self.network = nn.Sequential(Normalise(trunk.view), trunk).to(device).eval()
        self.batch = inference_batch(trunk, trunk.view, device)

    def batches(self, rows: Ints) -> Iterator[Tensor]:
        """(N, 3, size, size) uint8 pictures, batch by batch."""
        return (pictures for _, pictures in batches(self.trunk.view, self.pixels, rows.tolist(), self.batch))

    def at_once(self, rows: Ints) -> Tensor:
        return torch.cat(list(self.batches(rows)))


def write_features(
    extractor: FeatureExtractor,
    forward: Forward,
    rows: Ints,
    labels: Ints,
    file: Path,
    advance: Advance,
    complaint: Callable[[int], str],
    kept: Path | None = None,
) -> None:
    """``features`` (N, D) float32 of ``rows`` and ``labels`` (N,) int64 into ``file``. Memory does not grow with N.

    Args:
        complaint: what to say where the features of a row are no finite numbers.
        kept: a folder from which one that was killed goes on.

    Raises:
        HeadstartError: they are not.
    """

    def check(at: int, found: NDArray[np.float32]) -> None:
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            raise HeadstartError(complaint(int(rows[at + int(np.argmin(finite))])))

    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as scratch:
        found = (kept or Path(scratch)) / file.stem
        stored = answers_of(forward, lambda first: extractor.batches(rows[first:]), len(rows), found, advance, check)
        with replacing(file) as part:
            save_file({"features": torch.from_numpy(stored), "labels": torch.from_numpy(labels)}, part)


def run(params: Params, data: DataFolder) -> None:
    """The stage features: pass every picture through the frozen backbone, once."""
    device = set_up(params.threads)
    trunk, _ = load_trunk(data.backbone, data.fetch.network)
    pixels, manifest = Pixels(data.prepare), read_manifest(data.prepare)
    made_by = [code_of(__name__), sha256_of(data.fetch.network)]
    extract(trunk, pixels, manifest, device, data.features, params.features.engine, state_folder("answers"), made_by)
