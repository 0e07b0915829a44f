"""A COCO annotation file as a source of a multi-label set."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.paths import users_path
from headstart.base.safe_text import quoted, shortened
from headstart.base.sections import Data
from headstart.data.picture import Listing, Picture, Source
from headstart.data.sources_folder import NO_TEXT
from headstart.data.sources_table import relative_file
from headstart.data.user_tables import LONGEST_CELL, MOST_ROWS, check_name, composed

MOST_BYTES = 2e9  # of the file; read, it takes several times its size of memory


class Coco(Source):
    """A .json with images, categories and annotations, as COCO and most labelling tools write them.

    The labels of a picture are the categories annotated in it; where they are in the picture is not looked at.
    """

    form = "an existing .json in COCO's format"

    def takes(self, source: str) -> bool:
        path = users_path(source)
        return path.suffix.lower() == ".json" and path.is_file()

    def listing(self, data: Data) -> Listing:
        path = users_path(data.source)
        files, labels = annotated(path)
        root = _root(path, *next(iter(files.values())))
        pictures, first = [], dict[str, str]()
        for number, (place, file) in files.items():
            relative = relative_file(root, file)
            if relative is None:
                raise HeadstartError(f"{path}, {place}: {quoted(file)} is not there; paths are relative to {root}")
            if (earlier := first.setdefault(relative, place)) != place:
                raise HeadstartError(f"{path}, {place}: {quoted(file)} is the picture of {earlier} too; keep one of them")
            pictures.append(Picture(relative, "").with_labels(labels[number]))
        return Listing(root, sorted(pictures, key=lambda picture: picture.path))


def annotated(path: Path) -> tuple[dict[int | str, tuple[str, str]], dict[int | str, set[str]]]:
    """The place of each image in the file and the name of its own file, and the names of its classes, both by its id.

    Raises:
        HeadstartError: the file is no annotation file of COCO's format, or has no images.
    """
    parts = _read(path)
    names = {
        number: _class_name(path, place, entry) for number, (place, entry) in _by_id(path, parts, "categories").items()
    }
    images = _by_id(path, parts, "images")
    if not images:
        raise HeadstartError(f"{path} has no images")
    files = {number: (place, _text(path, place, entry, "file_name")) for number, (place, entry) in images.items()}
    return files, _labels(path, parts, images.keys(), names)


def _read(path: Path) -> dict[str, list[Any]]:
    """The lists of images, categories and annotations.

    Raises:
        HeadstartError: the file is too large, is no JSON, or has no such lists.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise HeadstartError(f"{path} has {size / 1e9:.1f} GB; at most {MOST_BYTES / 1e9:g} GB are read")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise HeadstartError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # the latter from lists in lists in lists
        reason = shortened(str(error), 200)
        raise HeadstartError(f"{path} cannot be read as JSON: {reason}; is it a whole annotation file?") from None
    parts = {}
    for key in ("images", "categories", "annotations"):
        part = content.get(key) if isinstance(content, dict) else None
        if not isinstance(part, list):
            found = f"has {quoted(part)}" if part is not None else f"has no {key!r}"
            raise HeadstartError(
                f"{path} {found}, where COCO's format has a list; a file of annotations has the keys images, categories "
                "and annotations"
            )
        if len(part) > MOST_ROWS:
            raise HeadstartError(f"{path} has {len(part):,} {key}; at most {MOST_ROWS:,} are read")
        for number, entry in enumerate(part):
            if not isinstance(entry, dict):
                raise HeadstartError(f"{path}, {key}[{number}]: {quoted(entry)} is no object with keys")
        parts[key] = part
    return parts


def _by_id(path: Path, parts: dict[str, list[Any]], key: str) -> dict[int | str, tuple[str, dict[str, Any]]]:
    """The place of each entry in the file, such as "images[3]", and the entry, by its id.

    Raises:
        HeadstartError: an entry has no id, or that of another.
    """
    found: dict[int | str, tuple[str, dict[str, Any]]] = {}
    for position, entry in enumerate(parts[key]):
        place = f"{key}[{position}]"
        number = _id(path, place, entry, "id")
        if number in found:
            raise HeadstartError(
                f"{path}, {place}: the id {quoted(number)} is that of {found[number][0]} too; make it another"
            )
        found[number] = place, entry
    return found


def _labels(
    path: Path, parts: dict[str, list[Any]], images: Collection[int | str], names: dict[int | str, str]
) -> dict[int | str, set[str]]:
    """The class names of each image.

    Raises:
        HeadstartError: an annotation is of an unknown image or category.
    """
    labels: dict[int | str, set[str]] = {number: set() for number in images}
    for position, entry in enumerate(parts["annotations"]):
        place = f"annotations[{position}]"
        image, category = _id(path, place, entry, "image_id"), _id(path, place, entry, "category_id")
        for key, number, known, where in (
            ("image_id", image, labels, "images"), ("category_id", category, names, "categories"),
        ):  # fmt: skip
            if number not in known:
                raise HeadstartError(f"{path}, {place}: no entry of {where} has the id {quoted(number)} of its {key}")
        labels[image].add(names[category])
    return labels


def _id(path: Path, place: str, entry: dict[str, Any], key: str) -> int | str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise HeadstartError(f"{path}, {place}: {key} has to be a number or a text, {_found(entry, key)}")
    return value


def _text(path: Path, place: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise HeadstartError(f"{path}, {place}: {key} has to be a text, {_found(entry, key)}")
    if len(value) > LONGEST_CELL:
        raise HeadstartError(f"{path}, {place}: a {key} of {len(value):,} characters; at most {LONGEST_CELL:,} are allowed")
    if NO_TEXT.search(value):
        raise HeadstartError(f"{path}, {place}: {key} {value[:100]!a} is no proper text; rename it")
    return value


def _found(entry: dict[str, Any], key: str) -> str:
    return f"found {quoted(entry[key])}" if key in entry else "and it is not there"


def _class_name(path: Path, place: str, entry: dict[str, Any]) -> str:
    name = composed(_text(path, place, entry, "name").strip())
    check_name(name, f"{path}, {place}: the name", "rename it")
    return name


def _root(path: Path, place: str, file: str) -> Path:
    """The folder that the files of the images are in, which the first of them shows.

    Raises:
        HeadstartError: it is in none of those that are looked at.
    """
    folder = path.parent
    looked_at = [folder, folder / path.stem, folder / "images"]
    if folder.name == "annotations":  # as COCO has them: annotations/instances_val2017.json beside val2017/
        looked_at.append(folder.parent / path.stem.rpartition("_")[2])
    for root in looked_at:
        if relative_file(root, file) is not None:
            return root
    raise HeadstartError(f"{path}, {place}: {quoted(file)} is not there; looked in {', '.join(map(str, looked_at))}")
