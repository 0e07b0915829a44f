"""The stage fetch: list and hash the pictures, with the user's corrections, and copy the user's own network."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, sha256_of, write_text
from headstart.base.identity import write_code
from headstart.base.kept import read_kept, write_kept
from headstart.base.params import Data, Params
from headstart.base.paths import network_file, state_folder, weights_file
from headstart.base.terminal import say
from headstart.data.corrections import corrected
from headstart.data.picture import Listing, Picture
from headstart.data.sources import locate

# Columns of predictions, which also have one column per class.
RESERVED = {"image", "split", "label", "predicted", "probability"}

COLUMNS = ("path", "label", "split", "group", "size", "sha256")


def fetch(data: Data, manifest: Path) -> list[Picture]:
    """List the source's pictures with the user's corrections, hash those that are new or changed, and write ``manifest``
    (CSV).

    The same pictures give the same bytes, whatever their times on disk.

    Raises:
        HeadstartError: the source is unknown, empty, has fewer than two classes, or cannot be reached; or a table of
            corrections is wrong.
    """
    listing = locate(data)
    if not listing.pictures:
        raise HeadstartError(
            f"data.source {data.source!r} holds no files in class folders; expected one folder per class ({listing.root})"
        )
    pictures = _hashed(Listing(listing.root, corrected(listing.pictures, data)), data.source)
    labels = {picture.label for picture in pictures if picture.sha256}
    if len(labels) < 2:
        classes = f"one class only ({labels.pop()!r})" if labels else "no class"
        after = " after data.exclude and data.relabel" if data.exclude or data.relabel else ""
        raise HeadstartError(f"data.source {data.source!r} has {classes}{after}; at least two are needed")
    if reserved := labels & RESERVED:
        raise HeadstartError(
            f"data.source {data.source!r} has a class called {min(reserved)!r}, which is also the name of a column of the "
            "predictions; rename the class"
        )
    if data.limit:
        pictures = _first_of_each_class(pictures, data.limit)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([p.path, p.label, p.split, p.group, p.size, p.sha256] for p in pictures)
    write_text(manifest, text.getvalue())
    return pictures


def read_manifest(path: Path) -> list[Picture]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [Picture(**(row | {"size": int(row["size"])})) for row in csv.DictReader(stream)]  # type: ignore[arg-type]


def _hashed(listing: Listing, source: str) -> list[Picture]:
    """The pictures with size and SHA-256, without digest where a link leads nowhere. A file whose size and times have not
    changed is not read again."""
    index_file = state_folder("hashes") / f"{hashlib.sha256(f'{source} {listing.root}'.encode()).hexdigest()[:16]}.json"
    known: dict[str, list[Any]] = read_kept(index_file) or {}
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
        pictures.append(Picture(picture.path, picture.label, picture.split, picture.group, entry[0], entry[-1]))
    if current != known:
        write_kept(index_file, current)
    return pictures


def _first_of_each_class(pictures: list[Picture], limit: int) -> list[Picture]:
    """At most ``limit`` pictures per class and split of the source, chosen by digest and so regardless of their names."""
    counts: Counter[tuple[str, str]] = Counter()
    chosen = set()
    for picture in sorted(pictures, key=lambda picture: (picture.sha256, picture.path)):
        key = (picture.label, picture.split)
        if counts[key] < limit:
            counts[key] += bool(picture.sha256)  # a link that leads nowhere takes no picture's place
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
    say(f"{len(pictures)} pictures in {len({p.label for p in pictures})} classes from {params.data.source}")
