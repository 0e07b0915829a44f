"""features: a frozen backbone over every picture, once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.base.arrays import Ints
from headstart.base.artifacts import DataFolder, FeaturesFolder
from headstart.base.artifacts.engine import EngineChoice, FeaturesDetails
from headstart.base.cluster import Cluster, connected
from headstart.base.device import made_on, set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, sha256_of
from headstart.base.identity import code_of
from headstart.base.kept import SEAL, is_whole, read_kept, write_kept
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.progress import Advance, progress
from headstart.base.terminal import say
from headstart.data.manifest import class_names, read_manifest
from headstart.data.packed import Pixels
from headstart.data.splits import SPLITS
from headstart.engines.activations import answers_of, folder_of, key_of
from headstart.engines.base import Forward
from headstart.engines.batching import inference_batch
from headstart.engines.remote import RemoteNetwork
from headstart.engines.select import PROBED, SAMPLE, engine_for
from headstart.models.backbones import load_trunk
from headstart.models.preprocessing import Normalise, batches
from headstart.models.task import task_of
from headstart.models.trunk import Trunk, feature_width, members_of_trunk, plain

CPU = torch.device("cpu")
GATHERED = 1024  # rows that are copied at a time
MANY = 8 * PROBED  # pictures; of fewer, showing so many to several engines would cost more than the fastest one saves


def extract(
    trunk: Trunk,
    pixels: Pixels,
    manifest: pd.DataFrame,
    where: torch.device | Cluster,
    folder: Path,
    wanted: str = "auto",
    kept: Path | None = None,
    made_by: Sequence[str] = (),
) -> None:
    """Write a file per split: ``features`` (N, D) float32 and ``labels`` (N,) int64, rows in manifest order; and a card
    that says which engine made them.

    Each network has its own pass over the pictures. What it makes of them is kept, picture by picture: only those that it
    has not seen yet, with these weights and by this engine, pass through it. Memory does not grow with the set.

    Args:
        where: the work is done: on a device of this machine, or on a cluster.
        wanted: torch, openvino or auto, as for ``engine_for``.
        kept: what is found stands there, also while it is looked for, so that a run that is killed can be gone on with; of
            several processes that make the same one works and the others wait.
        made_by: digests of all else that shapes the features: the code.
    """
    files = FeaturesFolder(folder)
    files.mkdir(parents=True, exist_ok=True)
    members, names = members_of_trunk(trunk), pixels.names()
    passes: list[Pass] = []
    tables: list[NDArray[np.float32]] = []
    widths: list[int] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".")))
        advance = stack.enter_context(progress("features", len(members) * len(manifest)))
        for number, member in enumerate(members):
            extractor = FeatureExtractor(member, pixels, CPU if isinstance(where, Cluster) else where)
            extractor.batch = min(extractor.batch, 1 << (len(manifest) - 1).bit_length())  # which is filled up
            passes.append(Pass.of(extractor, manifest, wanted, where))
            seen = ("features", *made_by, member.view.as_dict(), extractor.batch, *passes[-1].elsewhere)
            key = key_of(extractor.network, passes[-1].choice.engine, seen)
            store = Store(kept or scratch / str(number), key, names)
            tables.append(_table(passes[-1], extractor.batch, manifest, store, advance))
            width = tables[-1].shape[1]
            own = feature_width(plain(member)) if number == 0 and member.view.stages else width
            widths += [own, width - own] if own < width else [width]
        labels = _encoded(manifest)
        for split in SPLITS:
            rows = np.flatnonzero(manifest["split"] == split)  # prepare sees to it that no split is empty
            features = _side_by_side(tables, rows, scratch / split)
            with replacing(files.split(split)) as part:
                save_file({"features": torch.from_numpy(features), "labels": torch.from_numpy(labels[rows])}, part)
        FeaturesDetails(
            engine="; ".join(dict.fromkeys(each.choice.engine for each in passes)),
            why="; ".join(dict.fromkeys(each.choice.why for each in passes)),
            widths=widths if len(widths) > 1 else None,
            **min((each.made_on for each in passes), key=lambda made: made["threads"]),
        ).write(files.details)


class Store:
    """What one network makes of pictures, a folder for each set of them, and which pictures these are.

    Attributes:
        home: the folder of this set.
        names: of its pictures, as ``Pixels.names`` has them.
    """

    def __init__(self, kept: Path, key: str, names: list[str]) -> None:
        """
        Args:
            key: of the network and all else that decides what it makes of a picture, as ``key_of`` has it.
        """
        self.kept, self.key, self.names = kept, key, names
        self.home = folder_of(kept, f"{key}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:20]}")

    @property
    def features(self) -> Path:
        """(N, D) float32 of the pictures, in their order."""
        return self.home / "features"

    def known(self) -> dict[str, NDArray[np.float32]]:
        """By name, the features of pictures that other sets share with this one."""
        wanted, found = set(self.names), dict[str, NDArray[np.float32]]()
        for other in sorted(self.kept.glob(f"{self.key}-*")):
            names = read_kept(other / "pictures") if other != self.home and not wanted <= found.keys() else None
            if names and is_whole(other / "features"):
                width = ((other / "features").stat().st_size - SEAL) // (4 * len(names))
                features = np.memmap(other / "features", np.float32, "r", shape=(len(names), width))
                found |= {name: row for name, row in zip(names, features, strict=True) if name in wanted}
        return found


@dataclass(frozen=True)
class Pass:
    """How one network looks at the pictures.

    Attributes:
        answers: rows of the manifest → their features, batch by batch.
        made_on: what their last digits depend on besides the inputs, by name.
        elsewhere: of that, what differs from this machine.
    """

    answers: Callable[[Ints], Iterator[Tensor]]
    choice: EngineChoice
    made_on: dict[str, Any]
    elsewhere: tuple[Any, ...]

    @classmethod
    def of(cls, extractor: FeatureExtractor, manifest: pd.DataFrame, wanted: str, where: torch.device | Cluster) -> Self:
        here = made_on(extractor.device)
        if isinstance(where, Cluster):
            view, count = extractor.trunk.view, len(manifest)
            remote = RemoteNetwork(where, extractor.network, view, count, wanted, *probe_of(extractor, manifest))
            elsewhere = () if remote.made_on == here else (remote.made_on,)
            return cls(
                lambda rows: remote.answers(extractor.pixels, rows, extractor.batch),
                remote.choice,
                remote.made_on,
                elsewhere,
            )
        forward, choice = engine_of(extractor, manifest, wanted)
        return cls(lambda rows: map(forward, extractor.batches(rows)), choice, here, ())


def _table(looks: Pass, batch: int, manifest: pd.DataFrame, store: Store, advance: Advance) -> NDArray[np.float32]:
    """(N, D) features of all pictures, in a file of ``store``: found there, or made and put there.

    Every batch that is passed has the same number of pictures, the last one some twice: in larger or smaller ones the same
    picture could have other last digits. So it does not matter which others were new with it.

    Raises:
        HeadstartError: they are no finite numbers.
    """
    count, passed = len(manifest), 0

    def answers(first: int) -> Iterator[Tensor]:
        nonlocal passed
        write_kept(store.home / "pictures", store.names)
        known = store.known()
        new = np.array([row for row, name in enumerate(store.names) if name not in known], int)
        made: dict[int, NDArray[np.float32]] = {}
        file = store.home / f"new-{hashlib.sha256(new.tobytes()).hexdigest()[:20]}"
        if len(new):
            passed = len(new)
            found = answers_of(lambda at: _in_full_batches(looks, new[at:], batch), passed, file, advance, check(new))
            made = dict(zip(new.tolist(), found, strict=True))
        for start in range(first, count, GATHERED):
            rows = range(start, min(start + GATHERED, count))
            yield torch.from_numpy(np.stack([made[row] if row in made else known[store.names[row]] for row in rows]))
        file.unlink(missing_ok=True)

    def check(rows: Ints) -> Callable[[int, NDArray[np.float32]], None]:
        def of_batch(at: int, found: NDArray[np.float32]) -> None:
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                row = int(rows[at + int(np.argmin(finite))])
                raise HeadstartError(
                    "the backbone gives features that are no finite numbers, first for "
                    f"{manifest['path'].iloc[row]}; take other weights, or mend the network if it is your own"
                )

        return of_batch

    features = answers_of(answers, count, store.features, lambda count=1: None)
    advance(count - passed)
    if passed < count:
        say(f"features: {count - passed} of {count} pictures have passed through the network before")
    return features


def _in_full_batches(looks: Pass, rows: Ints, batch: int) -> Iterator[Tensor]:
    left = len(rows)
    for answer in looks.answers(np.resize(rows, -(-left // batch) * batch)):
        yield answer[:left]
        left -= len(answer)


def _side_by_side(tables: list[NDArray[np.float32]], rows: Ints, file: Path) -> NDArray[np.float32]:
    """(N, D of all) of ``rows``, in ``file``."""
    ends = np.cumsum([table.shape[1] for table in tables])
    whole = np.memmap(file, np.float32, "w+", shape=(len(rows), int(ends[-1])))
    for table, end in zip(tables, ends, strict=True):
        for start in range(0, len(rows), GATHERED):
            part = rows[start : start + GATHERED]
            whole[start : start + len(part), end - table.shape[1] : end] = table[part]
    return whole


def engine_of(extractor: FeatureExtractor, manifest: pd.DataFrame, wanted: str) -> tuple[Forward, EngineChoice]:
    """The forward pass that features are made with, as ``engine_for`` has it."""
    sample, labels = probe_of(extractor, manifest)
    return engine_for(extractor.network, len(manifest), sample, extractor.device, wanted, labels)


def probe_of(extractor: FeatureExtractor, manifest: pd.DataFrame) -> tuple[Tensor, Tensor | None]:
    """The pictures on which engines are compared, and their labels where there are enough for bfloat16 to be tried."""
    many = len(manifest) >= MANY
    seen = np.flatnonzero(manifest["split"] != "test")  # whose labels may take part in a choice
    rows = seen[np.unique(np.linspace(0, len(seen) - 1, PROBED if many else SAMPLE).astype(int))]
    known = torch.from_numpy(_encoded(manifest)[rows]) if many else None
    return extractor.at_once(rows), known


def _encoded(manifest: pd.DataFrame) -> Ints:
    """(N, ...) labels of all pictures, encoded."""
    return task_of(manifest).labels_of(manifest, class_names(manifest))


class FeatureExtractor:
    """A frozen trunk, and the pictures in the form that it expects.

    Attributes:
        network: (N, 3, size, size) uint8 pictures → (N, D) features.
        pixels: ``Pixels``, or ``SharedPixels``: by row.
    """

    def __init__(self, trunk: Trunk, pixels: Any, device: torch.device) -> None:
        self.trunk, self.pixels, self.device = trunk.eval().requires_grad_(False).to(device), pixels, device
        self.network = nn.Sequential(Normalise(trunk.view), trunk).to(device).eval()
        self.batch = inference_batch(trunk, trunk.view, device)

    def batches(self, rows: Ints) -> Iterator[Tensor]:
        """(N, 3, size, size) uint8 pictures, batch by batch."""
        return (pictures for _, pictures in batches(self.trunk.view, self.pixels, rows.tolist(), self.batch, self.device))

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
    with connected(params.cluster, __name__) as cluster:
        kept = state_folder("answers")
        extract(trunk, pixels, manifest, cluster or device, data.features, params.features.engine, kept, made_by)
