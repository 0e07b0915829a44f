"""The packaged classifier: pictures in, labels and probabilities out. It travels in the model, with the modules that it
imports."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.base.arrays import Floats
from headstart.base.artifacts import ClassifierFolder, ModelFolder
from headstart.base.artifacts.classifier import ClassifierDetails
from headstart.base.errors import HeadstartError
from headstart.base.paths import members_of, network_of
from headstart.base.tensors import tensors_of
from headstart.data.decode import Array, Unusable, decode, quiet
from headstart.data.decoders import Rules
from headstart.inference import familiarity
from headstart.inference.provenance import check_known, check_whole
from headstart.models.backbones import stored_architecture
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import HEADS
from headstart.models.task import MultiLabel, Task, task_named
from headstart.models.trunk import beside

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """The predicted label of one picture, its probability, and the probability of every class.

    Of a multi-label classifier ``label`` is the names of all predicted classes joined by ";", or empty where there is none,
    and ``probability`` that of the whole answer.

    Attributes:
        nearest: the paths of the training pictures that a picture is most like, if it is unlike anything learned; empty if
            it is not, and None where the model cannot say.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    nearest: list[str] | None = None

    @property
    def unfamiliar(self) -> bool | None:
        return None if self.nearest is None else bool(self.nearest)


@dataclass(frozen=True)
class Output:
    """What the model makes of one picture.

    Attributes:
        probabilities: (classes,) calibrated.
        nearest: as ``Prediction`` has it.
    """

    probabilities: Floats
    nearest: list[str] | None


class Predictor:
    """A packaged classifier, with its preprocessing inside."""

    def __init__(self, folder: Path) -> None:
        """Load from the folder that holds classifier.json and classifier.safetensors; ``load_predictor`` looks at what it
        holds before.

        Raises:
            HeadstartError: the folder holds no model.
        """
        files = ClassifierFolder(folder)
        details = self.details = ClassifierDetails.read(files.details)
        networks = [(details.backbone, details.preprocessing)]
        if details.tuned is not None:
            networks += details.networks * [(network_of(members_of(details.backbone)[0]), details.tuned)]
        elif details.chosen == "finetune":
            networks *= details.networks
        trunks = [stored_architecture(name, details.weights, view, files.network).trunk() for name, view in networks]
        trunk = reduce(beside, trunks)
        with tensors_of(files.weights, details.made_by) as state:
            if not all(value.isfinite().all() for value in state.values() if value.is_floating_point()):
                raise ValueError("it holds numbers that are not finite")
            of_head = {key.removeprefix("head."): value for key, value in state.items() if key.startswith("head.")}
            module = HEADS[details.head].from_state(of_head)
            if module.last.out_features != len(details.classes):
                raise ValueError(
                    f"it is for {module.last.out_features} classes, {files.details.name} names {len(details.classes)}"
                )
            task = task_named(details.task, details.thresholds)
            self.model = Classifier(trunk, FittedHead(module, details.temperature, tuple(details.classes), task=task))
            self.model.load_state_dict(state)
        self.model.eval().requires_grad_(False)
        self.familiarity = familiarity.load(files, module.first.in_features)
        self.rules = Rules(details.short_side, details.max_megapixels, details.formats, details.white_level)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    def predict(self, pictures: Sequence[Any]) -> list[Prediction]:
        """Classify pictures, each a path, the bytes of a picture file (or their base64 text), or an array.

        Arrays are (height, width, 3) or (height, width), uint8, or floats in [0, 1].

        Raises:
            HeadstartError: a picture cannot be used; the message says which and why.
        """
        return [prediction for batch in self._decoded_batches(pictures) for prediction in self._predict_batch(batch)]

    def decode(self, source: bytes | Path) -> Array:
        """A picture file, or its bytes, as (height, width, 3) uint8, decoded in the same way as the training pictures.

        It is decoded in this process, which a hostile picture can slow down or end. ``Decoders`` is for those.

        Raises:
            Unusable: it is not a picture, damaged or too large.
        """
        return decode(source, **asdict(self.rules)).pixels

    def _decoded_batches(self, pictures: Sequence[Any]) -> Iterator[list[Array]]:
        for start in range(0, len(pictures), BATCH):
            with quiet():
                batch = [self._load(p, start + n) for n, p in enumerate(pictures[start : start + BATCH])]
            yield batch

    def _predict_batch(self, pictures: list[Array]) -> Iterator[Prediction]:
        with torch.inference_mode():
            outputs = self.outputs(self.model.trunk(self.model.trunk.view.batch(pictures)))
        for output in outputs:
            label, confidence = self.model.task.answer(output.probabilities, self.classes)
            probabilities = dict(zip(self.classes, output.probabilities.tolist(), strict=True))
            yield Prediction(label, confidence, probabilities, output.nearest)

    def outputs(self, features: Tensor) -> list[Output]:
        """(N, D) features of the trunk, on the CPU."""
        with torch.inference_mode():
            probabilities = self.model.probabilities(self.model.head(features).double()).numpy()
            nearest = [None] * len(features) if self.familiarity is None else self.familiarity.nearest(features)
        return [Output(row, paths) for row, paths in zip(probabilities, nearest, strict=True)]

    def _load(self, picture: Any, number: int) -> Array:
        name = str(picture) if isinstance(picture, str | Path) and len(str(picture)) < 300 else f"picture {number}"
        try:
            if isinstance(picture, str | Path):
                path = Path(picture)
                is_file = False
                with contextlib.suppress(OSError, ValueError):  # base64 text is too long for a file name
                    is_file = path.is_file()
                data = None if is_file else _from_base64(str(picture))
                if data is None and not is_file:
                    raise Unusable("no such file")
                return self.decode(path if data is None else data)
            if isinstance(picture, bytes | bytearray | memoryview):
                return self.decode(bytes(picture))
            return from_array(picture)
        except Unusable as reason:
            raise HeadstartError(f"{name}: {reason}") from None


def load_predictor(model: Path, trust: bool = False) -> Predictor:
    """The predictor of a packaged model, loaded without MLflow and without what training needs.

    Args:
        model: the folder that holds MLmodel.
        trust: run the network that is a file in the model, although the model was not made here.

    Raises:
        HeadstartError: the folder holds no model, is not as it was packaged, or holds code that is not trusted.
    """
    folder = ModelFolder(model)
    check_whole(folder)
    if not trust:
        check_known(folder)
    return Predictor(folder.classifier)


def names(task: Task, probabilities: Floats, classes: Sequence[str]) -> list[str] | None:
    """The predicted classes of a picture, from its (classes,) probabilities; None where it has one label only."""
    if not isinstance(task, MultiLabel):
        return None
    return [name for name, present in zip(classes, task.decide(probabilities), strict=True) if present]


def _from_base64(text: str) -> bytes | None:
    """The bytes that a JSON request carries as base64; None if the text is something else."""
    try:
        data = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) > 64 else None


def from_array(value: Any) -> Array:
    """What ``np.asarray`` makes a picture of, (height, width, 3) or (height, width), as (height, width, 3) uint8.

    Raises:
        Unusable: it has another shape, or values that are neither uint8 nor floats in [0, 1].
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise Unusable("an array must be (height, width, 3) or (height, width), found rows of different lengths") from None
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise Unusable(f"an array must be (height, width, 3) or (height, width), found {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise Unusable("a float array must lie in [0, 1]")
        array = np.round(array * 255)
    elif array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise Unusable(f"an array must be uint8 or floats in [0, 1], found {array.dtype}")
    return array.astype(np.uint8)
