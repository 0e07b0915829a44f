"""Many pictures, answered fast: decoded by all cores while the engine that suits the network works on those before."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor, nn

from headstart.base.arrays import Floats
from headstart.base.artifacts import CLASSIFIER, DETAILS
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, replacing
from headstart.base.progress import Advance, progress
from headstart.data.decode import Array, Unusable, quiet
from headstart.engines.batching import inference_batch
from headstart.engines.openvino import PICTURES_PER_REQUEST
from headstart.engines.select import SAMPLE, engine_for
from headstart.inference.predictor import load_predictor
from headstart.inference.selective import threshold_for
from headstart.models.preprocessing import Normalise, View
from headstart.models.task import Task

FORMATS = ("text", "json", "csv", "parquet")
SUFFIXES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
ENDLESS = 10**9  # pictures: what a server expects
FEW = 64  # pictures that are answered before a bar is worth drawing
HANDFUL = PICTURES_PER_REQUEST // 2  # are answered sooner by torch: OpenVINO takes as long for one as for a whole request
ROWS = 10_000  # of a Parquet file that are written at once

# A picture, the likeliest answer, whether it is given, its probability, and (classes,) probabilities.
Write = Callable[[Path, str, bool, float, Floats], None]


class Batched:
    """A packaged classifier and the engine that suits it and their number. Any number of threads may ask it.

    Attributes:
        predictor: the same classifier as ``served.load_predictor`` gives it, on the CPU.
        lock: held while the network works. Whoever hangs hooks into ``predictor.model``, as Grad-CAM does, holds it too:
            it may be that very network that answers.
        batch: how many pictures are best passed at once.
        told: which engine runs, and why (``engine``, ``why``).
    """

    def __init__(
        self,
        model: Path,
        pictures: int = ENDLESS,
        engine: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Load the model and pick the engine.

        Args:
            model: the folder that holds MLmodel.
            pictures: how many will come; compiling pays for many.
            engine: torch, openvino or auto, as for ``engine_for``.
            threads: None: all cores.

        Raises:
            HeadstartError: the folder holds no model.
        """
        self.predictor = load_predictor(model)
        self.lock = threading.Lock()
        device = set_up(threads)
        network = nn.Sequential(Normalise(self.view), self.predictor.model).eval()
        if device.type != "cpu":
            network = copy.deepcopy(network).to(device)
        self.batch = inference_batch(network, self.view, device)
        with contextlib.redirect_stdout(sys.stderr):  # answers go to standard output, and nothing else
            sample = self.view.stacked(_clouds(self.view.size))
            self._engine, self.told = engine_for(network, pictures, sample, device, engine)
            self._torch, _ = engine_for(network, pictures, sample, device, "torch")

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
    def max_megapixels(self) -> float:
        return self.predictor.max_megapixels

    def decode(self, source: bytes | Path) -> Array:
        """A picture file, or its bytes, as (height, width, 3) uint8.

        Raises:
            Unusable: it is no picture, damaged or too large.
        """
        return self.predictor.decoded(source)

    def probabilities(self, pictures: Sequence[Array]) -> Floats:
        """Pictures of any sizes, each (height, width, 3) uint8 → (N, classes) calibrated probabilities."""
        if not pictures:
            return np.zeros((0, len(self.classes)))
        return self._answered(self.view.stacked(pictures))

    def of_seen(self, pictures: Sequence[Array]) -> Floats:
        """The same for what ``view`` made of pictures already, each (size, size, 3) uint8."""
        return self._answered(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))

    def answers(self, files: Iterable[Path]) -> Generator[tuple[Path, Floats | Unusable], None, None]:
        """Each file with its (classes,) probabilities, or with the reason why it cannot be used, in the order given.

        Files are decoded by a thread per core while the network works on the batch before: Pillow decodes, and torch
        resizes, without Python's lock. Memory does not grow with their number.
        """
        waiting, ahead = iter(files), deque[tuple[Path, Future[Array | Unusable]]]()
        pool = ThreadPoolExecutor(torch.get_num_threads())

        def decode_ahead() -> None:
            for path in islice(waiting, 2 * self.batch - len(ahead)):
                ahead.append((path, pool.submit(self._seen, path)))

        try:
            decode_ahead()
            while ahead:
                chunk = [ahead.popleft() for _ in range(min(self.batch, len(ahead)))]
                seen = [(path, future.result()) for path, future in chunk]
                decode_ahead()
                usable = [picture for _, picture in seen if not isinstance(picture, Unusable)]
                rows = iter(self.of_seen(usable) if usable else ())
                for path, picture in seen:
                    yield path, picture if isinstance(picture, Unusable) else next(rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def _seen(self, path: Path) -> Array | Unusable:
        try:
            return self.view(self.decode(path))
        except Unusable as reason:
            return reason

    def _answered(self, pictures: Tensor) -> Floats:
        """(N, 3, size, size) uint8 → (N, classes)."""
        with self.lock:
            logits = (self._torch if len(pictures) <= HANDFUL else self._engine)(pictures)
        return self.predictor.model.probabilities(logits.double().cpu()).numpy()


def _clouds(size: int) -> list[Array]:
    """Pictures that engines are timed and compared on, the same for every model: smooth, as photographs are."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (SAMPLE, 3, 8, 8), np.uint8))
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic", antialias=True)
    return list(smooth.permute(0, 2, 3, 1).contiguous().numpy())


def predict(files: Sequence[Path], model: Path, form: str, output: Path | None, max_error: float | None) -> None:
    """Write what is on ``files``, in their order, to ``output`` or standard output. Those that cannot be used are named on
    the error stream.

    Args:
        model: the folder that holds MLmodel.
        form: one of ``FORMATS``; parquet needs an ``output``.
        output: it appears when it is whole.
        max_error: answer only where at most this share of all answers is wrong; the others get no label.

    Raises:
        HeadstartError: there is no model, ``max_error`` cannot be promised, ``output`` cannot be written, or at the end,
            pictures could not be used.
    """
    if form == "parquet" and output is None:
        raise HeadstartError("--format parquet needs --output FILE")
    if form == "parquet" and output is not None and _special(output):
        raise HeadstartError(f"--output {output} is no file, and parquet is written to one")
    if output is not None and output.is_dir():
        raise HeadstartError(f"--output {output} is a folder; name a file")
    table, least = _threshold(model, max_error)
    batched = Batched(model, len(files))
    failed = answered = 0
    try:
        with (
            _writer(form, output, batched.classes) as write,
            _progress(len(files), output) as advance,
            contextlib.closing(batched.answers(files)) as answers,
            quiet(),
        ):
            for path, found in answers:
                if isinstance(found, Unusable):
                    failed += 1
                    print(f"headstart: {path}: {found}", file=sys.stderr)
                else:
                    label, confidence = batched.task.answer(found, batched.classes)
                    answered += confidence >= least
                    write(path, label, confidence >= least, confidence, found)
                advance()
    except OSError as error:  # pictures are read elsewhere: it is the answers that have no place
        if isinstance(error, BrokenPipeError):
            raise
        raise HeadstartError(f"{output or 'standard output'} cannot be written: {error.strerror or error}") from None
    if table is not None:
        print(
            f"headstart: {answered} of {len(files) - failed} answered, those of {least:.3f} and more; on validation that "
            f"was {table['answered']:.0%} of the pictures, and {table['error']:.1%} of these were wrong",
            file=sys.stderr,
        )
    if failed:
        raise HeadstartError(f"{failed} of {len(files)} pictures could not be used")


def _threshold(model: Path, max_error: float | None) -> tuple[dict[str, float] | None, float]:
    """What the model's table promises for ``max_error``, and the least confidence that is answered."""
    if max_error is None:
        return None, 0.0
    try:
        details = read_json(model / CLASSIFIER / DETAILS)
    except (OSError, ValueError):
        return None, 0.0  # whoever loads the model says so
    row = threshold_for(max_error, details.get("answering"))
    return row, row["confidence"]


def _progress(count: int, output: Path | None) -> contextlib.AbstractContextManager[Advance]:
    """A bar, or lines where there is no terminal; nothing where the answers themselves are what moves there."""
    moving = output is None and sys.stdout.isatty()
    if moving or (count <= FEW and not sys.stderr.isatty()):
        return contextlib.nullcontext(lambda count=1: None)
    return progress("predict", count)


@contextmanager
def _writer(form: str, output: Path | None, classes: tuple[str, ...]) -> Iterator[Write]:
    if form == "parquet":
        assert output is not None
        with _place(output) as part, _parquet(part, classes) as write:
            yield write
    elif output is not None:
        with _place(output) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield _lines(form, stream, classes)
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
        yield _lines(form, sys.stdout, classes)  # itself, before a progress bar puts its own in its place


def _place(output: Path) -> contextlib.AbstractContextManager[Path]:
    """Beside ``output`` until it is whole, and a link stays one; itself where it is no file of its own."""
    return contextlib.nullcontext(output) if _special(output) else replacing(output.resolve())


def _special(output: Path) -> bool:
    """A device, a pipe, or a name for what is open already, such as /dev/stdout."""
    return output.exists() and (not output.is_file() or output.absolute().parts[1] in ("dev", "proc"))


def _lines(form: str, stream: TextIO, classes: tuple[str, ...]) -> Write:
    def as_text(path: Path, label: str, sure: bool, confidence: float, probabilities: Floats) -> None:
        print(f"{confidence:6.1%}  {label if sure else f'no answer ({label}?)'}  {path}", file=stream)

    def as_json(path: Path, label: str, sure: bool, confidence: float, probabilities: Floats) -> None:
        row = {"image": str(path), "label": label if sure else None, "probability": confidence}
        each = {"probabilities": dict(zip(classes, probabilities.tolist(), strict=True))}
        print(json.dumps(row | each, ensure_ascii=False), file=stream)

    def as_csv(path: Path, label: str, sure: bool, confidence: float, probabilities: Floats) -> None:
        writer.writerow([path, label if sure else "", confidence, *probabilities.tolist()])

    if form != "csv":
        return as_json if form == "json" else as_text
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "probability", *classes])
    return as_csv


@contextmanager
def _parquet(file: Path, classes: tuple[str, ...]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = [(name, pa.float64()) for name in ("probability", *classes)]
    schema = pa.schema([("image", pa.string()), ("label", pa.string()), *numbers])
    rows: list[tuple[str, str | None, float, Floats]] = []

    def flush() -> None:
        images, labels, confidences, probabilities = zip(*rows, strict=True)
        columns = [pa.array(images), pa.array(labels, pa.string()), confidences, *np.stack(probabilities).T]
        writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))
        rows.clear()

    def write(path: Path, label: str, sure: bool, confidence: float, probabilities: Floats) -> None:
        name = str(path).encode("utf-8", "backslashreplace").decode()
        rows.append((name, label if sure else None, confidence, probabilities))
        if len(rows) == ROWS:
            flush()

    with pq.ParquetWriter(file, schema) as writer:
        yield write
        if rows:
            flush()
