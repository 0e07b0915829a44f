"""Fast prediction for many pictures: all cores decode the next batch while the engine runs the network on this one."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from headstart.base.arrays import Floats
from headstart.base.artifacts import ModelFolder
from headstart.base.artifacts.classifier import ClassifierDetails, Threshold
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing
from headstart.base.progress import Advance, progress
from headstart.base.safe_text import visible
from headstart.base.terminal import say, say_json
from headstart.data.decode import Array, Unusable, quiet
from headstart.data.decoders import Decoders, Rules, rereadable
from headstart.engines.batching import inference_batch
from headstart.engines.openvino import PICTURES_PER_REQUEST
from headstart.engines.select import SAMPLE, engine_for
from headstart.inference.predictor import load_predictor, names
from headstart.inference.selective import confidence_of_decisions, threshold_for, thresholds_by_class
from headstart.models.preprocessing import Normalise, View
from headstart.models.task import LABEL_SEPARATOR, MultiLabel, Task

FORMATS = ("text", "json", "csv", "parquet")
SUFFIXES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
UNLIMITED = 10**9  # pictures, for a server
NO_PROGRESS_UP_TO = 64  # pictures take too short a time for a progress bar
TORCH_UP_TO = PICTURES_PER_REQUEST // 2  # pictures; torch is faster for so few, since OpenVINO pads them to a whole request
PARQUET_ROWS = 10_000  # written at once


@dataclass(frozen=True)
class Answer:
    """What is written about one picture.

    Attributes:
        label: the predicted class, or the predicted classes joined; None where it is not confident enough to be given.
        likeliest: the label, given or not.
        names: of the predicted classes; None where pictures have one label each.
        unsure: the classes of which it is not confident enough whether they are there; None where everything is answered,
            or pictures have one label each.
        confidence: the probability of the whole answer.
        probabilities: (classes,).
    """

    label: str | None
    likeliest: str
    names: list[str] | None
    unsure: list[str] | None
    confidence: float
    probabilities: Floats


Write = Callable[[Path, Answer], None]


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
        network = nn.Sequential(Normalise(self.view), self.predictor.model).eval()
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
        return self._forward(self.view.stacked(pictures))

    def predict_views(self, pictures: Sequence[Array]) -> Floats:
        """The same for pictures that have passed through ``view``, each (size, size, 3) uint8."""
        return self._forward(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))

    def predict_files(self, files: Iterable[Path]) -> Generator[tuple[Path, Floats | Unusable], None, None]:
        """Each file with its (classes,) probabilities, or with the reason why it cannot be used, in the order given.

        One process per core decodes the next batch while the network runs on this one. Memory does not grow with the number
        of files.
        """
        remaining, pending = iter(files), deque[tuple[Path, Future[Array | Unusable]]]()
        pool, decoders = ThreadPoolExecutor(torch.get_num_threads()), Decoders(torch.get_num_threads(), self.rules)

        def load_view(path: Path) -> Array | Unusable:
            try:
                source = rereadable(path)
                return self.view(decoders.decode(source, decoders.size(source)))
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

    def _forward(self, pictures: Tensor) -> Floats:
        """(N, 3, size, size) uint8 → (N, classes)."""
        with self.lock:
            logits = (self._forward_few if len(pictures) <= TORCH_UP_TO else self._forward_many)(pictures)
        return self.predictor.model.probabilities(logits.double().cpu()).numpy()


def _sample_pictures(size: int) -> list[Array]:
    """Pictures that engines are compared on, the same for every model, and smooth like photographs."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (SAMPLE, 3, 8, 8), np.uint8))
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic", antialias=True)
    return list(smooth.permute(0, 2, 3, 1).contiguous().numpy())


