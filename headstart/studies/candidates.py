"""The networks that rank compares: for each a folder with its weights, its card and what it makes of a sample.

What is in the folder depends on the pictures, the network and the seed alone; whatever has to be measured on the machine is
measured later, by ``ranking``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.base.arrays import Ints
from headstart.base.artifacts import CandidateFolder, DataFolder
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.rank import Ranking
from headstart.base.device import made_on, set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import write_text
from headstart.base.identity import code_of
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.base.tensors import tensors_of
from headstart.base.terminal import say
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.data.splits import unit_hash
from headstart.engines.activations import folder_for, known_or_made
from headstart.engines.base import Forward
from headstart.engines.select import SAMPLE, engine_for
from headstart.models.backbones import Trunk, architecture, load_trunk
from headstart.models.weights import store_backbone
from headstart.training.features import FeatureExtractor, write_features
from headstart.training.linear_probe import FOLDS

NO_OWN_NETWORK = Path("none")  # candidates are published networks, never a file of the user's
NO_WEIGHTS = "no weights: neither torch's cache, a mirror, an installed package nor the publisher has given them"


@dataclass(frozen=True)
class Sample:
    """The pictures that candidates are judged on, of training and validation, never test: in an order of which every
    beginning is a stratified sample, so that a larger one holds the smaller.

    Attributes:
        rows: (N,) rows of the manifest.
        labels: (N,) numbers of the classes.
        groups: (N,) names; pictures of one group must not be on both sides of a fold.
        classes: names; those with fewer than five groups are left out, since not every fold could hold one.
        left_out: names of those.
    """

    rows: Ints
    labels: Ints
    groups: NDArray[Any]
    classes: tuple[str, ...]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, manifest: pd.DataFrame, seed: int) -> Self:
        """
        Raises:
            HeadstartError: fewer than two classes have pictures enough.
        """
        shown = manifest[manifest["split"].isin(["train", "val"])]
        counts, groups_of = shown["label"].value_counts(), shown.groupby("label")["group"].nunique()
        classes = tuple(sorted(groups_of.index[groups_of >= FOLDS]))
        if len(classes) < 2:
            raise HeadstartError(
                f"a comparison needs two classes with at least {FOLDS} training and validation pictures that are no "
                f"near-duplicates nor of one group; found {len(classes)} in data/prepare/manifest.parquet"
            )
        shown = shown[shown["label"].isin(classes)]
        drawn = shown["path"].map(lambda path: unit_hash(str(path), seed))
        number = drawn.groupby(shown["label"]).rank(method="first").sub(1)
        # Each class is spread evenly over the whole order, after five of each that every sample needs.
        order = pd.DataFrame(
            {
                "later": number >= FOLDS,
                "at": (number + 0.5) / shown["label"].map(counts),
                "label": shown["label"],
                "row": np.flatnonzero(manifest.index.isin(shown.index)),
            }
        ).sort_values(["later", "at", "label"], kind="stable")
        rows = order["row"].to_numpy(np.int64, copy=True)  # pandas' own arrays are read-only, which torch warns of
        labels = order["label"].map({name: n for n, name in enumerate(classes)}).to_numpy(np.int64, copy=True)
        groups = manifest["group"].to_numpy()[rows]
        return cls(rows, labels, groups, classes, tuple(sorted(set(counts.index) - set(classes))))

    def sizes(self, first: int, most: int) -> list[int]:
        """How many pictures to look at in each round: ``first``, then twice as many, up to ``most`` or all; each with at
        least five of every class."""
        least, most = FOLDS * len(self.classes), min(max(most, FOLDS * len(self.classes)), len(self.rows))
        found = [min(max(first, least), most)]
        while found[-1] < most:
            found.append(min(2 * found[-1], most))
        return found


@dataclass(frozen=True)
class Candidate:
    """One candidate's folder.

    Attributes:
        missing: why there are no weights, in one sentence; None where there are.
    """

    name: str
    folder: CandidateFolder
    missing: str | None

    @classmethod
    def of(cls, name: str, folder: CandidateFolder) -> Self:
        told = folder.missing
        return cls(name, folder, told.read_text(encoding="utf-8").strip() if told.exists() else None)

    @cached_property
    def card(self) -> Card:
        """What the backbone stage would say of it."""
        try:
            return Card.read(self.folder.card)
        except HeadstartError as error:
            raise HeadstartError(f"{self.folder} holds no candidate ({error}); run `{Ranking.made_by}`") from None

    @property
    def megabytes(self) -> float:
        return self.folder.weights.stat().st_size / 1e6

    def trunk(self) -> Trunk:
        return load_trunk(self.folder, NO_OWN_NETWORK)[0]

    def first_features(self) -> Tensor:
        """(N, D) of the first N pictures of the sample."""
        with tensors_of(self.folder.features, Ranking.made_by) as tensors:
            return tensors["features"]


def store_candidate(
    name: str,
    pixels: Pixels,
    sample: Sample,
    count: int,
    params: Params,
    device: torch.device,
    folder: CandidateFolder,
) -> Candidate:
    """Write weights, card and features (N, D) float32 of the first ``count`` pictures of the sample into ``folder``; where
    the weights are nowhere to be found, one sentence that says so.

    Raises:
        HeadstartError: nobody knows the name, or the network gives no finite numbers.
    """
    architecture(name)
    for old in (folder.missing, folder.features, folder.engine):
        old.unlink(missing_ok=True)
    for left in folder.glob(".*/"):  # of a stage that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        store_backbone(name, "default", params.weights_mirror, params.seed, NO_OWN_NETWORK, folder)
    except HeadstartError as error:
        say(f"headstart: {error}", file=sys.stderr)
        for old in (folder.card, folder.weights):
            old.unlink(missing_ok=True)
        write_text(folder.missing, f"{NO_WEIGHTS}\n")
        return Candidate.of(name, folder)
    rows = sample.rows[:count]
    extractor = FeatureExtractor(load_trunk(folder, NO_OWN_NETWORK)[0], pixels, device)
    forward, choice = engine_for(extractor.network, count, extractor.at_once(rows[:SAMPLE]), device, params.features.engine)
    with progress(name, count) as advance:
        write_features(
            extractor, forward, rows, sample.labels[:count], folder.features, advance,
            lambda row: f"{name} gives features that are no finite numbers; leave it out of rank.candidates",
        )  # fmt: skip
    FeaturesDetails(**choice.model_dump(), **made_on(device)).write(folder.engine)
    return Candidate.of(name, folder)


def more_features(
    extractor: FeatureExtractor, wanted: str, prepare: Callable[[], Forward], rows: Ints, width: int, kept: Path
) -> Tensor:
    """(N, width) features of ``rows``, kept in ``kept``; the forward pass is prepared only where they are not there.

    Args:
        wanted: as ``engine_for`` takes it; with it and the network the engine is decided.
    """
    shown_as = (code_of(__name__), extractor.trunk.view.as_dict(), rows.tolist())
    folder = folder_for(kept, extractor.network, wanted, extractor.pixels, shown_as)
    prepared = cache(prepare)

    def run(pictures: Tensor) -> Tensor:
        return prepared()(pictures)

    return torch.from_numpy(
        np.array(known_or_made(folder / "features", (len(rows), width), run, lambda first: extractor.batches(rows[first:])))
    )


def run(params: Params, data: DataFolder, name: str) -> None:
    """The stage candidate: find its weights and pass a sample of the pictures through it."""
    device = set_up(params.threads)
    sample = Sample.of(read_manifest(data.prepare), params.seed)
    count = sample.sizes(params.rank.first, params.rank.first)[0]
    store_candidate(name, Pixels(data.prepare), sample, count, params, device, data.candidates.of(name))
