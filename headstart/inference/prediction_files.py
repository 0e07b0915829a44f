"""Predictions as they are written: text, JSON lines, CSV or Parquet, to a file that appears when it is complete."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from headstart.base.arrays import Floats
from headstart.base.files import replacing
from headstart.base.safe_text import visible
from headstart.base.terminal import say, say_json
from headstart.models.task import LABEL_SEPARATOR

FORMATS = ("text", "json", "csv", "parquet")
SUFFIXES = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
PROBLEM = "problem"  # the column that says why a picture could not be used
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
        nearest: the training pictures that it is most like, where it is unlike anything learned; empty where it is not,
            None where the model cannot say.
    """

    label: str | None
    likeliest: str
    names: list[str] | None
    unsure: list[str] | None
    confidence: float
    probabilities: Floats
    nearest: list[str] | None = None

    def columns(self) -> dict[str, str | bool]:
        """What only some tables have between ``probability`` and the classes."""
        unsure = {} if self.unsure is None else {"unsure": LABEL_SEPARATOR.join(self.unsure)}
        if self.nearest is None:
            return {**unsure}
        return {**unsure, "unfamiliar": bool(self.nearest), "nearest": LABEL_SEPARATOR.join(self.nearest)}


@dataclass
class Table:
    """Rows with the columns of all predictions, and more.

    Attributes:
        classes: the last columns.
        columns: the names of ``Answer.columns``.
        more: the names of what stands between these and the classes.
    """

    classes: Sequence[str]
    columns: Sequence[str]
    more: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)

    @property
    def header(self) -> list[str]:
        return ["image", "label", "probability", *self.columns, *self.more, *self.classes]

    def add(self, name: str, answer: Answer | None, more: Sequence[str]) -> None:
        """A row; one of a picture that could not be used has no answer."""
        if answer is None:
            values: list[Any] = [None, None, *[None] * len(self.columns)]
            probabilities: list[Any] = [None] * len(self.classes)
        else:
            of_answer = answer.columns()
            values = [answer.label, answer.confidence, *(of_answer[column] for column in self.columns)]
            probabilities = answer.probabilities.tolist()
        self.rows.append([name, *values, *more, *probabilities])


Write = Callable[[object, Answer], None]  # the picture, of which the text is its name, and the answer


@contextmanager
def opened(output_format: str, output: Path | None, classes: tuple[str, ...], columns: Sequence[str]) -> Iterator[Write]:
    """
    Args:
        columns: the names of ``Answer.columns``.
    """
    if output_format == "parquet":
        assert output is not None
        with _temporary(output) as part, _parquet(part, classes, columns) as write:
            yield write
    elif output is not None:
        with _temporary(output) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield _lines(output_format, stream, classes, columns)
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
        yield _lines(
            output_format, sys.stdout, classes, columns
        )  # the stream itself, before a progress bar replaces sys.stdout


def _temporary(output: Path) -> contextlib.AbstractContextManager[Path]:
    """A file that replaces ``output``, or the file that it links to, at the end; ``output`` itself if it is special."""
    return contextlib.nullcontext(output) if is_special(output) else replacing(output.resolve())


def is_special(output: Path) -> bool:
    """Whether it is a device, a pipe, or a name of an open file such as /dev/stdout."""
    return output.exists() and (not output.is_file() or output.absolute().parts[1] in ("dev", "proc"))


def answer_as_json(answer: Answer, classes: Sequence[str]) -> dict[str, Any]:
    """The keys that the command and the server both answer with; some only where there may be several labels."""
    labels = {} if answer.names is None else {"labels": answer.names}
    more: dict[str, Any] = {} if answer.unsure is None else {"unsure": answer.unsure}
    if answer.nearest is not None:
        more |= {"unfamiliar": bool(answer.nearest)} | ({"nearest": answer.nearest} if answer.nearest else {})
    probabilities = dict(zip(classes, answer.probabilities.tolist(), strict=True))
    return {"label": answer.label, **labels, "probability": answer.confidence, **more, "probabilities": probabilities}


def _lines(output_format: str, stream: TextIO, classes: tuple[str, ...], columns: Sequence[str]) -> Write:
    def as_text(path: object, answer: Answer) -> None:
        if answer.names is None:
            words = answer.likeliest if answer.label is not None else f"no answer ({answer.likeliest}?)"
        else:
            words = ", ".join(answer.names) or "(none)"
        if answer.unsure:
            words += f"  unsure: {', '.join(answer.unsure)}"
        unfamiliar = f"  unfamiliar, nearest: {', '.join(answer.nearest)}" if answer.nearest else ""
        say(f"{answer.confidence:6.1%}  {words}  {path}{unfamiliar}", file=stream)

    def as_json(path: object, answer: Answer) -> None:
        say_json({"image": str(path)} | answer_as_json(answer, classes), file=stream)

    def as_csv(path: object, answer: Answer) -> None:
        more = [told(value) if isinstance(value, str) else str(value).lower() for value in answer.columns().values()]
        row = [told(str(path)), told(answer.label or ""), answer.confidence, *more, *answer.probabilities.tolist()]
        writer.writerow(row)

    if output_format != "csv":
        return as_json if output_format == "json" else as_text
    told = visible if stream.isatty() else str  # a table is exact, but for a terminal that would act on names in it
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "probability", *columns, *map(told, classes)])
    return as_csv


@contextmanager
def _parquet(file: Path, classes: tuple[str, ...], columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    more = [(name, pa.bool_() if name == "unfamiliar" else pa.string()) for name in columns]
    numbers = [(name, pa.float64()) for name in classes]
    schema = pa.schema([("image", pa.string()), ("label", pa.string()), ("probability", pa.float64()), *more, *numbers])
    rows: list[tuple[str, Answer]] = []

    def flush() -> None:
        answers = [answer for _, answer in rows]
        arrays = [
            pa.array([name for name, _ in rows]),
            pa.array([answer.label for answer in answers], pa.string()),
            pa.array([answer.confidence for answer in answers]),
            *(pa.array([answer.columns()[name] for answer in answers]) for name in columns),
            *map(pa.array, np.stack([answer.probabilities for answer in answers]).T),
        ]
        writer.write_table(pa.table(arrays, schema=schema))
        rows.clear()

    def write(path: object, answer: Answer) -> None:
        rows.append((str(path).encode("utf-8", "backslashreplace").decode(), answer))
        if len(rows) == PARQUET_ROWS:
            flush()

    with pq.ParquetWriter(file, schema) as writer:
        yield write
        if rows:
            flush()
