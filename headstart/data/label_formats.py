"""Labels in the formats of labelling tools: COCO, CVAT for images 1.1, and Label Studio's JSON and JSON-MIN.

datumaro reads and writes the first two, but its releases want an older Pillow and NumPy than everything else here
(docs/labels.md); and of each format a classification takes only a few keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from headstart.base.errors import HeadstartError
from headstart.base.files import write_text
from headstart.base.safe_text import quoted, shortened
from headstart.data.sources_coco import MOST_BYTES, annotated

LEAVE_OUT = "(leave out)"  # the label of pictures that are to be left out
NO_LABEL = "(none)"  # in a multi-label set, the label of pictures that are to have none
CHOICE, IMAGE = "choice", "image"  # what Label Studio's template for image classification calls its parts


@dataclass(frozen=True)
class Labelled:
    """A picture in a tool's file.

    Attributes:
        place: in the file, such as "task 3".
        name: of the picture, as the tool has it: a path or an address.
        labels: in no order; none where nobody has given it any.
        is_none: whether somebody has said that it has none.
    """

    place: str
    name: str
    labels: tuple[str, ...]
    is_none: bool = False


@dataclass(frozen=True)
class Exported:
    """A picture to be written.

    Attributes:
        width, height: of the original, in pixels.
        suggested: the labels that a model suggests instead, and the probability that it gives them.
    """

    path: str
    labels: Sequence[str]
    width: int
    height: int
    suggested: tuple[Sequence[str], float] | None = None


# --- reading ----------------------------------------------------------------------------------------------------------


def read_labels(path: Path) -> tuple[str, list[Labelled]]:
    """The tool whose format a file has, and the pictures in it.

    Raises:
        HeadstartError: it cannot be read, or has none of the formats.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise HeadstartError(f"{path} has {size / 1e9:.1f} GB; at most {MOST_BYTES / 1e9:g} GB are read")
        content = path.read_bytes()
    except OSError as error:
        raise HeadstartError(f"{path} cannot be read: {error.strerror}") from None
    start = content[:200].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return "CVAT", [*_cvat(path, content)]
    if start.startswith(b"["):
        return "Label Studio", [*_label_studio(path, content)]
    if start.startswith(b"{"):
        files, labels = annotated(path)
        return "COCO", [Labelled(place, name, tuple(labels[number])) for number, (place, name) in files.items()]
    raise HeadstartError(
        f"{path} is no labels of a known format; export COCO or CVAT for images 1.1 from CVAT, JSON or JSON-MIN from Label "
        "Studio"
    )


def _cvat(path: Path, content: bytes) -> Iterator[Labelled]:
    if b"<!DOCTYPE" in content or b"\0" in content:  # which may let a small file become a large one
        raise HeadstartError(f"{path} has a document type, or is not UTF-8; CVAT writes neither")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise HeadstartError(f"{path} cannot be read as XML: {error}; is it whole?") from None
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise HeadstartError(f"{path} has no images; export the task as CVAT for images 1.1")
    for number, image in enumerate(images):
        labels = {label for shape in image if (label := shape.get("label"))}
        yield Labelled(f"image {number}", image.get("name", ""), tuple(labels))


def _label_studio(path: Path, content: bytes) -> Iterator[Labelled]:
    try:
        tasks = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HeadstartError(f"{path} cannot be read as JSON: {shortened(str(error), 200)}; is it whole?") from None
    for number, task in enumerate(tasks):
        place = f"task {number}"
        try:
            found = _of_task(place, task) if "annotations" in task else _of_record(place, task)
        except (KeyError, TypeError, AttributeError):
            raise HeadstartError(
                f"{path}, {place}: {quoted(task)} is no task of Label Studio's with an image and choices; export JSON"
            ) from None
        if found is not None:
            yield found


def _of_task(place: str, task: dict[str, Any]) -> Labelled | None:
    """Of Label Studio's JSON: the last annotation that was not skipped; None where there is none."""
    done = [one for one in task["annotations"] if not one.get("was_cancelled")]
    if not done:
        return None
    last = max(done, key=lambda one: str(one.get("created_at", "")))
    labels = {
        label
        for result in last["result"]
        for kind, found in result["value"].items()
        if kind == "choices" or kind.endswith("labels")  # such as rectanglelabels
        for label in found
    }
    return Labelled(place, _name(task["data"]), tuple(map(str, labels)), is_none=not labels)


def _of_record(place: str, record: dict[str, Any]) -> Labelled:
    """Of JSON-MIN, which has a record for each annotation."""
    if "annotation_id" not in record:
        raise KeyError("annotation_id")
    found = record.get(CHOICE, [])
    labels = [found] if isinstance(found, str) else found["choices"] if isinstance(found, dict) else []
    return Labelled(place, _name(record), tuple(labels), is_none=not labels)


def _name(data: dict[str, Any]) -> str:
    name = data.get("path") or data[IMAGE]
    return str(name)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_coco(pictures: Sequence[Exported], classes: Sequence[str], path: Path) -> None:
    """An annotation for each label, without a place in the picture, as datumaro's ``coco_labels`` has it."""
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    pairs = [(image, numbers[label]) for image, p in enumerate(pictures, start=1) for label in p.labels]
    _write_json(
        path,
        {
            "images": [
                {"id": number, "file_name": p.path, "width": p.width, "height": p.height}
                for number, p in enumerate(pictures, start=1)
            ],
            "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category}
                for number, (image, category) in enumerate(pairs, start=1)
            ],
        },
    )


def write_cvat(pictures: Sequence[Exported], classes: Sequence[str], path: Path) -> None:
    """CVAT for images 1.1: a tag for each label."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name in classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "attributes")
    for number, p in enumerate(pictures):
        image = {"id": str(number), "name": p.path, "width": str(p.width), "height": str(p.height)}
        element = ElementTree.SubElement(root, "image", image)
        for name in p.labels:
            ElementTree.SubElement(element, "tag", {"label": name, "source": "manual"})
    ElementTree.indent(root)
    write_text(path, '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n")


def write_label_studio(pictures: Sequence[Exported], prefix: str, path: Path) -> None:
    """Tasks with the present labels as annotations and the suggested ones as predictions.

    Args:
        prefix: what stands before a picture's path in the address that Label Studio finds it by.
    """
    _write_json(
        path,
        [
            {
                "data": {IMAGE: f"{prefix}{p.path}", "path": p.path},
                "annotations": [{"result": _choices(p.labels)}],
                "predictions": [
                    {"model_version": "headstart", "score": probability, "result": _choices(labels)}
                    for labels, probability in ([p.suggested] if p.suggested else [])
                ],
            }
            for p in pictures
        ],
    )


def label_studio_interface(classes: Sequence[str], several: bool) -> str:
    """What a project's labelling interface has to be for those tasks."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": IMAGE, "value": f"${IMAGE}"})
    many = {"name": CHOICE, "toName": IMAGE, "choice": "multiple" if several else "single-radio"}
    choices = ElementTree.SubElement(view, "Choices", many)
    for name in classes:
        ElementTree.SubElement(choices, "Choice", {"value": name})
    ElementTree.indent(view)
    return ElementTree.tostring(view, "unicode") + "\n"


def _choices(labels: Sequence[str]) -> list[dict[str, Any]]:
    result = {"from_name": CHOICE, "to_name": IMAGE, "type": "choices", "value": {"choices": [*labels]}}
    return [result] if labels else []


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
