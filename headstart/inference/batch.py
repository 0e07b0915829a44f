"""Fast prediction for many pictures: all cores decode the next batch while the engine runs the network on this one."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from headstart.base.arrays import Floats
from headstart.base.artifacts import ModelFolder
from headstart.base.artifacts.classifier import ClassifierDetails, Threshold
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.progress import Advance, progress
from headstart.base.terminal import say
from headstart.data.decode import Array, Unusable, quiet
from headstart.data.decoders import Decoders, Rules, rereadable
from headstart.data.in_place import Remote
from headstart.data.picture import LARGEST, READS_AT_ONCE
from headstart.engines.batching import inference_batch
from headstart.engines.openvino import PICTURES_PER_REQUEST
from headstart.engines.select import SAMPLE, engine_for
from headstart.inference.prediction_files import Answer, is_special, opened
from headstart.inference.predictor import Output, load_predictor, names
from headstart.inference.selective import confidence_of_decisions, threshold_for, thresholds_by_class
from headstart.models.preprocessing import Normalise, View
from headstart.models.task import LABEL_SEPARATOR, MultiLabel, Task

UNLIMITED = 10**9  # pictures, for a server
NO_PROGRESS_UP_TO = 64  # pictures take too short a time for a progress bar
TORCH_UP_TO = PICTURES_PER_REQUEST // 2  # pictures; torch is faster for so few, since OpenVINO pads them to a whole request


@dataclass(frozen=True, eq=False)
class InMemory:
    """A picture that is no file; as text it is its own name.

    Attributes:
        picture: the bytes of a file, or pixels, (height, width, 3) uint8.
    """

    name: str
    picture: bytes | Array

    def __str__(self) -> str:
        return self.name


PictureFile = TypeVar("PictureFile", bound=Path | Remote | InMemory)


class BatchPredictor:
    """A packaged classifier, run by the engine that suits it and the number of pictures. Safe to use from several threads.

    Attributes:
        predictor: the classifier on the CPU.
        lock: held while the network runs. Hold it also to put hooks into ``predictor.model``, as Grad-CAM does: it may be
            the same network.
        batch: the number of pictures to pass at once.
        engine: which engine runs.
    """

    def __init__(
        self,
        model: Path,
        pictures: int = UNLIMITED,
        engine: str = "auto",
        threads: int | None = None,
        trust: bool = False,
    ) -> None:
        """Load the model and pick the engine.

        Args:
            model: the folder that holds MLmodel.
            pictures: how many there will be; compiling pays off for many.
            engine: torch, openvino or auto, as for ``engine_for``.
            threads: None for all cores.
            trust: as for ``load_predictor``.

        Raises:
            HeadstartError: as ``load_predictor``.
        """
        self.predictor = load_predictor(model, trust)
        self.lock = threading.Lock()
        device = set_up(threads)
        network = nn.Sequential(Normalise(self.view), self.predictor.model.trunk).eval()
        if device.type != "cpu":
            network = copy.deepcopy(network).to(device)
        self.batch = inference_batch(network, self.view, device)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for predictions only
            sample = self.view.stacked(_sample_pictures(max(self.view.shape)))
            self._forward_many, self.engine = engine_for(network, pictures, sample, device, engine)
            self._forward_few, _ = engine_for(network, pictures, sample, device, "torch")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    @property
    def task(self) -> Task:
        task: Task = self.predictor.model.task
        return task

    @property
    def view(self) -> View:
        view: View = self.predictor.model.trunk.view
        return view

    @property
    def rules(self) -> Rules:
        return self.predictor.rules

    def decode(self, source: bytes | Path) -> Array:
        """A picture file, or its bytes, as (height, width, 3) uint8.

        Raises:
            Unusable: it is not a picture, damaged or too large.
        """
        return self.predictor.decode(source)

    def probabilities(self, pictures: Sequence[Array]) -> Floats:
        """Pictures of any size, each (height, width, 3) uint8 → (N, classes) calibrated probabilities."""
        if not pictures:
            return np.zeros((0, len(self.classes)))
        return np.stack([output.probabilities for output in self.outputs(pictures)])

    def outputs(self, pictures: Sequence[Array]) -> list[Output]:
        """Probabilities, and whether the picture is unlike anything learned, for pictures of any size, each
        (height, width, 3) uint8."""
        return self._forward(self.view.stacked(pictures))

    def predict_views(self, pictures: Sequence[Array]) -> list[Output]:
        """The same for pictures that have passed through ``view``, each (size, size, 3) uint8."""
        return self._forward(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))

    def predict_files(
        self, files: Iterable[PictureFile], readers: int | None = None
    ) -> Generator[tuple[PictureFile, Output | Unusable], None, None]:
        """Each file with what the model makes of it, or with the reason why it cannot be used, in the order given.

        One process per core decodes the next batch while the network runs on this one. Memory does not grow with the number
        of files.

        Args:
            readers: how many threads read files, by default one per core; more where files are slow to come.

        Raises:
            HeadstartError: a file at an address cannot be read.
        """
        remaining, pending = iter(files), deque[tuple[PictureFile, Future[Array | Unusable]]]()
        cores = torch.get_num_threads()
        pool, decoders = ThreadPoolExecutor(readers or cores), Decoders(cores, self.rules)

        def load_view(file: PictureFile) -> Array | Unusable:
            try:
                source = _content(file)
                pixels = source if isinstance(source, np.ndarray) else decoders.decode(source, decoders.size(source))
                return self.view(pixels)
            except Unusable as reason:
                return reason

        def decode_ahead() -> None:
            for path in islice(remaining, 2 * self.batch - len(pending)):
                pending.append((path, pool.submit(load_view, path)))

        try:
            decode_ahead()
            while pending:
                batch = [pending.popleft() for _ in range(min(self.batch, len(pending)))]
                views = [(path, future.result()) for path, future in batch]
                decode_ahead()
                usable = [view for _, view in views if not isinstance(view, Unusable)]
                rows = iter(self.predict_views(usable) if usable else ())
                for path, view in views:
                    yield path, view if isinstance(view, Unusable) else next(rows)
        finally:
            pool.shutdown(cancel_futures=True)
            decoders.close()

    def _forward(self, pictures: Tensor) -> list[Output]:
        """(N, 3, size, size) uint8. The engine runs the trunk; head and distances cost next to nothing."""
        with self.lock:
            features = (self._forward_few if len(pictures) <= TORCH_UP_TO else self._forward_many)(pictures)
        return self.predictor.outputs(features.float().cpu())


def _content(file: Path | Remote | InMemory) -> Path | bytes | Array:
    """
    Raises:
        Unusable: it has too many bytes to be read whole.
        HeadstartError: it is at an address and cannot be read.
    """
    if isinstance(file, InMemory):
        return file.picture
    if isinstance(file, Path):
        return rereadable(file)
    if file.file.size > LARGEST:
        raise Unusable(f"{file.file.size >> 20} MB, and at most {LARGEST >> 20} are read of a picture elsewhere")
    return file.content()


def readers_for(files: Sequence[Path | Remote | InMemory]) -> int | None:
    """How many threads read files: many where some are at an address, which mostly wait."""
    return READS_AT_ONCE if any(isinstance(file, Remote) for file in files) else None


def _sample_pictures(size: int) -> list[Array]:
    """Pictures that engines are compared on, the same for every model, and smooth like photographs."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (SAMPLE, 3, 8, 8), np.uint8))
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic", antialias=True)
    return list(smooth.permute(0, 2, 3, 1).contiguous().numpy())


