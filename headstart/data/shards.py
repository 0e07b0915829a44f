"""Files that hold many pictures each: what the kinds of them have in common as sources."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.kept import read_kept, write_kept
from headstart.base.paths import state_folder
from headstart.data.in_place import File, Place
from headstart.data.picture import Picture
from headstart.data.sources_folder import HIDDEN, NO_TEXT, SPLIT_NAMES, files_below, with_test_split

BESIDE = (".txt", ".md", ".json", ".jsonl", ".yaml", ".yml", ".idx", ".py")  # what may lie beside shards
SHARDS_AT_ONCE = 4


@dataclass(frozen=True)
class Shards:
    """A set of shards, and where they are.

    Attributes:
        found: what was found in each, as it is kept from run to run.
        files: what a listing says of each; empty where there was none in this run.
    """

    place: Place
    found: dict[str, Any]
    files: Mapping[str, File]


def shards_among(names: Iterable[str], suffix: str) -> list[str]:
    """The names that end with ``suffix``, if there is nothing beside them but texts and what is hidden; else none."""
    shards = []
    for name in names:
        if any(part.startswith(HIDDEN) for part in name.split("/")):
            continue
        if name.lower().endswith(suffix):
            shards.append(name)
        elif not name.lower().endswith(BESIDE):
            return []
    return shards


def holds_shards(folder: Path, suffix: str) -> bool:
    """Whether a folder of this machine holds shards, and nothing else but texts."""
    return bool(shards_among(_names_below(folder), suffix))


def place_of(path: Path) -> Place:
    """Where the shards are that a folder of this machine holds, or the one that is a file."""
    return Place(str(path.parent if path.is_file() else path))


def files_of(path: Path, suffix: str) -> dict[str, File]:
    """The shards in ``place_of(path)``, with what its listing says of each."""
    names = [path.name] if path.is_file() else shards_among(_names_below(path), suffix)
    files = place_of(path).files()
    return {name: files[name] for name in names}


def _names_below(folder: Path) -> Iterator[str]:
    return (file.relative_to(folder).as_posix() for file in files_below(folder))


def look_through(place: Place, files: Mapping[str, File], look: Callable[[Place, str, File], Any]) -> Shards:
    """Look through each shard that is new or has changed.

    Args:
        files: the shards.
        look: what is in a shard, as JSON can hold it.

    Raises:
        HeadstartError: as ``look`` does.
    """
    known = read_kept(_kept(place)) or {}
    found = {
        shard: known[shard]["found"]
        for shard, file in files.items()
        if file.stamp and known.get(shard, {}).get("stamp") == file.stamp
    }
    new = [shard for shard in files if shard not in found]
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        found |= dict(zip(new, pool.map(lambda shard: look(place, shard, files[shard]), new), strict=True))
    current = {shard: {"stamp": file.stamp, "found": found[shard]} for shard, file in files.items()}
    if current != known:
        write_kept(_kept(place), current)
    return Shards(place, found, files)


def last_look(place: Place) -> Shards | None:
    """What ``look_through`` found the last time; None where that is not known."""
    kept = read_kept(_kept(place))
    return None if kept is None else Shards(place, {shard: one["found"] for shard, one in kept.items()}, {})


def in_splits(pictures: list[Picture], place: Place) -> list[Picture]:
    """The pictures of all shards in order, each in the split that the name of its shard says.

    Raises:
        HeadstartError: only some are in a split, none is to learn from, or a name is no proper text.
    """
    if not pictures:
        raise HeadstartError(f"{place} holds no pictures")
    splits = {picture.split for picture in pictures}
    if "" in splits and len(splits) > 1:
        raise HeadstartError(
            f"{place}: some shards are called train, val or test and others are not; rename them, or take them away"
        )
    if splits != {""} and "train" not in splits:
        raise HeadstartError(
            f"{place} has shards for {' and '.join(sorted(splits))} and none for train; add or rename some"
        )
    for picture in pictures:
        if NO_TEXT.search(picture.path):
            raise HeadstartError(f"{place} has a picture whose name is no proper text, {picture.path!a}; rename it")
    return sorted(with_test_split(pictures), key=lambda picture: picture.path)


def split_of(shard: str) -> str:
    """The split that a shard's path names (train-0001.tar, val/0001.tar); empty where it names none."""
    words = re.split("[^a-z]+", shard.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _kept(place: Place) -> Path:
    return state_folder("shards") / f"{hashlib.sha256(str(place).encode()).hexdigest()[:16]}.json"
