"""Decoded pictures in one file: writing them, and reusing what an earlier run has decoded."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.base.artifacts import PrepareFolder
from headstart.base.cluster import Cluster
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, sha256_of, write_text
from headstart.base.identity import code_of
from headstart.base.kept import say_damaged
from headstart.base.paths import state_folder
from headstart.base.progress import progress
from headstart.base.sections import Prepare
from headstart.base.terminal import say
from headstart.data.audit import Audit
from headstart.data.decode import RESIZE_ABOVE, Array, Unusable
from headstart.data.decoders import Decoders, Rules, Stored
from headstart.data.file_properties import FileProperties
from headstart.data.packed import Pixels
from headstart.data.picture import LARGEST, READS_AT_ONCE, InPlace, Picture

FILE = pa.struct(
    {"format": pa.string(), "mode": pa.string(), "exif": pa.bool_(), "profile": pa.bool_(), "camera": pa.string(),
     "taken": pa.string(), "compression": pa.float64()}
)  # fmt: skip
HEADER = 1 << 16  # bytes; of most pictures they hold width and height
SENT = 16 << 20  # bytes of files and their pixels that are sent to a worker of a cluster at once
READS_PER_WORKER = 8  # of a cluster, at once, where pictures are in a bucket
PAUSE = 5.0  # seconds between two records of what is decoded so far; more where writing one takes long


@dataclass(frozen=True)
class PackedPicture(Stored):
    """A usable picture, where its pixels are stored, and the split and group that it gets.

    Attributes:
        span: offset and length of the stored pixels, in bytes.
        digest: SHA-256 of the stored pixels.
    """

    picture: Picture
    span: tuple[int, int]
    digest: bytes
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class _Job:
    """A picture to be packed.

    Attributes:
        size: width and height as its header has them, or the reason why it cannot be used.
    """

    picture: Picture
    size: tuple[int, int] | str = ""


def pack(
    pictures: list[Picture],
    root: Path | InPlace,
    settings: Prepare,
    threads: int,
    folder: Path,
    file: Path,
    audit: Audit,
    cluster: Cluster | None = None,
) -> tuple[list[PackedPicture], dict[bytes, bytes]]:
    """Write the pixels of all usable pictures into ``file``, in order, and drop the others in ``audit``.

    A picture that is packed in ``folder`` with the same settings, and is undamaged, is copied from there. Each picture is
    written as soon as it is decoded, so that memory does not grow with the number of pictures. The pixels of a picture that
    is dropped later stay in the file without an entry in the index.

    If this is killed, the next one goes on: ``file`` has a second name in a folder below ``.headstart/prepare``, with an
    index of what is in it so far. The caller removes that when all is written.

    Args:
        cluster: where pictures are decoded; None: here. The bytes are the same.

    Returns:
        The usable pictures, and the settings that ``write_index`` stores beside them.
    """
    unfinished = state_folder("prepare")
    rules = Rules(settings.short_side, settings.max_megapixels, settings.formats, settings.white_level)
    readers = threads if isinstance(root, Path) else max(threads, READS_AT_ONCE)  # which mostly wait
    with closing(Decoders(threads, rules)) as decoders:
        sizes = {} if isinstance(root, Path) else _known_sizes([folder, *unfinished.glob("*")], settings)
        jobs = list(_map(partial(_measured, decoders, root, sizes), [_Job(p) for p in pictures], readers))
        raw_bytes = sum(_raw_size(job.size, settings.short_side) for job in jobs)
        quality = settings.jpeg_quality if raw_bytes > settings.raw_gb * 1e9 else None
        packing = _packing(settings, quality)
        earlier = [_reusable(started, packing) for started in sorted(unfinished.glob("*"))]
        if found := {sha256: picture for one in earlier for sha256, picture in one.items()}:
            say(f"prepare: going on after {len(found)} pictures of a run that was stopped")
        reusable = found | _reusable(folder, packing)
        new = [job for job in jobs if job.picture.sha256 not in reusable]
        if cluster is None:
            decoded = _map(partial(_packed, decoders, root, quality), new, readers)
        else:
            decoded = _on_cluster(cluster, root, new, decoders, quality)
        so_far = _SoFar(unfinished / file.suffix[1:], file, packing)
        return _written(pictures, reusable, decoded, len(new), so_far, audit), packing


class _SoFar:
    """What is packed so far, in ``folder``, for the next run if this one is killed."""

    def __init__(self, folder: Path, file: Path, packing: dict[bytes, bytes]) -> None:
        self.folder, self.file, self.packing = folder, file, packing
        self.last, self.pause = time.monotonic(), PAUSE
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # where .headstart is on another disk, or links are not known, there is no going on
            os.link(file, PrepareFolder(folder).pixels)

    def keep(self, usable: list[PackedPicture], stream: BinaryIO) -> None:
        """Record ``usable`` now and then: at most a twentieth of the time goes into it."""
        start = time.monotonic()
        if start - self.last >= self.pause and PrepareFolder(self.folder).pixels.exists():
            stream.flush()
            with suppress(OSError):  # another experiment that has finished has removed it; or the disk is full
                write_index(usable, self.packing, self.folder)
            self.last = time.monotonic()
            self.pause = max(PAUSE, 20 * (self.last - start))


def _written(
    pictures: list[Picture],
    reusable: dict[str, tuple[PackedPicture, Callable[[], Array]]],
    decoded: Iterator[tuple[PackedPicture, bytes] | str],
    count: int,
    so_far: _SoFar,
    audit: Audit,
) -> list[PackedPicture]:
    """Write the pixels of all pictures, of which ``count`` come from ``decoded``; the usable ones."""
    usable = []
    offset = 0
    with progress("prepare", count) as advance, so_far.file.open("wb") as stream:
        for picture in pictures:
            if picture.sha256 in reusable:
                packed, read = reusable[picture.sha256]
                pixels = read().tobytes()
            else:
                result = next(decoded)
                advance()
                if isinstance(result, str):
                    audit.drop(picture.path, result)
                    continue
                packed, pixels = result
            stream.write(pixels)
            usable.append(replace(packed, picture=picture, span=(offset, len(pixels))))
            offset += len(pixels)
            so_far.keep(usable, stream)
            audit.notes.update(packed.notes)
            audit.warnings += [f"{picture.path}: {note}" for note in packed.notes if note.startswith("animated")]
    return usable


def write_index(usable: list[PackedPicture], packing: dict[bytes, bytes], folder: Path) -> None:
    """Write what ``Pixels`` and the next ``pack`` need to know of the packed pixels."""
    index = pa.table(
        {
            "sha256": [p.picture.sha256 for p in usable],
            "offset": np.array([p.span[0] for p in usable], np.int64),
            "length": np.array([p.span[1] for p in usable], np.int64),
            "height": [p.height for p in usable],
            "width": [p.width for p in usable],
            "original_height": [p.original_height for p in usable],
            "original_width": [p.original_width for p in usable],
            "phash": pa.array([p.phash for p in usable], pa.uint64()),
            "thumbnail": [p.thumbnail for p in usable],
            "notes": pa.array([list(p.notes) for p in usable], pa.list_(pa.string())),
            "digest": [p.digest for p in usable],
            "bytes": np.array([p.picture.size for p in usable], np.int64),
            "file": pa.array([asdict(p.file) for p in usable], FILE),
        }
    ).replace_schema_metadata(packing)
    files = PrepareFolder(folder)
    files.pixels_digest.unlink(missing_ok=True)
    with replacing(files.pixels_index) as part:
        pq.write_table(index, part)
    write_text(files.pixels_digest, f"{sha256_of(files.pixels_index)}\n")


def _measured(decoders: Decoders, root: Path | InPlace, sizes: dict[str, tuple[int, int]], job: _Job) -> _Job:
    """The job with the size of its picture, which is looked up in ``sizes`` by SHA-256 before the picture is read."""
    if job.picture.sha256 in sizes:
        return replace(job, size=sizes[job.picture.sha256])
    if isinstance(root, InPlace):  # a few bytes suffice, if they do not say otherwise
        with suppress(Unusable):
            return replace(job, size=decoders.size(root.read(job.picture.path, 0, HEADER) if job.picture.size else b""))
    try:
        return replace(job, size=decoders.size(_content(root, job.picture)))
    except Unusable as reason:
        return replace(job, size=str(reason))


def _content(root: Path | InPlace, picture: Picture) -> Path | bytes:
    """The file of a picture, or its bytes where it is no file of this machine.

    Raises:
        Unusable: it has too many bytes to be read whole.
        HeadstartError: it cannot be read, or is another than the one that was listed.
    """
    if isinstance(root, Path):
        return root / picture.path
    if picture.size > LARGEST:
        raise Unusable(f"{picture.size >> 20} MB, and at most {LARGEST >> 20} are read of a picture elsewhere")
    content = root.read(picture.path)
    if hashlib.sha256(content).hexdigest() != picture.sha256:
        raise HeadstartError(f"{root}: {picture.path} has changed since it was listed; run `dvc repro` again")
    return content


def _known_sizes(folders: list[Path], settings: Prepare) -> dict[str, tuple[int, int]]:
    """Width and height by SHA-256 of what earlier runs have packed, so that nothing is read for them."""
    allowed = {_packing(settings, quality)[b"headstart"] for quality in (None, settings.jpeg_quality)}
    sizes: dict[str, tuple[int, int]] = {}
    for folder in folders:
        with suppress(OSError, ValueError):  # it is not there, or damaged: of that _reusable speaks
            index = pq.read_table(
                PrepareFolder(folder).pixels_index, columns=["sha256", "original_width", "original_height"]
            )
            if (index.schema.metadata or {}).get(b"headstart") in allowed:
                sizes |= {row["sha256"]: (row["original_width"], row["original_height"]) for row in index.to_pylist()}
    return sizes


def _raw_size(size: tuple[int, int] | str, short_side: int) -> int:
    """The bytes that a picture takes uncompressed; 0 for one that cannot be used."""
    if isinstance(size, str):
        return 0
    short = min(size)
    scale = short_side / short if short > RESIZE_ABOVE * short_side else 1.0
    return round(size[0] * scale) * round(size[1] * scale) * 3


def _packed(
    decoders: Decoders, root: Path | InPlace, quality: int | None, job: _Job, content: bytes | None = None
) -> tuple[PackedPicture, bytes] | str:
    """The picture, without its span, and the bytes to store; or why it cannot be used.

    Args:
        content: of its file, where that was read elsewhere.
    """
    if isinstance(job.size, str):
        return job.size
    try:
        source = _content(root, job.picture) if content is None else content
        stored, pixels = decoders.pack(source, job.size, quality)
    except Unusable as reason:
        return str(reason)
    digest = hashlib.sha256(pixels).digest()
    return PackedPicture(**vars(stored), picture=job.picture, span=(0, 0), digest=digest), pixels


def _map(function: Callable[[_Job], Any], jobs: list[_Job], threads: int) -> Iterator[Any]:
    """``map`` in threads, with a bounded number of results waiting. The threads wait for the processes that decode."""
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) > 8 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass(frozen=True)
class _Packer:
    """What a worker of a cluster makes of pictures: of their files, which are sent to it, or of what it reads itself."""

    rules: Rules
    quality: int | None
    root: Path | InPlace

    @cached_property
    def decoders(self) -> Decoders:
        return Decoders(1, self.rules)

    def __call__(self, sent: list[tuple[_Job, bytes | None]]) -> list[tuple[PackedPicture, bytes] | str]:
        with ThreadPoolExecutor(READS_PER_WORKER) as pool:
            return list(pool.map(lambda one: _packed(self.decoders, self.root, self.quality, *one), sent))


def _on_cluster(
    cluster: Cluster, root: Path | InPlace, jobs: list[_Job], decoders: Decoders, quality: int | None
) -> Iterator[tuple[PackedPicture, bytes] | str]:
    """As ``_map`` of ``_packed``. Workers read what is in a bucket themselves, and other files are sent to them, some at a
    time. What is known to be unusable, or would take much of an object store, is left to the ``decoders`` here."""
    most = min(SENT, cluster.room // 4)
    is_everywhere = isinstance(root, InPlace) and root.is_everywhere

    def size(job: _Job) -> int:
        """Bytes of the file, if it is sent, and of its pixels."""
        return (0 if is_everywhere else job.picture.size) + _raw_size(job.size, decoders.rules.short_side or 0)

    def is_sent(job: _Job) -> bool:
        return not isinstance(job.size, str) and size(job) <= most

    def chunks() -> Iterator[tuple[list[tuple[_Job, bytes | None]], int]]:
        chunk: list[tuple[_Job, bytes | None]] = []
        total = 0
        for job in filter(is_sent, jobs):
            if chunk and total + size(job) > most:
                yield chunk, total
                chunk, total = [], 0
            chunk.append((job, None if is_everywhere else _bytes(root, job.picture)))
            total += size(job)
        if chunk:
            yield chunk, total

    packed = chain.from_iterable(cluster.map(_Packer(decoders.rules, quality, root), chunks()))
    for job in jobs:
        yield next(packed) if is_sent(job) else _packed(decoders, root, quality, job)


def _bytes(root: Path | InPlace, picture: Picture) -> bytes:
    """Of a picture; nothing where its file cannot be read any more, and then the worker says that."""
    try:
        content = _content(root, picture)
        return content if isinstance(content, bytes) else content.read_bytes()
    except (OSError, Unusable):
        return b""


def _packing(settings: Prepare, quality: int | None) -> dict[bytes, bytes]:
    """All that the stored pixels of a picture depend on, beside its file."""
    packing = {
        "code": code_of("headstart.data.decode"),
        "short_side": settings.short_side,
        "max_megapixels": settings.max_megapixels,
        "formats": settings.formats,
        "white_level": settings.white_level,
        "jpeg_quality": quality,
    }
    return {b"headstart": json.dumps(packing).encode()}


def _reusable(folder: Path, packing: dict[bytes, bytes]) -> dict[str, tuple[PackedPicture, Callable[[], Array]]]:
    """The pictures that an earlier run packed in the same way, by SHA-256, and a function that reads their pixels. What is
    damaged is not among them, and that is said."""
    files = PrepareFolder(folder)
    if not files.pixels_index.exists():
        return {}
    try:
        pixels = Pixels(folder)
        if pixels.settings.get(b"headstart") != packing[b"headstart"] or pixels.digests is None:
            return {}
        rows = pq.read_table(files.pixels_index).to_pylist()
    except HeadstartError:
        say_damaged(f"{files.pixels} with its index")
        return {}
    found: dict[str, tuple[PackedPicture, Callable[[], Array]]] = {}
    for number, row in enumerate(rows):
        if pixels.is_whole(number):
            stored = {field.name: row[field.name] for field in fields(Stored)}
            stored |= {"notes": tuple(row["notes"]), "file": FileProperties(**row["file"])}
            packed = PackedPicture(**stored, picture=Picture("", ""), span=(0, 0), digest=row["digest"])
            found[row["sha256"]] = packed, partial(pixels.raw, number)
    if len(found) < len(rows):
        say_damaged(f"{files.pixels} ({len(rows) - len(found)} of {len(rows)} pictures)")
    return found
