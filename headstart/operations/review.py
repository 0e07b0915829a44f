"""What is worth a look, of all that the pipeline and its studies have found: suspects, duplicates, outliers and pictures
without labels. ``headstart.operations.review_server`` shows them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.drift import Drift
from headstart.base.artifacts.labels import LabelIssues
from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of
from headstart.data import fetch
from headstart.data.judgements import LABELLED, Judgement, Tables
from headstart.data.manifest import class_names, is_multi_label, read_manifest
from headstart.data.picture import Picture, names_in

UNLABELLED = "unlabelled"
QUEUES = {"suspects": "Suspects", "duplicates": "Duplicates", "outliers": "Outliers", UNLABELLED: "Without a label"}
WHY_SUSPECT = "A classifier that has not learned from this picture takes it for something else."
WHY_OUTLIER = "Far from even the pictures most like it: {:.1f} times as far as is usual."
WHY_TWINS = "To the network these look the same."
WHY_CONFLICT = "The same file under different labels: all are left out until only one label is left."


@dataclass(frozen=True)
class Shown:
    """A picture that is shown.

    Attributes:
        row: among the packed pictures; None where it is not, and is read from the source.
        file: of one from outside of the source, whose ``path`` is where it gets a copy when it is given a label.
        original: its own name.
    """

    path: str
    label: str
    split: str
    sha256: str
    size: int = 0
    row: int | None = None
    file: Path | None = None
    original: str = ""

    @property
    def is_new(self) -> bool:
        """Whether it is from outside of the source."""
        return self.file is not None


@dataclass(frozen=True)
class Item:
    """A question about a picture, or about several that look the same.

    Attributes:
        model: labels with the probabilities that a model gives them.
    """

    queue: str
    pictures: tuple[Shown, ...]
    why: str
    suggested: str | None = None
    model: tuple[tuple[str, float], ...] = ()

    def is_open(self, tables: Tables) -> bool:
        """Whether it still has to be judged."""
        first, *others = self.pictures
        if not others:
            return not tables.of(first.path, is_new=first.is_new).settles(first.label)
        states = [(picture, tables.of(picture.path, twin.path)) for picture, twin in self.beside()]
        left = [(picture, state) for picture, state in states if not state.excluded]
        labels = {picture.label if state.label is None else state.label for picture, state in left}
        had_one_label = len({picture.label for picture in self.pictures}) == 1
        kept = all(state.keeps(picture.label) for picture, state in states)
        return len(left) > 1 and not kept and (had_one_label or len(labels) > 1)

    def beside(self) -> Iterator[tuple[Shown, Shown]]:
        """Each picture with the next one, the last with the first."""
        return zip(self.pictures, (*self.pictures[1:], self.pictures[0]), strict=True)

    def kept(self, tables: Tables) -> list[Judgement]:
        """The judgement that nothing is to be changed; what was relabelled meanwhile stays so."""
        if len(self.pictures) == 1:
            (picture,) = self.pictures
            return [Judgement(picture.path, picture.label, picture.label)]
        labels = [tables.of(picture.path).label for picture in self.pictures]
        return [
            Judgement(picture.path, picture.label if label is None else label, picture.label, twin.path)
            for (picture, twin), label in zip(self.beside(), labels, strict=True)
        ]


@dataclass(frozen=True)
class Review:
    """All items, those of each queue with the plainest case first.

    Attributes:
        notes: what is to be known about the lists, in sentences.
    """

    items: list[Item]
    classes: list[str]
    several: bool
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Equal where the items are: a page that shows others has to ask for them again."""
        return hashlib.sha256(repr([astuple(item) for item in self.items]).encode()).hexdigest()[:16]


