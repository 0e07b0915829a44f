"""Decoded pictures in one file: writing them, and reusing what an earlier run has decoded."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, sha256_of, write_text
from headstart.base.identity import code_of
from headstart.base.kept import say_damaged
from headstart.base.params import Prepare
from headstart.base.progress import progress
from headstart.data.audit import Audit
from headstart.data.decode import RESIZE_ABOVE, Array, Unusable, decode, encode, fingerprint
from headstart.data.packed import Pixels
from headstart.data.picture import Picture


@dataclass(frozen=True)
class PackedPicture:
    """A usable picture, where its pixels are stored, and the split and group that it gets.

    Attributes:
        span: offset and length of the stored pixels, in bytes.
        height, width: as stored.
        original_height, original_width: of the user's file, upright.
        notes: the conversions that were needed.
        digest: SHA-256 of the stored pixels.
    """

    picture: Picture
    span: tuple[int, int]
    height: int
    width: int
    original_height: int
    original_width: int
    phash: int
    thumbnail: bytes
    notes: tuple[str, ...]
    digest: bytes
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class _Job:
    root: Path
    picture: Picture
    short_side: int
    max_megapixels: float
    jpeg_quality: int | None


def pack(
    pictures: list[Picture], root: Path, settings: Prepare, threads: int, folder: Path, file: Path, audit: Audit
) -> tuple[list[PackedPicture], dict[bytes, bytes]]:
    """Write the pixels of all usable pictures into ``file``, in order, and drop the others in ``audit``.

    A picture that is packed in ``folder`` with the same settings, and is undamaged, is copied from there. Each picture is
    written as soon as it is decoded, so that memory does not grow with the number of pictures. The pixels of a picture that
    is dropped later stay in the file without an entry in the index.

    Returns:
        The usable pictures, and the settings that ``write_index`` stores beside them.
    """
    jobs = [_Job(root, picture, settings.short_side, settings.max_megapixels, None) for picture in pictures]
    raw_bytes = sum(_map(_raw_size, jobs, threads))
    quality = settings.jpeg_quality if raw_bytes > settings.raw_gb * 1e9 else None
    packing = _packing(settings, quality)
    reusable = _reusable(folder, packing)
    new = [replace(job, jpeg_quality=quality) for job in jobs if job.picture.sha256 not in reusable]
    decoded = _map(_decode, new, threads)
    usable = []
    offset = 0
    with progress("prepare", len(new)) as advance, file.open("wb") as stream:
        for picture in pictures:
            if picture.sha256 in reusable:
                packed, read = reusable[picture.sha256]
                pixels = read().data
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
            audit.notes.update(packed.notes)
            audit.warnings += [f"{picture.path}: {note}" for note in packed.notes if note.startswith("animated")]
    return usable, packing


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
        }
    ).replace_schema_metadata(packing)
    files = PrepareFolder(folder)
    files.pixels_digest.unlink(missing_ok=True)
    with replacing(files.pixels_index) as part:
        pq.write_table(index, part)
    write_text(files.pixels_digest, f"{sha256_of(files.pixels_index)}\n")


def _raw_size(job: _Job) -> int:
    """The bytes that a picture takes uncompressed, from its header alone; 0 for a file that cannot be read."""
    try:
        with Image.open(job.root / job.picture.path) as image:
            width, height = image.size
    except Exception:  # _decode gives the reason
        return 0
    short = min(width, height)
    scale = job.short_side / short if short > RESIZE_ABOVE * job.short_side else 1.0
    return round(width * scale) * round(height * scale) * 3


def _decode(job: _Job) -> tuple[PackedPicture, bytes] | str:
    """The picture, without its span, and the bytes to store; or why it cannot be used."""
    try:
        decoded = decode(job.root / job.picture.path, job.short_side, job.max_megapixels)
    except Unusable as reason:
        return str(reason)
    width, height = decoded.image.size
    pixels = encode(decoded.image, job.jpeg_quality)
    digest = hashlib.sha256(pixels).digest()
    packed = PackedPicture(
        job.picture,
        (0, 0),
        height,
        width,
        decoded.height,
        decoded.width,
        *fingerprint(decoded.image),
        decoded.notes,
        digest,
    )
    return packed, pixels


def _map(function: Callable[[_Job], Any], jobs: list[_Job], threads: int) -> Iterator[Any]:
    """``map`` in threads, with a bounded number of results waiting. Threads are enough: Pillow decodes, resizes and encodes
    without holding Python's lock."""
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) > 8 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _packing(settings: Prepare, quality: int | None) -> dict[bytes, bytes]:
    """All that the stored pixels of a picture depend on, beside its file."""
    packing = {
        "code": code_of("headstart.data.decode"),
        "short_side": settings.short_side,
        "max_megapixels": settings.max_megapixels,
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
            packed = PackedPicture(
                Picture("", ""), (0, 0), row["height"], row["width"], row["original_height"], row["original_width"],
                row["phash"], row["thumbnail"], tuple(row["notes"]), row["digest"],
            )  # fmt: skip
            found[row["sha256"]] = packed, partial(pixels.raw, number)
    if len(found) < len(rows):
        say_damaged(f"{files.pixels} ({len(rows) - len(found)} of {len(rows)} pictures)")
    return found
