"""The stage fetch: list the pictures to learn from, corrected and hashed, and take along what else shapes the result."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, replacing, sha256_of, write_json, write_text
from headstart.base.identity import write_code
from headstart.base.params import Data, Params
from headstart.base.paths import network_file, state_folder, weights_file
from headstart.data.corrections import corrected
from headstart.data.picture import Listing, Picture
from headstart.data.sources import locate

PREDICTED = {"image", "split", "label", "predicted", "probability"}  # columns of tables that have one for each class too


COLUMNS = ("path", "label", "split", "group", "size", "sha256")


def fetch(data: Data, manifest: Path) -> list[Picture]:
    """List the source's pictures, correct them as the user asks, hash what is new or touched, and write ``manifest`` (CSV).

    The same pictures give the same bytes, whatever their times on disk.

    Raises:
        HeadstartError: the source is unknown, empty, has fewer than two classes, or cannot be reached; or the user's
            corrections are not as they should be.
    """
    listing = locate(data)
    if not listing.pictures:
        raise HeadstartError(
            f"data.source {data.source!r} holds no files in class folders; expected one folder per class ({listing.root})"
        )
    pictures = _hashed(Listing(listing.root, corrected(listing.pictures, data)), data.source)
    labels = {picture.label for picture in pictures}
    if len(labels) < 2:
        has = f"one class only ({labels.pop()!r})" if labels else "no class"
        left = f"{has}, as data.exclude and data.relabel leave it" if data.exclude or data.relabel else has
        raise HeadstartError(f"data.source {data.source!r} has {left}; at least two are needed")
    if taken := labels & PREDICTED:
        raise HeadstartError(
            f"data.source {data.source!r} has a class called {min(taken)!r}, as a column of the answers is called that "
            "have one for each class too; rename the class"
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
    """Fill in size and SHA-256; a file whose size and time are as last seen is not read again."""
    index_file = state_folder("hashes") / f"{hashlib.sha256(f'{source} {listing.root}'.encode()).hexdigest()[:16]}.json"
    try:
        known: dict[str, list[Any]] = read_json(index_file)
    except (OSError, json.JSONDecodeError):
        known = {}
    seen: dict[str, list[Any]] = {}
    pictures = []
    for picture in listing.pictures:
        path = listing.root / picture.path
        try:
            stat = path.stat()
            entry = known.get(picture.path)
            if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
                entry = [stat.st_size, stat.st_mtime_ns, sha256_of(path)]
        except OSError as error:
            raise HeadstartError(f"{path} cannot be read: {error.strerror}; mend its permissions or move it away") from None
        seen[picture.path] = entry
        pictures.append(Picture(picture.path, picture.label, picture.split, picture.group, entry[0], entry[2]))
    if seen != known:
        write_json(index_file, seen)
    return pictures


def _first_of_each_class(pictures: list[Picture], limit: int) -> list[Picture]:
    """At most ``limit`` pictures per class (and per given split), picked by digest so that no order is favoured."""
    taken: dict[tuple[str, str], int] = {}
    chosen = set()
    for picture in sorted(pictures, key=lambda picture: (picture.sha256, picture.path)):
        key = (picture.label, picture.split)
        if taken.get(key, 0) < limit:
            taken[key] = taken.get(key, 0) + 1
            chosen.add(picture.path)
    return [picture for picture in pictures if picture.path in chosen]


def run(params: Params, data: Path) -> None:
    """Write the manifest of the user's pictures, their own network, the digest of their weights, and every stage's code."""
    folder = data / "fetch"
    pictures = fetch(params.data, folder / "manifest.csv")
    own = network_file(params.backbone)
    with replacing(folder / "network.py") as part:
        part.write_bytes(own.read_bytes() if own else b"# backbone is not a file of the user's own\n")
    weights = weights_file(params.weights)
    write_text(folder / "weights.sha256", f"{sha256_of(weights) if weights else 'not a file'}\n")
    write_code(data)
    print(f"{len(pictures)} pictures in {len({p.label for p in pictures})} classes from {params.data.source}")
