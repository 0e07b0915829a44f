"""The stage fetch: list and hash the pictures, with the user's corrections, and copy the user's own network."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError, some
from headstart.base.files import replacing, sha256_of, write_text
from headstart.base.identity import write_code
from headstart.base.kept import read_kept, write_kept
from headstart.base.params import Params
from headstart.base.paths import network_file, state_folder, weights_file
from headstart.base.progress import progress
from headstart.base.sections import Data
from headstart.base.terminal import say
from headstart.data.corrections import corrected, grouped
from headstart.data.picture import LARGEST, READS_AT_ONCE, InPlace, Listing, Picture, classes_of, is_multi_label, names_in
from headstart.data.sources import locate

# Columns of predictions, which also have one column per class.
RESERVED = {"image", "split", "label", "predicted", "probability", "unfamiliar", "nearest"}

PAUSE = 30.0  # seconds between two records of what is hashed so far
AT_ONCE = 512  # pictures

COLUMNS = ("path", "label", "split", "group", "size", "sha256")
MULTI_LABEL_COLUMNS = tuple("labels" if column == "label" else column for column in COLUMNS)


def fetch(data: Data, manifest: Path) -> list[Picture]:
    """List the source's pictures with the user's corrections, hash those that are new or changed, and write ``manifest``
    (CSV).

    The same pictures give the same bytes, whatever their times on disk.

    Raises:
        HeadstartError: the source is unknown, empty, has too few classes, or cannot be reached; or a table of
            corrections is wrong.
    """
    listing = locate(data)
    if not listing.pictures:
        raise HeadstartError(
            f"data.source {data.source!r} holds no files in class folders; expected one folder per class ({listing.root})"
        )
    listing = replace(listing, pictures=corrected(grouped(listing.pictures, data.group), data))
    pictures = _hashed(listing, data.source)
    check_classes([picture for picture in pictures if picture.sha256], data, is_multi_label(listing.pictures))
    if data.limit:
        pictures = _first_of_each_class(pictures, data.limit)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MULTI_LABEL_COLUMNS if is_multi_label(pictures) else COLUMNS)
    writer.writerows([p.path, p.label, p.split, p.group, p.size, p.sha256] for p in pictures)
    write_text(manifest, text.getvalue())
    return pictures


def read_manifest(path: Path) -> list[Picture]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [_of_row(row) for row in csv.DictReader(stream)]


def _of_row(row: dict[str, Any]) -> Picture:
    labels = row.pop("labels", None)
    picture = Picture(**{"label": ""} | row | {"size": int(row["size"])})
    return picture if labels is None else picture.with_labels(names_in(labels))


def check_classes(pictures: list[Picture], data: Data, several: bool) -> None:
    """Whether the pictures have classes that can be learned.

    Args:
        several: whether the set is a multi-label one, also if no picture of it is left.

    Raises:
        HeadstartError: there are too few, or one has a name that it cannot have.
    """
    classes, after = classes_of(pictures), " after data.exclude and data.relabel" if data.exclude or data.relabel else ""
    reserved = classes & RESERVED
    if several:
        reserved |= classes & {"labels", "unsure", "(none)"}  # the last is what predictions and figures call no class
        _check_labels(pictures, f"data.source {data.source!r}{after}", data.label_separator)
    elif len(classes) < 2:
        found = f"one class only ({min(classes)!r})" if classes else "no class"
        raise HeadstartError(f"data.source {data.source!r} has {found}{after}; at least two are needed")
    if reserved:
        raise HeadstartError(
            f"data.source {data.source!r} has a class called {min(reserved)!r}, which has a meaning of its own in the "
            "predictions; rename the class"
        )


def _check_labels(pictures: list[Picture], source: str, separator: str) -> None:
    """Whether a multi-label set has anything to learn: a class that some pictures have and others have not.

    Raises:
        HeadstartError: it has not.
    """
    counts = Counter(name for picture in pictures for name in picture.classes)
    if not counts:
        raise HeadstartError(f"no picture of {source} has a label; at least one class is needed")
    if len(pictures) > 1 and min(counts.values()) == len(pictures):
        raise HeadstartError(
            f"every picture of {source} has the same labels ({some(map(repr, sorted(counts)))}); pictures without them are "
            "needed too, or there is nothing to tell apart"
        )
    if max(counts.values()) < 2:
        raise HeadstartError(
            f"no class of {source} has two pictures ({some(map(repr, sorted(counts)))}); at least one is needed that has; "
            f"in a table, is data.label_separator, {separator!r}, what stands between the names?"
        )


def _hashed(listing: Listing, source: str) -> list[Picture]:
    """The pictures with size and SHA-256, without digest where a link leads nowhere. A file whose size and times have not
    changed is not read again, and neither is a picture elsewhere that has the stamp of the last time."""
    index_file = state_folder("hashes") / f"{hashlib.sha256(f'{source} {listing.root}'.encode()).hexdigest()[:16]}.json"
    known: dict[str, list[Any]] = read_kept(index_file) or {}
    if isinstance(listing.root, InPlace):
        return _hashed_in_place(listing, listing.root, index_file, known)
    current: dict[str, list[Any]] = {}
    pictures = []
    for picture in listing.pictures:
        path = listing.root / picture.path
        try:
            stat = path.stat()
            entry = known.get(picture.path)
            seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]  # the last also where cp -p gave it its old time
            if entry is None or entry[:-1] != seen:
                entry = [*seen, sha256_of(path)]
        except OSError as error:
            if path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                pictures.append(picture)
                continue
            raise HeadstartError(f"{path} cannot be read: {error.strerror}; mend its permissions or move it away") from None
        current[picture.path] = entry
        pictures.append(replace(picture, size=entry[0], sha256=entry[-1]))
    if current != known:
        write_kept(index_file, current)
    return pictures


def _hashed_in_place(listing: Listing, root: InPlace, index_file: Path, known: dict[str, list[Any]]) -> list[Picture]:
    """The same where reading is slow: many at once, and what is read before a kill or an error counts."""
    current: dict[str, list[Any]] = {}
    for picture in listing.pictures:
        stamp, entry = listing.stamps[picture.path], known.get(picture.path)
        if stamp and entry and entry[1] == stamp:
            current[picture.path] = entry
    new = [picture for picture in listing.pictures if picture.path not in current]
    last, pause = time.monotonic(), PAUSE
    try:
        shown = progress("fetch", len(new)) if new else nullcontext(lambda count=1: None)
        with shown as advance, ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for start in range(0, len(new), AT_ONCE):
                some_new = new[start : start + AT_ONCE]
                for picture, digest in zip(some_new, pool.map(partial(_digest, root), some_new), strict=True):
                    current[picture.path] = [digest[0], listing.stamps[picture.path], digest[1]]
                    advance()
                if time.monotonic() - last > pause:
                    start_writing = time.monotonic()
                    write_kept(index_file, current)
                    last = time.monotonic()
                    pause = max(PAUSE, 20 * (last - start_writing))  # at most a twentieth of the time goes into it
    finally:
        if current != known:
            write_kept(index_file, current)
    return [
        replace(picture, size=current[picture.path][0], sha256=current[picture.path][-1]) for picture in listing.pictures
    ]


def _digest(root: InPlace, picture: Picture) -> tuple[int, str]:
    """Size and SHA-256 of a picture."""
    if picture.size <= LARGEST:
        content = root.read(picture.path)
        return len(content), hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()  # a film, say
    for start in range(0, picture.size, LARGEST):
        digest.update(root.read(picture.path, start, min(start + LARGEST, picture.size)))
    return picture.size, digest.hexdigest()


def _first_of_each_class(pictures: list[Picture], limit: int) -> list[Picture]:
    """At most ``limit`` pictures per class and split of the source, chosen by digest and so regardless of their names.

    A picture with several labels is taken if one of them has too few pictures yet, so that common classes may get more.
    Pictures without a label count as a class of their own.
    """
    counts: Counter[tuple[str, str]] = Counter()
    chosen = set()
    for picture in sorted(pictures, key=lambda picture: (picture.sha256, picture.path)):
        keys = [(name, picture.split) for name in picture.classes or ("",)]
        if any(counts[key] < limit for key in keys):
            counts.update(keys if picture.sha256 else ())  # a link that leads nowhere takes no picture's place
            chosen.add(picture.path)
    return [picture for picture in pictures if picture.path in chosen]


def run(params: Params, data: DataFolder) -> None:
    """Write the manifest of the pictures, the user's own network, the digest of their weights, and every stage's code."""
    folder = data.fetch
    pictures = fetch(params.data, folder.manifest)
    own = network_file(params.backbone)
    with replacing(folder.network) as part:
        part.write_bytes(own.read_bytes() if own else b"# backbone is not a file of the user's own\n")
    weights = weights_file(params.weights)
    write_text(folder.weights_digest, f"{sha256_of(weights) if weights else 'not a file'}\n")
    write_code(data)
    say(f"{len(pictures)} pictures in {len(classes_of(pictures))} classes from {params.data.source}")
