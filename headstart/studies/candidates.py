"""The networks that rank compares, the pictures that it compares them on, and what the networks make of those. Weights and
features are kept in .headstart from run to run; what has to be measured on the machine is measured by ``ranking``.
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
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from headstart.base.arrays import Ints
from headstart.base.artifacts import BackboneFolder
from headstart.base.artifacts.card import Card
from headstart.base.errors import HeadstartError
from headstart.base.identity import code_of
from headstart.base.params import Params
from headstart.base.paths import file_name_of
from headstart.base.sections import network_and_view
from headstart.base.terminal import say
from headstart.data.manifest import groups_per_class, one_row_per_label
from headstart.data.splits import unit_hash
from headstart.engines.activations import folder_for, known_or_made
from headstart.engines.base import Forward
from headstart.models.backbones import architecture, load_trunk
from headstart.models.task import SINGLE_LABEL, Task, task_of
from headstart.models.trunk import Trunk
from headstart.models.weights import NoWeightsError, store_backbone
from headstart.training.features import FeatureExtractor
from headstart.training.linear_probe import FOLDS

NO_OWN_NETWORK = Path("none")  # candidates are published networks, never a file of the user's
NO_WEIGHTS = "no weights: neither torch's cache, a mirror, an installed package nor the publisher has given them"


@dataclass(frozen=True)
class Sample:
    """The pictures that candidates are judged on, of training and validation, never test: in an order of which every
    beginning is a stratified sample, so that a larger one holds the smaller.

    Attributes:
        rows: (N,) rows of the manifest.
        labels: (N, ...), encoded.
        groups: (N,) names; pictures of one group must not be on both sides of a fold.
        classes: names; those with fewer than five groups are left out, since not every fold could hold one.
        left_out: names of those.
        task: what the labels are.
    """

    rows: Ints
    labels: Ints
    groups: NDArray[Any]
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    task: Task = SINGLE_LABEL

    @classmethod
    def of(cls, manifest: pd.DataFrame, seed: int) -> Self:
        """
        Raises:
            HeadstartError: fewer than two classes have pictures enough; where there are several labels, none has.
        """
        task, shown = task_of(manifest), manifest[manifest["split"].isin(["train", "val"])]
        by_label = one_row_per_label(shown)
        counts, groups_of = by_label["label"].value_counts(), groups_per_class(shown)
        classes = tuple(sorted(groups_of.index[groups_of >= FOLDS]))
        needed, noun = (2, "two classes") if task is SINGLE_LABEL else (1, "a class")
        if len(classes) < needed:
            raise HeadstartError(
                f"a comparison needs {noun} with at least {FOLDS} training and validation pictures that are no "
                f"near-duplicates nor of one group; found {len(classes)} in data/prepare/manifest.parquet"
            )
        left_out = tuple(sorted(set(counts.index) - set(classes)))
        drawn = shown["path"].map(lambda path: unit_hash(str(path), seed))
        if task is not SINGLE_LABEL:  # a picture of a class that is left out still tells of the others
            drawn = drawn.sort_values(kind="stable")
            kept = by_label[by_label["label"].isin(classes)]
            in_order = kept.loc[drawn.index[drawn.index.isin(kept.index)].unique()]
            first = drawn.index.isin(in_order.groupby("label").head(FOLDS).index)
            rows = manifest.index.get_indexer(drawn.index[np.argsort(~first, kind="stable")])
            some = manifest.iloc[rows]
            return cls(rows, task.labels_of(some, classes), some["group"].to_numpy(), classes, left_out, task)
        shown = shown[shown["label"].isin(classes)]
        drawn = drawn[shown.index]
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
        return cls(rows, labels, groups, classes, left_out)

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
    """
    Attributes:
        name: as ``rank.candidates`` has it.
        folder: of its weights.
        missing: why there are no weights, in one sentence; None where there are.
    """

    name: str
    folder: BackboneFolder
    missing: str | None

    @cached_property
    def card(self) -> Card:
        """What the backbone stage would say of it."""
        return Card.read(self.folder.card)

    @property
    def megabytes(self) -> float:
        return self.folder.weights.stat().st_size / 1e6

    def trunk(self) -> Trunk:
        return load_trunk(self.folder, NO_OWN_NETWORK)[0]


def stored_candidates(params: Params, kept: Path) -> list[Candidate]:
    """The candidates of params.yaml, the weights of each in a folder below ``kept``. Views of one network find them once.

    Raises:
        HeadstartError: nobody knows a name, or a network takes no pictures of the size that is asked for.
    """
    networks = {name: network_and_view(name) for name in params.rank.candidates}
    for network, view in networks.values():
        architecture(network, size=view.size)
    folders = {name: BackboneFolder(kept, file_name_of(name)) for name in networks}
    found = []
    for name, (network, view) in networks.items():
        folder, missing = folders[name], None
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            same = (folders[other] for other, (its, _) in networks.items() if its == network)
            if not folder.exists() and (there := next((other for other in same if other.card.exists()), None)):
                part = folder.with_name(f".{folder.name}.part")
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(there, part)
                part.rename(folder)
            try:
                store_backbone(network, "default", params.weights_mirror, params.seed, NO_OWN_NETWORK, folder, view)
            except NoWeightsError as error:
                say(f"headstart: {error}", file=sys.stderr)
                missing = NO_WEIGHTS
            except HeadstartError as error:
                raise HeadstartError(f"rank.candidates: {name}: {error}") from None
        found.append(Candidate(name, folder, missing))
    return found


def file_of(name: str, extractor: FeatureExtractor, wanted: str, rows: Ints, kept: Path, threads: int) -> Path:
    """The file in ``kept`` for a candidate's features of ``rows``.

    Args:
        wanted: as ``engine_for`` takes it; with it and the network the engine is decided.
        threads: that they are made with.
    """
    shown_as = (code_of(__name__), extractor.trunk.view.as_dict(), rows.tolist())
    elsewhere = () if threads == torch.get_num_threads() else (threads,)
    return folder_for(kept, extractor.network, wanted, extractor.pixels, shown_as + elsewhere) / file_name_of(name)


def features_of(
    name: str, extractor: FeatureExtractor, prepare: Callable[[], Forward], rows: Ints, width: int, file: Path
) -> Tensor:
    """(N, width) features of ``rows``, kept in ``file``; the forward pass is prepared only where they are not there.

    Args:
        name: of the candidate.

    Raises:
        HeadstartError: they are no finite numbers.
    """
    prepared = cache(prepare)

    def run(pictures: Tensor) -> Tensor:
        return prepared()(pictures)

    found = np.array(known_or_made(file, (len(rows), width), run, lambda first: extractor.batches(rows[first:])))
    if not np.isfinite(found).all():
        raise HeadstartError(f"{name} gives features that are no finite numbers; leave it out of rank.candidates")
    return torch.from_numpy(found)
