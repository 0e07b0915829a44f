"""Predictions in parts, below an address or a folder: what is finished stays, and a run that was killed goes on after it.

A part is a table that appears whole. Each of its rows says which version of the picture was answered by which model, so
that nothing else has to be remembered.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headstart.base.artifacts import ModelFolder
from headstart.base.cluster import Cluster, connected
from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of_files
from headstart.base.terminal import say
from headstart.data.decode import Unusable, quiet
from headstart.data.download import HERE, is_address
from headstart.data.in_place import Place, Remote, stamp_here
from headstart.data.picture import READS_AT_ONCE
from headstart.engines.remote import share_of_gpu
from headstart.inference.batch import BatchPredictor, Selection, progress_of, readers_for, selection_for
from headstart.inference.prediction_files import PROBLEM, SUFFIXES, Table
from headstart.inference.predictor import Output

FORMATS = ("csv", "parquet")
ROWS = 1000  # of a part: what a kill costs at most
PER_TASK = 128  # pictures that a worker of a cluster is given at once
BYTES_PER_ANSWER = 10_000  # and picture, as they are sent
NAME = re.compile(r"part-(\d+)\.(csv|parquet)")
# Beside the columns of all predictions and PROBLEM: what tells this version of a picture from the next, and what tells the
# model and --max-error from others.
VERSION, MODEL = "image_version", "model_digest"


def is_for_parts(output: str | None) -> bool:
    """Whether ``--output`` names a place for parts and no file: an address, or a folder with a slash at the end."""
    return output is not None and (is_address(output) or output.endswith("/"))


def predict_in_parts(
    files: Sequence[Path | Remote],
    model: Path,
    output_format: str,
    output: str,
    max_error: float | None,
    trust: bool = False,
    cluster: str | None = None,
) -> None:
    """Answer each picture once in tables below ``output``. One that this model has answered there in an earlier run, and
    that has not changed since, is passed over. The row of an answer that is outdated goes when the new one is there.

    Args:
        output_format: csv or parquet.
        output: an address or a folder.
        max_error: as for ``batch.predict``.
        trust: the same.
        cluster: as params.yaml has it. It answers where all pictures are at addresses, and its nodes read them.

    Raises:
        HeadstartError: as ``batch.predict``, or a picture or a part cannot be read or written. Finished parts stay.
    """
    if output_format not in FORMATS:
        raise HeadstartError(f"--format {output_format!r}; parts are {' or '.join(FORMATS)}")
    if output.lower().endswith(tuple(SUFFIXES)):
        raise HeadstartError(f"--output {output} names a file; answers in parts need a folder, such as {output}/")
    parts, digest = _Parts(output), _digest(ModelFolder(model), max_error)
    by_name = {_name(file): file for file in files if not parts.holds(file)}
    files, versions = [*by_name.values()], {name: _version(file) for name, file in by_name.items()}
    if not files:
        raise HeadstartError("there are no pictures")
    earlier = parts.read()
    kept, done = _up_to_date(earlier, versions, digest)
    remaining = [file for name, file in by_name.items() if name not in done]
    if remaining:
        if done:
            say(f"{len(done)} of {len(files)} pictures are answered already", file=sys.stderr)
        with connected(cluster if all(isinstance(file, Remote) for file in remaining) else None, __name__) as nodes:
            results = _results(remaining, model, trust, nodes)
            selection = selection_for(model, results.predictor, max_error)
            failed = _answer(results, selection, versions, digest, parts, output_format)
    else:
        failed = 0
    for name, rows in kept.items():
        if len(rows) < len(earlier[name].images):
            parts.reduce(name, rows)
    failed += sum(done.values())
    say(f"{len(files)} pictures are answered below {output}", file=sys.stderr)
    if failed:
        raise HeadstartError(f"{failed} of {len(files)} pictures could not be used; the column {PROBLEM} says why")


@dataclass(frozen=True)
class _Results:
    """Pictures with what the model makes of them, one after the other."""

    predictor: BatchPredictor
    count: int
    each: Generator[tuple[Path | Remote, Output | Unusable], None, None]


def _results(files: Sequence[Path | Remote], model: Path, trust: bool, cluster: Cluster | None) -> _Results:
    if cluster is None:
        predictor = BatchPredictor(model, len(files), trust=trust)
        return _Results(predictor, len(files), predictor.predict_files(files, readers_for(files)))
    predictor = BatchPredictor(model, 1, trust=trust)  # says whether the model may be run
    return _Results(predictor, len(files), _on_cluster(cluster, [f for f in files if isinstance(f, Remote)], model))


def _on_cluster(
    cluster: Cluster, files: list[Remote], model: Path
) -> Generator[tuple[Path | Remote, Output | Unusable], None, None]:
    work = _Answerer({p.relative_to(model).as_posix(): p.read_bytes() for p in model.rglob("*") if p.is_file()}, len(files))
    chunks = [files[at : at + PER_TASK] for at in range(0, len(files), PER_TASK)]
    answers = cluster.map(work, ((chunk, BYTES_PER_ANSWER * len(chunk)) for chunk in chunks), gpus=share_of_gpu(cluster))
    for chunk, found in zip(chunks, answers, strict=True):
        yield from ((file, Unusable(one) if isinstance(one, str) else one) for file, one in zip(chunk, found, strict=True))


@dataclass(frozen=True)
class _Answerer:
    """A model as it is sent to workers, each of which reads pictures itself and works with one thread.

    Attributes:
        content: of the model's files, by path.
        pictures: how many there are in all.
    """

    content: dict[str, bytes]
    pictures: int

    @cached_property
    def predictor(self) -> BatchPredictor:
        with tempfile.TemporaryDirectory() as folder:
            for path, content in self.content.items():
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            return BatchPredictor(Path(folder), self.pictures, threads=1, trust=True)

    def __call__(self, files: list[Remote]) -> list[Output | str]:
        with quiet():
            found = [result for _, result in self.predictor.predict_files(files, readers_for(files))]
        return [str(one) if isinstance(one, Unusable) else one for one in found]


def _answer(
    results: _Results, selection: Selection, versions: dict[str, str], digest: str, parts: _Parts, output_format: str
) -> int:
    """Answer the pictures, a part after the other; how many could not be used."""
    table = Table(results.predictor.classes, selection.columns, (PROBLEM, VERSION, MODEL))
    failed = 0
    with (
        progress_of(results.count, Path(parts.output)) as advance,
        contextlib.closing(results.each) as predictions,
        quiet(),
    ):
        for file, result in predictions:
            name = _name(file)
            version = (versions[name], digest)
            if isinstance(result, Unusable):
                failed += 1
                table.add(name, None, (" ".join(str(result).split()), *version))
            else:
                table.add(name, selection.answer(result), ("", *version))
            if len(table.rows) == ROWS:
                parts.add(_flushed(table, output_format), output_format)
            advance()
        if table.rows:
            parts.add(_flushed(table, output_format), output_format)
    if selection.rows is not None:
        say(f"headstart: {selection.sentence(results.count - failed)}", file=sys.stderr)
    return failed


def _flushed(table: Table, output_format: str) -> bytes:
    """The rows as a file; afterwards there are none."""
    header, rows, table.rows = table.header, table.rows, []
    if output_format == "csv":
        return _as_csv(header, rows)
    import pyarrow as pa

    numbers, booleans = {"probability", *table.classes}, {"unfamiliar"}
    kinds = [pa.float64() if n in numbers else pa.bool_() if n in booleans else pa.string() for n in header]
    schema = pa.schema(list(zip(header, kinds, strict=True)))
    columns = [pa.array(cells, kind) for cells, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return _as_parquet(pa.table(columns, schema=schema))


def _as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([str(cell).lower() if isinstance(cell, bool) else cell for cell in row] for row in rows)
    return text.getvalue().encode()


def _as_parquet(table: Any) -> bytes:
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


@dataclass(frozen=True)
class _Part:
    """What counts of a finished part, row by row."""

    images: list[str]
    versions: list[str]
    models: list[str]
    problems: list[str]


class _Parts:
    """The parts below an address or a folder."""

    def __init__(self, output: str) -> None:
        self.output = output
        # A folder here is a path, also where it is given as file://.
        path = output.partition("://")[2] if output.startswith(HERE) else output
        self._place, self._next = Place(path.rstrip("/") or path), 0

    def holds(self, file: Path | Remote) -> bool:
        """Whether a file is one of the parts: they may lie among the pictures."""
        folder, _, name = str(file).rpartition("/")
        return NAME.fullmatch(name) is not None and folder == self._place.address

    def read(self) -> dict[str, _Part]:
        """The finished parts by name.

        Raises:
            HeadstartError: one cannot be read, or is none of headstart's.
        """
        names = [name for name in self._place.names() if NAME.fullmatch(name)]
        self._next = max((int(NAME.fullmatch(name)[1]) + 1 for name in names), default=0)  # type: ignore[index]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return dict(zip(names, pool.map(self._read, names), strict=True))

    def add(self, content: bytes, output_format: str) -> None:
        """One more part. Its number is the next that nobody else has taken."""
        while not self._place.create(f"part-{self._next:05}.{output_format}", content):
            self._next += 1
        self._next += 1

    def reduce(self, name: str, rows: list[int]) -> None:
        """Leave only these rows of a part, and nothing of it where there are none."""
        if not rows:
            self._place.remove(name)
        elif name.endswith(".csv"):
            header, *cells = self._csv(name)
            self._place.write(name, _as_csv(header, (cells[row] for row in rows)))
        else:
            self._place.write(name, _as_parquet(self._parquet(name).take(rows)))

    def _read(self, name: str) -> _Part:
        try:
            if name.endswith(".csv"):
                header, *cells = self._csv(name)
                columns = {column: header.index(column) for column in ("image", VERSION, MODEL, PROBLEM)}
                of = {column: [row[at] for row in cells] for column, at in columns.items()}
            else:
                table = self._parquet(name)
                of = {column: table[column].to_pylist() for column in ("image", VERSION, MODEL, PROBLEM)}
        except HeadstartError:
            raise
        except Exception:  # it is whole, so it is somebody else's
            raise HeadstartError(
                f"{self._place.address_of(name)} is no part that headstart has written; take it away, or give another "
                "--output"
            ) from None
        return _Part(of["image"], of[VERSION], of[MODEL], of[PROBLEM])

    def _csv(self, name: str) -> list[list[str]]:
        return list(csv.reader(io.StringIO(self._place.read(name).decode(), newline="")))

    def _parquet(self, name: str) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(self._place.read(name)))


def _up_to_date(
    parts: dict[str, _Part], versions: dict[str, str], digest: str
) -> tuple[dict[str, list[int]], dict[str, bool]]:
    """The rows of each part that stay, and which pictures are answered, each with whether it had a problem.

    What is said of pictures that nobody asks about now stays too.
    """
    kept: dict[str, list[int]] = {}
    done: dict[str, bool] = {}
    for name, part in parts.items():
        kept[name] = []
        for row, (image, version, model, problem) in enumerate(_rows(part)):
            if image in versions:
                if image in done or not version or (version, model) != (versions[image], digest):
                    continue
                done[image] = bool(problem)
            kept[name].append(row)
    return kept, done


def _rows(part: _Part) -> Iterator[tuple[str, str, str, str]]:
    return zip(part.images, part.versions, part.models, part.problems, strict=True)


def _name(file: Path | Remote) -> str:
    """A picture's name in the tables. What is no text in it, or would end a line, is escaped."""
    return str(file).encode("utf-8", "backslashreplace").decode().replace("\r", "\\r").replace("\n", "\\n")


def _version(file: Path | Remote) -> str:
    """What tells this version of a picture from the next; empty where nothing surely does."""
    stamp = stamp_here(file) if isinstance(file, Path) else file.file.stamp
    return hashlib.sha256(stamp.encode()).hexdigest()[:16] if stamp else ""


def _digest(model: ModelFolder, max_error: float | None) -> str:
    """What tells the answers of this model from those of others."""
    content = model.sums.read_bytes() if model.sums.exists() else sha256_of_files(model).encode()
    return hashlib.sha256(content + f" {max_error}".encode()).hexdigest()[:16]