def predict(
    files: Sequence[Path | Remote],
    model: Path,
    output_format: str,
    output: Path | None,
    max_error: float | None,
    trust: bool = False,
) -> None:
    """Write the predictions for ``files``, in their order, to ``output`` or standard output. Pictures that cannot be used
    are named on the error stream.

    Args:
        model: the folder that holds MLmodel.
        output_format: one of ``prediction_files.FORMATS``; parquet needs an ``output``.
        output: it appears only when it is complete.
        max_error: leave out labels of low confidence, so that at most this share of the labels is wrong; of several labels,
            of the decisions about each class.
        trust: as for ``load_predictor``.

    Raises:
        HeadstartError: there is no model, ``max_error`` cannot be promised, ``output`` cannot be written, or, at the end,
            some pictures could not be used.
    """
    if output_format == "parquet" and output is None:
        raise HeadstartError("--format parquet needs --output FILE")
    if output_format == "parquet" and output is not None and is_special(output):
        raise HeadstartError(f"--output {output} is not a regular file, which --format parquet needs")
    if output is not None and output.is_dir():
        raise HeadstartError(f"--output {output} is a folder; name a file")
    predictor = BatchPredictor(model, len(files), trust=trust)
    selection = selection_for(model, predictor, max_error)
    failed = 0
    try:
        with (
            opened(output_format, output, predictor.classes, selection.columns) as write,
            progress_of(len(files), output) as advance,
            contextlib.closing(predictor.predict_files(files, readers_for(files))) as predictions,
            quiet(),
        ):
            for path, result in predictions:
                if isinstance(result, Unusable):
                    failed += 1
                    say(f"headstart: {path}: {result}", file=sys.stderr)
                else:
                    write(path, selection.answer(result))
                advance()
    except OSError as error:  # from writing: a picture that cannot be read is Unusable
        if isinstance(error, BrokenPipeError):
            raise
        raise HeadstartError(f"{output or 'standard output'} cannot be written: {error.strerror or error}") from None
    if selection.rows is not None:
        say(f"headstart: {selection.sentence(len(files) - failed)}", file=sys.stderr)
    if failed:
        raise HeadstartError(f"{failed} of {len(files)} pictures could not be used")


