"""Predictions as they are written: text, JSON lines, CSV or Parquet, to a file that appears when it is complete."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from headstart.base.arrays import Floats
from headstart.base.files import replacing
from headstart.base.safe_text import visible
from headstart.base.terminal import say, say_json
from headstart.models.task import LABEL_SEPARATOR

FORMATS = ("text", "json", "csv", "parquet")
SUFFIXES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
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


@contextmanager
def opened(output_format: str, output: Path | None, classes: tuple[str, ...], has_unsure: bool) -> Iterator[Write]:
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
    return contextlib.nullcontext(output) if is_special(output) else replacing(output.resolve())


def is_special(output: Path) -> bool:
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
