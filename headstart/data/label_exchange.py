"""The labels of the prepared pictures to labelling tools and back."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.labels import LabelIssues
from headstart.base.errors import HeadstartError, nearest, some
from headstart.base.files import write_text
from headstart.base.safe_text import quoted
from headstart.base.terminal import many
from headstart.data import fetch, label_formats
from headstart.data.judgements import Judgement, Judgements, Tables
from headstart.data.label_formats import LEAVE_OUT, NO_LABEL, Exported, Labelled
from headstart.data.manifest import class_names, is_multi_label, read_manifest
from headstart.data.picture import SEPARATOR, Picture, classes_of, names_in
from headstart.data.picture import is_multi_label as have_several
from headstart.data.user_tables import composed

TOOLS = ("coco", "cvat", "label-studio")
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of a file that was uploaded


def export_labels(data: DataFolder, to: str, output: Path, prefix: str) -> str:
    """Write the labels of the pictures in data/prepare, as they are with all judgements, and say what was written.

    Args:
        to: one of TOOLS.
        prefix: as for ``write_label_studio``.

    Raises:
        HeadstartError: data/prepare is not there, or a table of judgements cannot be read.
    """
    manifest = read_manifest(data.prepare)
    several, classes = is_multi_label(manifest), class_names(manifest)
    tables, suggested, pictures = Judgements(several).tables(), _suggested(data), list[Exported]()

    def names(label: str) -> list[str]:
        return names_in(label) if several else [label]

    columns = (manifest[name].tolist() for name in ("path", "label", "width", "height"))
    for path, given, width, height in zip(*columns, strict=True):
        state = tables.of(path)
        if not state.excluded:
            label = given if state.label is None else state.label
            model = suggested.get((path, label))
            instead = None if model is None else (names(model[0]), model[1])
            pictures.append(Exported(path, names(label), width, height, instead))
    classes = sorted({*classes, *(name for picture in pictures for name in picture.labels)})
    written = str(output)
    if to == "coco":
        label_formats.write_coco(pictures, classes, output)
    else:
        offered = [*classes, *([NO_LABEL] if several else []), LEAVE_OUT]
        if to == "cvat":
            label_formats.write_cvat(pictures, offered, output)
        else:
            label_formats.write_label_studio(pictures, prefix, output)
            interface = output.with_suffix(".interface.xml")
            write_text(interface, label_formats.label_studio_interface(offered, several))
            written += f", and {interface} for the project's labelling interface"
    return f"The labels of {many(len(pictures), 'picture')} are in {written}"


def _suggested(data: DataFolder) -> dict[tuple[str, str], tuple[str, float]]:
    """What the study of labels suggests, with the probability, by the path and the label that the picture had then."""
    found = LabelIssues.read_if_made(data.labels.details)
    suspects = found.suspects if found else []
    return {(row.path, row.label): (row.suggested, row.suggested_probability) for row in suspects}


def import_labels(data: DataFolder, file: Path) -> str:
    """Take over the labels of a tool's file that differ from the present ones, and say how many do.

    Raises:
        HeadstartError: it cannot be read, or has pictures or classes that data.source does not have, or several labels for
            a picture that may have one; nothing is changed then.
    """
    tool, found = label_formats.read_labels(file)
    pictures = _fetched(data)
    several, classes = have_several(pictures), classes_of(pictures)
    judgements = Judgements(several)
    tables, had = judgements.tables(), {picture.path: picture.label for picture in pictures}
    known = {**{key[0]: "" for key in tables.exclude.rows}, **had}
    new = _new_labels(file, found, known, classes, several)
    counts, changes = Counter[str](), []
    for path, label in new.items():
        state = tables.of(path)
        now = known[path] if state.label is None else state.label
        if state.excluded:
            counts["excluded already"] += 1
        elif label is None:
            counts["left out"] += 1
            changes.append(Judgement(path, None, known[path]))
        elif label != now:
            counts["another"] += 1
            changes.append(Judgement(path, label, known[path]))
    told = judgements.judge(changes)[1] if changes else []
    words = [
        f"{file} ({tool}) has {many(len(found), 'picture')}",
        f"{counts['another']} of them with another label",
        f"{counts['left out']} to be left out",
    ]
    if unlabelled := len(found) - len(new):
        words.append(f"{unlabelled} without a label, which stay as they are")
    if counts["excluded already"]:
        words.append(f"{counts['excluded already']} that are left out already and stay so")
    sentence = ", ".join(words)
    if changes:
        keys = "".join(f" ({one} in params.yaml)" for one in told)
        sentence += f". Written to {_named(tables, changes)}{keys}; `dvc repro` takes it into account"
    return sentence + "."


def _named(tables: Tables, changes: list[Judgement]) -> str:
    kinds = {change.label is None for change in changes}
    return " and ".join(table.file.name for out, table in ((False, tables.relabel), (True, tables.exclude)) if out in kinds)


def _fetched(data: DataFolder) -> list[Picture]:
    file = data.fetch.manifest
    if not file.exists():
        raise HeadstartError(f"{file} is not there; run `dvc repro fetch`")
    return fetch.read_manifest(file)


def _new_labels(
    file: Path, found: list[Labelled], known: Iterable[str], classes: set[str], several: bool
) -> dict[str, str | None]:
    """The label of each picture in ``found`` that has one, by its path in data.source; None: it is to be left out."""
    find, new, unknown = Names(known), dict[str, str | None](), list[str]()
    for one in found:
        path = find(one.name)
        if path is None:
            unknown.append(one.name)
            continue
        labels = {composed(label.strip()) for label in one.labels}
        if strange := labels - classes - {LEAVE_OUT, NO_LABEL}:
            name = min(strange)
            hint = nearest(name, classes) or f"it has {some(sorted(classes), 10)}"
            raise HeadstartError(f"{file}, {one.place}: data.source has no class {quoted(name)}; {hint}")
        if not labels and not (several and one.is_none):
            continue
        if len(labels) > 1 and (not several or labels & {LEAVE_OUT, NO_LABEL}):
            raise HeadstartError(f"{file}, {one.place}: {one.name} has {' and '.join(sorted(labels))}; keep one of them")
        label = None if LEAVE_OUT in labels else SEPARATOR.join(sorted(labels - {NO_LABEL}))
        if new.setdefault(path, label) != label:
            raise HeadstartError(f"{file}, {one.place}: {one.name} has another label here than above; keep one of them")
    if unknown:
        raise HeadstartError(
            f"{file} has {many(len(unknown), 'picture')} that data.source does not have, or more than one of: "
            f"{some(map(quoted, unknown))}; remove them there, and export again"
        )
    return new


class Names:
    """Finds pictures by what a tool calls them: their path, the end of it, or an address that ends in it."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = {composed(path): path for path in paths}
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for path in self._paths:
            self._by_end[path.rpartition("/")[2]].append(path)

    def __call__(self, name: str) -> str | None:
        """The path; None where there is none, or not one alone."""
        for written in (name, _path_in(name)):
            plain = composed(written).lstrip("/")
            if plain in self._paths:
                return self._paths[plain]
            folder, _, file = plain.rpartition("/")
            for last in (file, UPLOADED.sub("", file)):
                whole = f"{folder}/{last}"
                near = [path for path in self._by_end[last] if f"/{whole}".endswith(f"/{path}")]
                near = near or [path for path in self._by_end[last] if f"/{path}".endswith(f"/{whole.lstrip('/')}")]
                near = near or (self._by_end[last] if last != file else [])
                if len(near) == 1:
                    return self._paths[near[0]]
        return None


def _path_in(address: str) -> str:
    """The path that an address names: that of its query in Label Studio's local files, /data/local-files/?d=PATH."""
    try:
        parts = urlsplit(address)
    except ValueError:  # such as brackets that are not closed
        return address
    query = parts.query.partition("d=")[2] if parts.path.endswith("local-files/") else ""
    return unquote(query or parts.path)