def predict(
    files: Sequence[Path],
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
        output_format: one of ``FORMATS``; parquet needs an ``output``.
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
    if output_format == "parquet" and output is not None and _is_special(output):
        raise HeadstartError(f"--output {output} is not a regular file, which --format parquet needs")
    if output is not None and output.is_dir():
        raise HeadstartError(f"--output {output} is a folder; name a file")
    predictor = BatchPredictor(model, len(files), trust=trust)
    selection = _selection(model, predictor.task, predictor.classes, max_error)
    failed = 0
    try:
        with (
            _writer(output_format, output, predictor.classes, selection.has_unsure) as write,
            _progress(len(files), output) as advance,
            contextlib.closing(predictor.predict_files(files)) as predictions,
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
            everything is answered.
        answered: how many answers, or decisions, were given.
    """

    task: Task
    classes: tuple[str, ...]
    rows: list[Threshold] | None
    answered: int = 0

    @property
    def has_unsure(self) -> bool:
        return self.rows is not None and isinstance(self.task, MultiLabel)

    def answer(self, probabilities: Floats) -> Answer:
        """From the (classes,) probabilities of a picture."""
        label, confidence = self.task.answer(probabilities, self.classes)
        if not isinstance(self.task, MultiLabel):
            given = self.rows is None or confidence >= self.rows[0].confidence
            self.answered += given
            return Answer(label if given else None, label, None, None, confidence, probabilities)
        present, unsure = names(self.task, probabilities, self.classes) or [], None
        if self.rows is not None:
            least = [row.confidence for row in self.rows]
            sure = confidence_of_decisions(self.task, probabilities) >= least
            self.answered += int(sure.sum())
            unsure = [name for name, is_sure in zip(self.classes, sure, strict=True) if not is_sure]
            present = [name for name in present if name not in unsure]
        return Answer(LABEL_SEPARATOR.join(present), label, present, unsure, confidence, probabilities)

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
        return (
            f"{self.answered} of {of} answered, those of probability {least[0]}{by_class} and more; on validation that was "
            f"{answered.mean():.0%} of the {those}, and {error:.1%} of these were wrong"
        )


def _selection(model: Path, task: Task, classes: tuple[str, ...], max_error: float | None) -> Selection:
    if max_error is None:
        return Selection(task, classes, None)
    details = ClassifierDetails.read(ModelFolder(model).classifier.details)
    if not isinstance(task, MultiLabel):
        return Selection(task, classes, [threshold_for(max_error, details.answering)])
    rows = thresholds_by_class(max_error, details.answering_by_class)
    return Selection(task, classes, [rows[name] for name in classes])


def _progress(count: int, output: Path | None) -> contextlib.AbstractContextManager[Advance]:
    """Progress as a bar or lines; none where the predictions themselves scroll by on the terminal, or for few pictures."""
    scrolling = output is None and sys.stdout.isatty()
    if scrolling or (count <= NO_PROGRESS_UP_TO and not sys.stderr.isatty()):
        return contextlib.nullcontext(lambda count=1: None)
    return progress("predict", count)


@contextmanager
def _writer(output_format: str, output: Path | None, classes: tuple[str, ...], has_unsure: bool) -> Iterator[Write]:
    if output_format == "parquet":
        assert output is not None
        with _temporary(output) as part, _parquet(part, classes, has_unsure) as write:
            yield write
    elif output is not None:
        with _temporary(output) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield _lines(output_format, stream, classes, has_unsure)
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
        yield _lines(
            output_format, sys.stdout, classes, has_unsure
        )  # the stream itself, before a progress bar replaces sys.stdout


def _temporary(output: Path) -> contextlib.AbstractContextManager[Path]:
    """A file that replaces ``output``, or the file that it links to, at the end; ``output`` itself if it is special."""
    return contextlib.nullcontext(output) if _is_special(output) else replacing(output.resolve())


def _is_special(output: Path) -> bool:
    """Whether it is a device, a pipe, or a name of an open file such as /dev/stdout."""
    return output.exists() and (not output.is_file() or output.absolute().parts[1] in ("dev", "proc"))


def answer_as_json(answer: Answer, classes: Sequence[str]) -> dict[str, Any]:
    """The keys that the command and the server both answer with; some only where there may be several labels."""
    labels = {} if answer.names is None else {"labels": answer.names}
    unsure = {} if answer.unsure is None else {"unsure": answer.unsure}
    probabilities = dict(zip(classes, answer.probabilities.tolist(), strict=True))
    return {"label": answer.label, **labels, "probability": answer.confidence, **unsure, "probabilities": probabilities}


def _lines(output_format: str, stream: TextIO, classes: tuple[str, ...], has_unsure: bool) -> Write:
    def as_text(path: Path, answer: Answer) -> None:
        if answer.names is None:
            words = answer.likeliest if answer.label is not None else f"no answer ({answer.likeliest}?)"
        else:
            words = ", ".join(answer.names) or "(none)"
        if answer.unsure:
            words += f"  unsure: {', '.join(answer.unsure)}"
        say(f"{answer.confidence:6.1%}  {words}  {path}", file=stream)

    def as_json(path: Path, answer: Answer) -> None:
        say_json({"image": str(path)} | answer_as_json(answer, classes), file=stream)

    def as_csv(path: Path, answer: Answer) -> None:
        unsure = [] if answer.unsure is None else [told(LABEL_SEPARATOR.join(answer.unsure))]
        row = [told(str(path)), told(answer.label or ""), answer.confidence, *unsure, *answer.probabilities.tolist()]
        writer.writerow(row)

    if output_format != "csv":
        return as_json if output_format == "json" else as_text
    told = visible if stream.isatty() else str  # a table is exact, but for a terminal that would act on names in it
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "probability", *_unsure_column(has_unsure), *map(told, classes)])
    return as_csv


def _unsure_column(has_unsure: bool) -> list[str]:
    return ["unsure"] if has_unsure else []


@contextmanager
def _parquet(file: Path, classes: tuple[str, ...], has_unsure: bool) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    unsure = [(name, pa.string()) for name in _unsure_column(has_unsure)]
    numbers = [(name, pa.float64()) for name in classes]
    schema = pa.schema([("image", pa.string()), ("label", pa.string()), ("probability", pa.float64()), *unsure, *numbers])
    rows: list[tuple[str, Answer]] = []

    def flush() -> None:
        answers = [answer for _, answer in rows]
        columns = [
            pa.array([name for name, _ in rows]),
            pa.array([answer.label for answer in answers], pa.string()),
            pa.array([answer.confidence for answer in answers]),
            *(pa.array([LABEL_SEPARATOR.join(answer.unsure or []) for answer in answers]) for _ in unsure),
            *map(pa.array, np.stack([answer.probabilities for answer in answers]).T),
        ]
        writer.write_table(pa.table(columns, schema=schema))
        rows.clear()

    def write(path: Path, answer: Answer) -> None:
        rows.append((str(path).encode("utf-8", "backslashreplace").decode(), answer))
        if len(rows) == PARQUET_ROWS:
            flush()

    with pq.ParquetWriter(file, schema) as writer:
        yield write
        if rows:
            flush()
