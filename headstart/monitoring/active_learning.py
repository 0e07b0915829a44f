"""Active learning: which of many pictures without labels are most worth labelling? Those that the classifier is unsure
of and that resemble neither each other nor the labelled pictures."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np

from headstart.base.arrays import Floats
from headstart.base.artifacts import ToLabelFolder
from headstart.base.artifacts.drift import WorthLabelling
from headstart.base.files import write_text
from headstart.inference.selective import confidence_of_decisions
from headstart.models.task import SINGLE_LABEL, MultiLabel, Task
from headstart.monitoring.incoming import Incoming
from headstart.monitoring.two_sample import NoveltyDetector

MIN_WEIGHT = 0.1  # relative to the largest: a classifier can be confident and wrong about what it has never seen
DUPLICATE_DISTANCE = 1e-6  # cosine distance
CONFIDENT = 0.9


def select_for_labelling(
    features: Floats, probabilities: Floats, labelled: Floats, count: int, task: Task = SINGLE_LABEL
) -> list[int]:
    """The rows of at most ``count`` pictures, the one most worth labelling first.

    The greedy k-centre rule (Sener and Savarese 2018, "Active learning for convolutional neural networks: a core-set
    approach") repeatedly selects the picture farthest from everything labelled or selected. Here the cosine distance is
    multiplied by the entropy of the classifier's probabilities. Copies of a picture are not selected twice.

    Args:
        features: (N, D).
        probabilities: (N, C).
        labelled: (M, D) features of labelled pictures.
        task: what the probabilities mean. Of several labels the entropy is the mean of the classes'.
    """
    if isinstance(task, MultiLabel):
        entropy = (_surprise(probabilities) + _surprise(1 - probabilities)).mean(axis=1) / np.log(2)
    else:
        entropy = _surprise(probabilities).sum(axis=1) / np.log(probabilities.shape[1])
    weight = MIN_WEIGHT + (1 - MIN_WEIGHT) * entropy
    x, centres = _unit(features), _unit(labelled)
    distance = 1 - (x @ centres.T).max(axis=1)
    selected: list[int] = []
    while len(selected) < count:
        best = int(np.argmax(weight * distance))
        if distance[best] < DUPLICATE_DISTANCE:
            break
        selected.append(best)
        distance = np.minimum(distance, 1 - x @ x[best])
        distance[best] = 0
    return selected


def _surprise(probabilities: Floats) -> Floats:
    surprise: Floats = -(probabilities * np.log(np.clip(probabilities, 1e-12, 1)))
    return surprise


def _unit(features: Floats) -> Floats:
    x = features.astype(np.float64)
    unit: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def describe_selection(incoming: Incoming, rows: list[int], novelty: NoveltyDetector) -> list[WorthLabelling]:
    """The rows of the table."""
    distances = novelty.distances(incoming.features[rows]) if rows else np.empty(0)
    described = []
    for number, (row, distance) in enumerate(zip(rows, distances, strict=True), start=1):
        p = incoming.probabilities[row]
        guess, confidence = incoming.task.answer(p, incoming.classes)
        unsure: list[int] = np.argsort(-p, kind="stable")[:2].tolist() if confidence < CONFIDENT else []
        if isinstance(incoming.task, MultiLabel):
            of_each = confidence_of_decisions(incoming.task, p)
            unsure = [c for c in np.argsort(of_each, kind="stable")[:2].tolist() if of_each[c] < CONFIDENT]
        reasons = []
        if distance > novelty.limit:
            reasons.append(f"new in kind: {distance:.1f} times as far from the labelled pictures as is usual")
        if unsure:
            names = (f"{incoming.classes[c]} {p[c]:.0%}" for c in unsure)
            reasons.append(f"unsure: {', '.join(names)}")
        described.append(
            WorthLabelling(
                path=f"{number:03d}-{Path(incoming.paths[row]).name}",
                original=incoming.paths[row],
                guess=guess,
                probability=round(confidence, 4),
                why="; ".join(reasons) or "unlike the others",
            )
        )
    return described


def export(incoming: Incoming, rows: list[WorthLabelling], folder: ToLabelFolder) -> list[WorthLabelling]:
    """Write copies of the pictures in ``rows``, and the rows as a table, to ``folder`` in place of an earlier export.
    Without rows there is no such folder.

    Returns:
        The rows whose pictures still exist.
    """
    part = ToLabelFolder(folder.parent, f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    rows = [row for row in rows if (incoming.folder / row.original).exists()]  # some may have been moved in the meantime
    if rows:
        part.mkdir(parents=True)
        for row in rows:
            shutil.copyfile(incoming.folder / row.original, part / row.path)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(WorthLabelling.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.model_dump() for row in rows)
        write_text(part.table, text.getvalue())
    shutil.rmtree(folder, ignore_errors=True)
    if rows:
        part.rename(folder)
    return rows
