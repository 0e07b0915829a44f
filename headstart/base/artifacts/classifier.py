"""classifier.json and familiarity.json: what a packaged model is used with."""

from __future__ import annotations

from typing import ClassVar, Literal

from headstart.base.artifacts.card import Preprocessing
from headstart.base.artifacts.json_file import JsonFile, Part, absent, default
from headstart.base.artifacts.metrics import Chance, Name


class Threshold(Part):
    """What answering only from a confidence on would have meant on the validation pictures.

    Attributes:
        answered: share of the pictures.
        error: share of those that were wrong.
        bound: upper end of its one-sided interval.
    """

    confidence: float
    answered: float
    error: float
    bound: float


class Thresholds(Part):
    """
    Attributes:
        pictures: of validation.
        sure: the probability with which all bounds hold at once.
        thresholds: most answers first.
    """

    pictures: int
    sure: float
    thresholds: list[Threshold]


class Passed(Part):
    """How many of how many pictures were familiar."""

    pictures: int
    familiar: int


class FamiliarityDetails(JsonFile):
    """familiarity.json: from when on a picture is unlike anything learned.

    Attributes:
        neighbour: the distance is that to the training picture which is so many-th nearest.
        threshold: the largest distance of a picture that is familiar: 1 - cosine.
        share: of pictures like those of validation that were to pass.
        val, test: how many did.
        images: the training pictures that distances are measured to, by their paths in the manifest, in the order of the
            features in familiarity.safetensors.
    """

    made_by: ClassVar[str] = "dvc repro package"

    neighbour: int
    threshold: float
    share: float
    val: Passed
    test: Passed
    images: list[str]


class ClassifierDetails(JsonFile):
    """What has a default is not in models that were packaged by older versions.

    Attributes:
        tuned: how the fine-tuned network sees pictures that stands beside ``backbone`` in an ensemble.
        networks: how many fine-tuned networks stand side by side: where the average of several trainings was kept, all.
        training: where there were several trainings, for each metric on the test pictures what another would change.
        head: its kind, as ``head.kind`` in params.yaml.
        task: whether a picture has one label, or any number of them.
        thresholds: where it may have several, for each class the probability from which on it is an answer.
        max_megapixels, short_side, formats, white_level: how pictures are decoded, as prepare's parameters.
        answering: what a least confidence means, on the validation pictures that are familiar.
        answering_by_class: the same where a picture may have several labels, for each class's decision whether it is there.
    """

    made_by: ClassVar[str] = "dvc repro package"

    backbone: str
    weights: str
    preprocessing: Preprocessing
    tuned: Preprocessing | None = absent()
    networks: int = default(1)
    training: dict[str, Chance] | None = absent()
    head: str = "linear"
    classes: list[str]
    temperature: float
    task: Literal["single-label", "multi-label"] = "single-label"
    thresholds: list[float] | None = absent()
    chosen: Name | None = None
    max_megapixels: float
    short_side: int | None = None
    formats: Literal["all", "common"] = "all"
    white_level: int = 65535
    answering: Thresholds | None = None
    answering_by_class: dict[str, Thresholds] | None = absent()
