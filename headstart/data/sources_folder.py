"""A folder of classes as a source."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.paths import users_path
from headstart.base.sections import Data
from headstart.data.picture import Listing, Picture, Source

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

HIDDEN = (".", "__MACOSX", "Icon\r")  # the last is where macOS keeps a folder's icon

MOST_WAYS, DEEPEST = 100, 100

NO_TEXT = re.compile("[\x00-\x1f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


class Folder(Source):
    """A folder of classes, or of train, val and test folders that hold the classes."""

    form = "an existing folder of classes"

    def takes(self, source: str) -> bool:
        return users_path(source).is_dir()

    def listing(self, data: Data) -> Listing:
        return list_folder(users_path(data.source))


def list_folder(root: Path) -> Listing:
    """The pictures of a folder of classes, or of train, val and test folders of classes, without hidden files and folders.

    Raises:
        HeadstartError: it holds files but no class folders, or it mixes classes with split folders.
    """
    root = unwrapped(root)
    top = _subfolders(root)
    for entry in _visible(root):
        if entry.name.lower() in SPLIT_NAMES and _leads_nowhere(entry):
            raise HeadstartError(f"{entry.path} is a link that leads nowhere; mend or remove it")
    splits = _splits_of(root, top, lambda name: bool(_subfolders(root / name)))
    parts = [(root / name, split) for name, split in splits.items()] or [(root, "")]
    pictures = [
        Picture(file.relative_to(root).as_posix(), label, split) for part, split in parts for label, file in _labelled(part)
    ]
    if not any(map(_subfolders, (part for part, _ in parts))) and any(files_below(root)):
        raise _no_classes(root)
    return Listing(root, _in_order(pictures, root))


def list_names(names: Iterable[str], where: str) -> tuple[str, list[Picture]]:
    """The same of files that are known by their paths below ``where`` alone: the folder that is stepped into, if one is
    around everything, and the pictures with their paths from there.

    Raises:
        HeadstartError: as ``list_folder``.
    """
    visible = [name.split("/") for name in names if not any(part.startswith(HIDDEN) for part in name.split("/"))]
    folders: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in visible:
        for depth, folder in enumerate(parts[:-1]):
            folders[tuple(parts[:depth])].add(folder)
    root: tuple[str, ...] = ()
    while len(folders[root]) == 1 and SPLIT_NAMES.keys().isdisjoint(map(str.lower, folders[root])):
        inner = (*root, *folders[root])
        if not folders[inner]:
            break
        root = inner
    splits = _splits_of(where, sorted(folders[root]), lambda name: bool(folders[(*root, name)]))
    pictures = []
    for parts in visible:
        below = parts[len(root) :] if tuple(parts[: len(root)]) == root else []
        at = 1 if splits else 0  # where the class stands
        if len(below) > at + 1:
            pictures.append(Picture("/".join(below), below[at], splits.get(below[0], "")))
    if visible and not pictures:
        raise _no_classes(where)
    return "/".join(root), _in_order(pictures, where)


def _splits_of(root: object, top: list[str], holds_folders: Callable[[str], bool]) -> dict[str, str]:
    """The split of each folder in ``root`` that is for one; none where they are classes.

    Args:
        top: the names of all folders in ``root``.

    Raises:
        HeadstartError: classes and splits are mixed.
    """
    splits = {name: SPLIT_NAMES[name.lower()] for name in top if name.lower() in SPLIT_NAMES}
    others = [name for name in top if name not in splits]
    splits_hold_classes = any(map(holds_folders, splits))
    others_look_like_splits = any(name.lower().startswith(tuple(SPLIT_NAMES)) for name in others)  # test1, test_set, ...
    # Otherwise a class is called train.
    if "train" in splits.values() and (splits_hold_classes or others_look_like_splits or not others):
        if others:
            raise HeadstartError(
                f"{root} has split folders ({', '.join(splits)}) and others beside them ({', '.join(others[:3])}); "
                "move the classes into the split folders"
            )
        return splits
    if splits_hold_classes:
        raise HeadstartError(
            f"{root} has class folders in {', '.join(splits)} and no train folder beside; add or rename it"
        )
    return {}


def _in_order(pictures: list[Picture], root: object) -> list[Picture]:
    for picture in pictures:
        if NO_TEXT.search(picture.path):
            raise HeadstartError(f"{root} has a file whose name is no proper text, {picture.path!a}; rename it")
    return sorted(with_test_split(pictures), key=lambda picture: picture.path)


def _no_classes(root: object) -> HeadstartError:
    return HeadstartError(f"{root} holds files but no class folders; put each class's pictures in a folder of its own")


def with_test_split(pictures: list[Picture]) -> list[Picture]:
    """The pictures with val renamed to test where there is no test split, and with no split where all are in train.

    Data sets that come with train and val only are reported on val; validation pictures are then cut out of train.
    """
    splits = {picture.split for picture in pictures}
    renamed = {"val": "test"} if splits == {"train", "val"} else {"train": ""} if splits == {"train"} else {}
    return [replace(picture, split=renamed.get(picture.split, picture.split)) for picture in pictures]


def unwrapped(root: Path) -> Path:
    """The first folder from ``root`` downwards that holds more than one folder: archives often wrap everything in one, with
    a README beside it."""
    while True:
        folders = _subfolders(root)
        if len(folders) != 1 or folders[0].lower() in SPLIT_NAMES or not _subfolders(root / folders[0]):
            return root
        if any(map(_leads_nowhere, _visible(root))):  # to what may be another class
            return root
        root = root / folders[0]


def files_below(folder: Path, ancestors: tuple[Path, ...] = (), ways: Counter[Path] | None = None) -> Iterator[Path]:
    """All files below ``folder`` in order of their names, without hidden files and what is in hidden folders. Links that
    lead nowhere count as files: they may have been pictures.

    Links to folders are followed, unless they lead to one of the folders that they are in (``ancestors``).

    Args:
        ways: how often each folder has been come to; there are n! ways through n folders with links to all others.

    Raises:
        HeadstartError: a folder cannot be read, is too deep, or links lead to it in too many ways.
    """
    ways = Counter() if ways is None else ways
    ancestors = (*ancestors, folder.resolve())
    ways[ancestors[-1]] += 1
    if ways[ancestors[-1]] > MOST_WAYS:
        raise HeadstartError(f"links lead to {ancestors[-1]} in more than {MOST_WAYS} ways; remove links between folders")
    if len(ancestors) > DEEPEST:
        raise HeadstartError(f"folders are more than {DEEPEST} deep in each other at {folder}; move the pictures up")
    for entry in _visible(folder):
        if _leads_nowhere(entry):
            yield Path(entry.path)
        elif entry.is_dir():
            if Path(entry.path).resolve() not in ancestors:
                yield from files_below(Path(entry.path), ancestors, ways)
        elif entry.is_file():
            yield Path(entry.path)


def _labelled(part: Path) -> Iterator[tuple[str, Path]]:
    """The files in class folders, each with its class. A link that leads nowhere may have led to such a folder."""
    for entry in _visible(part):
        if _leads_nowhere(entry):
            yield entry.name, Path(entry.path)
        elif entry.is_dir():
            for file in files_below(Path(entry.path)):
                yield entry.name, file


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to nothing, or to itself."""
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - Path's own raises for a circle of links


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(HIDDEN)), key=lambda e: e.name)
    except OSError as error:
        raise HeadstartError(f"{folder} cannot be read: {error.strerror}") from None


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if not _leads_nowhere(entry) and entry.is_dir()]


def named_files(given: list[Path]) -> list[Path]:
    """Files, those below folders, and for "-" those that standard input names, by line or with zero bytes between them.

    Raises:
        HeadstartError: one is not there, or there are none.
    """
    files: list[Path] = []
    for path in given:
        if path == Path("-"):
            listed = os.fsdecode(sys.stdin.buffer.read())
            files += [Path(name) for name in listed.split("\0" if "\0" in listed else "\n") if name]  # find -print0
        elif os.path.isdir(path):  # noqa: PTH112 - Path's own raises for a name that is too long
            files += files_below(path)
        elif os.path.exists(path):  # noqa: PTH110
            files.append(path)
        else:
            raise HeadstartError(f"{path} is not there")
    if not files:
        raise HeadstartError(f"no pictures in {', '.join(map(str, given))}")
    return files