@dataclass
class Selection:
    """Which answers are confident enough to be given: of several labels the decisions about each class, one by one.

    Attributes:
        rows: of the model's tables, one for each class, or one for all where pictures have one label each; None where
            everything is answered. Then nothing is answered about unfamiliar pictures, of which the tables say nothing.
        knows_unfamiliar: whether the model says which pictures are unlike anything learned.
        answered: how many answers, or decisions, were given.
        unfamiliar: how many pictures were unlike anything learned.
    """

    task: Task
    classes: tuple[str, ...]
    rows: list[Threshold] | None = None
    knows_unfamiliar: bool = False
    answered: int = 0
    unfamiliar: int = 0

    @property
    def has_unsure(self) -> bool:
        return self.rows is not None and isinstance(self.task, MultiLabel)

    @property
    def columns(self) -> list[str]:
        """The names of ``Answer.columns``."""
        return ["unsure"] * self.has_unsure + ["unfamiliar", "nearest"] * self.knows_unfamiliar

    def answer(self, output: Output) -> Answer:
        """From what the model makes of a picture."""
        probabilities, nearest = output.probabilities, output.nearest
        label, confidence = self.task.answer(probabilities, self.classes)
        self.unfamiliar += bool(nearest)
        if not isinstance(self.task, MultiLabel):
            given = self.rows is None or (confidence >= self.rows[0].confidence and not nearest)
            self.answered += given
            return Answer(label if given else None, label, None, None, confidence, probabilities, nearest)
        present, unsure = names(self.task, probabilities, self.classes) or [], None
        if self.rows is not None:
            least = [row.confidence for row in self.rows]
            sure = (confidence_of_decisions(self.task, probabilities) >= least) & (not nearest)
            self.answered += int(sure.sum())
            unsure = [name for name, is_sure in zip(self.classes, sure, strict=True) if not is_sure]
            present = [name for name in present if name not in unsure]
        return Answer(LABEL_SEPARATOR.join(present), label, present, unsure, confidence, probabilities, nearest)

    def sentence(self, pictures: int) -> str:
        """How many of them were answered."""
        assert self.rows is not None
        answered, count = np.array([row.answered for row in self.rows]), len(self.rows)
        error = float(np.average([row.error for row in self.rows], weights=answered))
        least = sorted({f"{row.confidence:.3f}" for row in self.rows})
        of = (
            f"{pictures}" if not self.has_unsure else f"{pictures * count} decisions ({pictures} pictures, {count} classes)"
        )
        by_class = "" if len(least) == 1 else f" to {least[-1]}, by class,"
        those = "decisions" if self.has_unsure else "pictures"
        without = f"{self.unfamiliar} unfamiliar picture{'s' * (self.unfamiliar > 1)}"
        unfamiliar = f"; {without} got no answer" if self.unfamiliar else ""
        familiar = "familiar " if self.knows_unfamiliar and not self.has_unsure else ""
        return (
            f"{self.answered} of {of} answered, those of probability {least[0]}{by_class} and more{unfamiliar}; on "
            f"validation that was {answered.mean():.0%} of the {familiar}{those}, and {error:.1%} of these were wrong"
        )


def selection_for(model: Path, predictor: BatchPredictor, max_error: float | None) -> Selection:
    """Which answers are given where at most ``max_error`` of them may be wrong; all where it is None.

    Raises:
        HeadstartError: that cannot be promised.
    """
    task, classes, knows_unfamiliar = predictor.task, predictor.classes, predictor.predictor.familiarity is not None
    if max_error is None:
        return Selection(task, classes, None, knows_unfamiliar)
    details = ClassifierDetails.read(ModelFolder(model).classifier.details)
    if not isinstance(task, MultiLabel):
        return Selection(task, classes, [threshold_for(max_error, details.answering)], knows_unfamiliar)
    rows = thresholds_by_class(max_error, details.answering_by_class)
    return Selection(task, classes, [rows[name] for name in classes], knows_unfamiliar)


def progress_of(count: int, output: Path | None) -> contextlib.AbstractContextManager[Advance]:
    """Progress as a bar or lines; none where the predictions themselves scroll by on the terminal, or for few pictures."""
    scrolling = output is None and sys.stdout.isatty()
    if scrolling or (count <= NO_PROGRESS_UP_TO and not sys.stderr.isatty()):
        return contextlib.nullcontext(lambda count=1: None)
    return progress("predict", count)
