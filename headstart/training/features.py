"""features: a frozen backbone over every picture, once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from headstart.base.kept import is_whole
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
from headstart.models.backbones import load_trunk
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import task_of
from headstart.models.trunk import Trunk, feature_width, members_of_trunk, plain

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

    Where several networks stand side by side, each has its own pass over the pictures, and its features are kept for the
    next time: one that is new among them is the only one that looks at the pictures. Memory does not grow with the set.

    Args:
        wanted: torch, openvino or auto, as for ``engine_for``.
        kept: what is found stands there until all of it is, so that a run that is killed can be gone on with; of several
            processes that make the same one works and the others wait.
        made_by: digests of all else that shapes the features: the code.
    """
    files = FeaturesFolder(folder)
    files.mkdir(parents=True, exist_ok=True)
    members = members_of_trunk(trunk)
    choices: list[EngineChoice] = []
    tables: list[Table] = []
    widths: list[int] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".")))
        advance = stack.enter_context(progress("features", len(members) * len(manifest)))
        for number, member in enumerate(members):
            extractor = FeatureExtractor(member, pixels, device)
            forward, choice = engine_of(extractor, manifest, wanted)
            seen = ("features", list(made_by), member.view.as_dict(), manifest["split"].tolist())
            home = folder_for(kept, extractor.network, choice.engine, pixels, seen) if kept else scratch / str(number)
            if kept and len(members) == 1:  # whose table is removed at the end
                stack.enter_context(FileLock(home.with_suffix(".lock")))
            home.mkdir(exist_ok=True)  # the process before has removed it
            known = all(is_whole(home / split) for split in SPLITS)
            choices.append(choice)
            tables.append(_table(extractor, forward, manifest, home, advance))
            width = tables[-1].features[SPLITS[0]].shape[1]
            own = feature_width(plain(member)) if number == 0 and member.view.stages else width
            widths += [own, width - own] if own < width else [width]
        labels = _encoded(manifest)
        for split in SPLITS:
            rows = np.flatnonzero(manifest["split"] == split)
            found = [table.features[split] for table in tables]
            features = found[0] if len(found) == 1 else _side_by_side(found, scratch / split)
            with replacing(files.split(split)) as part:
                save_file({"features": torch.from_numpy(features), "labels": torch.from_numpy(labels[rows])}, part)
        FeaturesDetails(
            engine="; ".join(dict.fromkeys(choice.engine for choice in choices)),
            why="; ".join(dict.fromkeys(choice.why for choice in choices)),
            widths=widths if len(widths) > 1 else None,
            **made_on(device),
        ).write(files.details)
        if kept and len(tables) == 1:
            if not known:  # kept for others that it stands side by side with
                shutil.rmtree(home, ignore_errors=True)
            home.with_suffix(".lock").unlink(missing_ok=True)


@dataclass(frozen=True)
class Table:
    """What one network makes of all pictures.

    Attributes:
        features: by split, (N, D) in a file of ``home``.
    """

    home: Path
    features: dict[str, NDArray[np.float32]]


def _table(extractor: FeatureExtractor, forward: Forward, manifest: pd.DataFrame, home: Path, advance: Advance) -> Table:
    """The features of all pictures, in ``home``: found there, or made and put there.

    Raises:
        HeadstartError: they are no finite numbers.
    """
    features = {}
    for split in SPLITS:
        rows = np.flatnonzero(manifest["split"] == split)  # prepare sees to it that no split is empty

        def check(at: int, found: NDArray[np.float32], rows: Ints = rows) -> None:
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                row = int(rows[at + int(np.argmin(finite))])
                raise HeadstartError(
                    "the backbone gives features that are no finite numbers, first for "
                    f"{manifest['path'].iloc[row]}; take other weights, or mend the network if it is your own"
                )

        def pictures(first: int, rows: Ints = rows) -> Iterator[Tensor]:
            return extractor.batches(rows[first:])

        features[split] = answers_of(forward, pictures, len(rows), home / split, advance, check)
    return Table(home, features)


def _side_by_side(parts: list[NDArray[np.float32]], file: Path) -> NDArray[np.float32]:
    """(N, D of all) in ``file``."""
    widths = [part.shape[1] for part in parts]
    whole = np.memmap(file, np.float32, "w+", shape=(len(parts[0]), sum(widths)))
    for part, end in zip(parts, np.cumsum(widths), strict=True):
        whole[:, end - part.shape[1] : end] = part
    return whole


def engine_of(extractor: FeatureExtractor, manifest: pd.DataFrame, wanted: str) -> tuple[Forward, EngineChoice]:
    """The forward pass that features are made with, as ``engine_for`` has it."""
    many = len(manifest) >= MANY
    seen = np.flatnonzero(manifest["split"] != "test")  # whose labels may take part in a choice
    rows = seen[np.unique(np.linspace(0, len(seen) - 1, PROBED if many else SAMPLE).astype(int))]
    known = torch.from_numpy(_encoded(manifest)[rows]) if many else None
    return engine_for(extractor.network, len(manifest), extractor.at_once(rows), extractor.device, wanted, known)


def _encoded(manifest: pd.DataFrame) -> Ints:
    """(N, ...) labels of all pictures, encoded."""
    return task_of(manifest).labels_of(manifest, class_names(manifest))


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

    def features(self, rows: Ints, advance: Advance) -> Tensor:
        """(N, D), by torch."""
        found = []
        for pictures in self.batches(rows):
            with torch.inference_mode():
                found.append(self.network(pictures.to(self.device)).float().cpu())
            advance(len(pictures))
        return torch.cat(found)


def run(params: Params, data: DataFolder) -> None:
    """The stage features: pass every picture through the frozen backbone, once."""
    device = set_up(params.threads)
    trunk, _ = load_trunk(data.backbone, data.fetch.network)
    pixels, manifest = Pixels(data.prepare), read_manifest(data.prepare)
    made_by = [code_of(__name__), sha256_of(data.fetch.network)]
    extract(trunk, pixels, manifest, device, data.features, params.features.engine, state_folder("answers"), made_by)
