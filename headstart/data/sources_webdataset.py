"""WebDataset as a source: tar files in which KEY.jpg lies beside KEY.cls, KEY.json or KEY.txt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.paths import users_path
from headstart.base.sections import Data
from headstart.data.archives import Entry, lands_outside, tar_entries
from headstart.data.in_place import File, Place
from headstart.data.picture import InPlace, Listing, Picture, Source
from headstart.data.shards import Shards, files_of, holds_shards, in_splits, last_look, look_through, place_of, split_of
from headstart.data.sources_folder import HIDDEN, NO_TEXT

PICTURES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff", "avif", "jp2")
LABELS = ("cls", "json", "txt")  # the first that has the label counts
IN_JSON = ("label", "cls", "class", "class_name")
LARGEST_LABEL, LONGEST_NAME = 1 << 20, 200  # bytes of a file with a label, characters of the label
ENTRIES_TO_TELL = 4  # at the beginning of a tar, after which it is clear what it is


class WebDataset(Source):
    """A folder of .tar files, or one .tar file, whose pictures are read where they are."""

    form = "an existing folder of .tar shards (WebDataset)"

    def takes(self, source: str) -> bool:
        path = users_path(source)
        if path.is_file() and path.suffix.lower() == ".tar":
            return is_webdataset(Place(str(path.parent)), path.name)
        return path.is_dir() and holds_shards(path, ".tar")

    def listing(self, data: Data) -> Listing:
        path = users_path(data.source)
        return list_tars(place_of(path), files_of(path, ".tar"))

    def root(self, data: Data) -> Path | InPlace:
        known = last_look(place_of(users_path(data.source)))
        return self.listing(data).root if known is None else TarMembers.of(known)


@dataclass(frozen=True)
class TarMembers(InPlace):
    """The pictures in tar files.

    Attributes:
        members: shard, offset and size of each, by path.
    """

    place: Place
    members: dict[str, tuple[str, int, int]] = field(repr=False)

    @classmethod
    def of(cls, shards: Shards) -> TarMembers:
        return cls(
            shards.place,
            {f"{shard}/{name}": (shard, at, size) for shard, found in shards.found.items() for name, _, at, size in found},
        )

    def __str__(self) -> str:
        return str(self.place)

    @property
    def is_everywhere(self) -> bool:
        return self.place.is_everywhere

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if path not in self.members:
            raise HeadstartError(f"{self.place}: {path} has changed since it was listed; run `dvc repro` again")
        shard, offset, size = self.members[path]
        first, last = min(start or 0, size), size if end is None else min(end, size)
        return self.place.read(shard, offset + first, offset + last) if last > first else b""


def list_tars(place: Place, files: Mapping[str, File]) -> Listing:
    """The pictures in the shards of a place.

    Raises:
        HeadstartError: a shard is damaged, or something in it is no sample of a picture with its label.
    """
    shards = look_through(place, files, _samples)
    pictures, stamps = [], {}
    for shard, found in shards.found.items():
        stamp, split = files[shard].stamp, split_of(shard)
        for name, label, offset, size in found:
            pictures.append(Picture(f"{shard}/{name}", label, split, size=size))
            stamps[f"{shard}/{name}"] = stamp and f"{stamp} {offset}"
    return Listing(TarMembers.of(shards), in_splits(pictures, place), stamps)


def is_webdataset(place: Place, shard: str) -> bool:
    """Whether a tar begins with samples: files with one key, of which one is a picture and another its label."""
    kinds: dict[str, set[str]] = {}
    try:
        with place.open(shard) as stream:
            for entry, _ in zip(_visible(tar_entries(stream)), range(ENTRIES_TO_TELL), strict=False):
                key, kind = _key_and_kind(entry)
                kinds.setdefault(key, set()).add("picture" if _is_picture(kind) else kind)
    except Exception:  # damaged, of which whoever reads it speaks
        return False
    return any("picture" in found and not found.isdisjoint(LABELS) for found in kinds.values())


def _samples(place: Place, shard: str, file: File) -> list[tuple[str, str, int, int]]:
    """Name, label, offset and size of each picture in a shard."""
    where = f"{place}: {shard}"
    pictures: dict[str, Entry] = {}
    texts: dict[str, dict[str, bytes]] = {}
    try:
        with place.open(shard) as stream:
            for entry in _visible(tar_entries(stream)):
                _check(entry, file, where)
                key, kind = _key_and_kind(entry)
                if _is_picture(kind):
                    if key in pictures:
                        both = f"{str(pictures[key].path)!r} and {str(entry.path)!r}"
                        raise HeadstartError(f"{where} has {both}, two pictures with one key; keep one of them")
                    pictures[key] = entry
                elif kind in LABELS and entry.content is not None:
                    texts.setdefault(key, {})[kind] = _text(entry, where)
    except HeadstartError:
        raise
    except Exception as error:  # tarfile raises many kinds of errors on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise HeadstartError(f"{where} cannot be read ({reason}); is it a whole, uncompressed tar?") from None
    for key in texts.keys() - pictures.keys():
        raise HeadstartError(f"{where} has a label of the key {key[:80]!r} and no picture; add it, or take the label away")
    return [
        (entry.path.as_posix(), _label(texts.get(key, {}), f"{where}, key {key[:80]!r}"), entry.offset, entry.size)
        for key, entry in pictures.items()
    ]


def _visible(entries: Iterable[Entry]) -> Iterable[Entry]:
    """Those that are no folders and not hidden."""
    for entry in entries:
        hidden = any(part.startswith(HIDDEN) for part in entry.path.parts if part != "..")
        if (entry.content or entry.twin or entry.odd) and not hidden:
            yield entry


def _key_and_kind(entry: Entry) -> tuple[str, str]:
    """a/b and seg.png of a/b.seg.png."""
    stem, _, kind = entry.path.name.partition(".")
    return (entry.path.parent / stem).as_posix(), kind.lower()


def _is_picture(kind: str) -> bool:
    return kind.rpartition(".")[2] in PICTURES


def _check(entry: Entry, file: File, where: str) -> None:
    odd = entry.odd
    if lands_outside(entry.path):
        odd = "would land outside its folder"
    elif entry.twin is not None:
        odd = "is the second name of another"
    elif entry.offset < 0:
        odd = "is a sparse file"
    elif file.size and entry.offset + entry.size > file.size:
        odd = "is cut short"
    if odd:
        raise HeadstartError(f"{where}: the entry {str(entry.path)[:80]!r} {odd}; make the shard again")


def _text(entry: Entry, where: str) -> bytes:
    if entry.size > LARGEST_LABEL:
        raise HeadstartError(f"{where}: {str(entry.path)[:80]!r} has {entry.size:,} bytes, too many for a label")
    assert entry.content is not None
    with entry.content() as content:
        return content.read()


def _label(texts: dict[str, bytes], where: str) -> str:
    """The label that the files beside a picture give.

    Raises:
        HeadstartError: they give none.
    """
    for kind in LABELS:
        try:
            text = texts.get(kind, b"").decode().strip()
            label: Any = json.loads(text) if kind == "json" and text else text
        except (ValueError, RecursionError):
            raise HeadstartError(f"{where}: its .{kind} cannot be read; make the shard again") from None
        if isinstance(label, dict):
            label = next((label[name] for name in IN_JSON if name in label), "")
        if isinstance(label, int | str) and not isinstance(label, bool) and str(label).strip():
            name = str(label).strip()
            if len(name) > LONGEST_NAME or NO_TEXT.search(name):
                raise HeadstartError(f"{where}: its .{kind} is a longer text and no label; put the class into a .cls")
            return name
    raise HeadstartError(
        f"{where}: the picture has no label; put the class into a .cls, a .txt, or a .json with {' or '.join(IN_JSON)}"
    )