def read(data: DataFolder) -> Review:
    """What is worth a look, as far as stages have looked for it.

    Raises:
        HeadstartError: no stage has, or what one has written cannot be read.
    """
    manifest = read_manifest(data.prepare)
    found = LabelIssues.read_if_made(data.labels.details)
    columns = [manifest[name].tolist() for name in ("path", "label", "split", "sha256")]
    pictures = {
        path: Shown(path, label, split, sha256, row=number)
        for number, (path, label, split, sha256) in enumerate(zip(*columns, strict=True))
    }
    conflicts, unlabelled = _conflicts(data), [*_unlabelled(data)]
    if found is None and not conflicts and not unlabelled:
        raise HeadstartError(
            f"there is nothing to review yet; `{LabelIssues.made_by}` finds suspects, outliers and duplicates in seconds"
        )
    items, notes = [*conflicts, *unlabelled], list[str]()
    if found is None:
        notes.append(f"Suspects, outliers and duplicates are found by {LabelIssues.made_by}, which has not run yet.")
    else:
        answers = _answers(data, pictures)
        issues = [*_suspects(found, pictures), *_pairs(found, pictures, answers), *_outliers(found, pictures, answers)]
        items += issues
        judged = int((manifest["split"] != "test").sum())
        gone = len(found.suspects) + len(found.duplicates) + len(found.outliers) - len(issues)
        if gone or judged != found.counts.pictures:
            notes.append(
                f"The lists were made from other pictures or labels than data/prepare has now"
                f"{f'; {gone} entries are passed over' if gone else ''}. {LabelIssues.made_by} makes them again."
            )
    classes = {
        *class_names(manifest),
        *(name for item in conflicts for shown in item.pictures for name in _names(shown, manifest)),
    }
    return Review(items, sorted(classes), is_multi_label(manifest), notes)


def _names(shown: Shown, manifest: pd.DataFrame) -> list[str]:
    return names_in(shown.label) if is_multi_label(manifest) else [shown.label]


def _suspects(found: LabelIssues, pictures: dict[str, Shown]) -> Iterator[Item]:
    for row in found.suspects:
        picture = pictures.get(row.path)
        if picture and picture.label == row.label:  # else it was made of an older state of the data
            model = (row.suggested, row.suggested_probability), (row.label, row.probability)
            yield Item("suspects", (picture,), WHY_SUSPECT, row.suggested, model)


def _pairs(found: LabelIssues, pictures: dict[str, Shown], answers: dict[str, tuple[str, float]]) -> Iterator[Item]:
    for pair in found.duplicates:
        twins = tuple(pictures[path] for path in pair.paths if path in pictures)
        if [twin.label for twin in twins] == pair.labels:
            splits = " and ".join(sorted({twin.split for twin in twins}))
            why = WHY_TWINS + (f" One is in {splits.replace(' and ', ', the other in ')}." if " and " in splits else "")
            yield Item("duplicates", twins, why, model=tuple(answers[t.path] for t in twins[:1] if t.path in answers))


def _outliers(found: LabelIssues, pictures: dict[str, Shown], answers: dict[str, tuple[str, float]]) -> Iterator[Item]:
    for row in found.outliers:
        picture = pictures.get(row.path)
        if picture and picture.label == row.label:
            model = (answers[row.path],) if row.path in answers else ()
            yield Item("outliers", (picture,), WHY_OUTLIER.format(row.distance), model=model)


def _conflicts(data: DataFolder) -> list[Item]:
    """Equal files under different labels, which prepare has left out."""
    audit = AuditReport.read_if_made(data.prepare.audit)
    paths = {row.path for row in audit.dropped if row.reason.startswith("label conflict")} if audit else set[str]()
    if not paths:
        return []
    copies: dict[str, list[Picture]] = defaultdict(list)
    for picture in fetch.read_manifest(data.fetch.manifest):
        if picture.path in paths:
            copies[picture.sha256].append(picture)
    return [
        Item("duplicates", tuple(Shown(p.path, p.label, p.split, p.sha256, p.size) for p in same), WHY_CONFLICT)
        for same in copies.values()
        if len({p.label for p in same}) > 1
    ]


def _unlabelled(data: DataFolder) -> Iterator[Item]:
    """The pictures without a label that ``headstart drift`` found most worth one."""
    drift = Drift.read_if_made(data.drift.details)
    for row in drift.incoming.to_label if drift and drift.incoming else []:
        file = data.drift.to_label / row.path
        if file.is_file():
            sha256 = sha256_of(file)
            path = f"{LABELLED}/{sha256[:12]}-{Path(row.original).name}"
            shown = Shown(path, "", "", sha256, file=file, original=row.original)
            yield Item(UNLABELLED, (shown,), f"Worth labelling: {row.why}.", row.guess, ((row.guess, row.probability),))


def _answers(data: DataFolder, pictures: dict[str, Shown]) -> dict[str, tuple[str, float]]:
    """What the chosen classifier answers, with the probability, where it was asked: of validation pictures."""
    file = data.evaluate.predictions
    if not file.exists():
        return {}
    table: list[dict[Any, Any]] = pd.read_parquet(file).query("split == 'val'").to_dict("records")
    return {
        row["image"]: (row["predicted"], float(row[row["predicted"]]))
        for row in table
        if row["image"] in pictures and row["predicted"] in row
    }
