"""Candidates of rank on a cluster, each on a node: what they make of the pictures, and how fast they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headstart.base.arrays import Ints
from headstart.base.cluster import Cluster
from headstart.base.device import set_up
from headstart.base.progress import progress
from headstart.engines.remote import SharedPixels
from headstart.engines.select import engine_for
from headstart.models.trunk import Trunk, plain
from headstart.studies.speed import MANY, images_per_s, training_seconds
from headstart.training.features import FeatureExtractor
from headstart.training.recipe import Recipe


@dataclass(frozen=True)
class Question:
    """What is to be found out about a candidate.

    Attributes:
        rows: of which its features are wanted; there may be none.
        width: of the features.
        images_per_s, step: whether its speed is wanted, and the time of a training step.
    """

    name: str
    trunk: Trunk
    rows: Ints
    width: int
    images_per_s: bool
    step: bool

    @property
    def wants_anything(self) -> bool:
        return bool(len(self.rows) or self.images_per_s or self.step)

    @property
    def size(self) -> int:
        """Bytes of it and of its answer."""
        weights: int = sum(tensor.nbytes for tensor in self.trunk.state_dict().values())
        return weights + 4 * self.width * len(self.rows)


@dataclass(frozen=True)
class Answer:
    """What was asked for: (N, D) features, pictures per second, seconds per picture of a training step."""

    name: str
    features: Tensor | None
    images_per_s: float | None
    step: float | None


@dataclass(frozen=True)
class Examiner:
    """Answers questions on a node, of which it takes ``threads`` cores.

    Attributes:
        first: the rows of the pictures that engines are compared on.
    """

    pixels: SharedPixels
    first: Ints
    wanted: str
    classes: Sequence[str]
    recipe: Recipe
    threads: int

    @cached_property
    def device(self) -> torch.device:
        return set_up(self.threads)

    def __call__(self, asked: Question) -> Answer:
        extractor = FeatureExtractor(asked.trunk, self.pixels, self.device)
        rate = images_per_s(extractor, self.first, self.wanted) if asked.images_per_s else None
        features = None
        if len(asked.rows):
            few = extractor.at_once(self.first)
            forward, _ = engine_for(extractor.network, MANY, few, self.device, self.wanted)
            features = torch.cat([forward(pictures).float().cpu() for pictures in extractor.batches(asked.rows)])
        step = training_seconds(plain(asked.trunk), self.classes, self.recipe, self.device) if asked.step else None
        return Answer(asked.name, features, rate, step)


def ask(cluster: Cluster, examiner: Examiner, questions: Sequence[Question]) -> Iterator[Answer]:
    """The answers, each when it is there; as many candidates are looked at as there are nodes."""
    gpus = 1.0 if cluster.gpus else 0.0
    items = ((question, question.size) for question in questions)
    with progress("rank", len(questions), "candidates") as advance:
        for answer in cluster.map(examiner, items, "a candidate", cpus=examiner.threads, gpus=gpus, ordered=False):
            yield answer
            advance()
