"""Which of many pictures without labels are most worth labelling? Those that the classifier is unsure of, and that are
unlike each other and unlike what is labelled already."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from headstart.base.arrays import Floats
from headstart.base.files import write_text
from headstart.monitoring.incoming import Incoming
from headstart.monitoring.two_sample import Known

FOLDER, TABLE = "to_label", "to_label.csv"
COLUMNS = ("path", "original", "guess", "probability", "why")
LEAST = 0.1  # of the largest uncertainty: a classifier may be wrongly sure of what it has never seen
SAME = 1e-6  # cosine distance
SURE = 0.9


def worth_labelling(features: Floats, probabilities: Floats, known: Floats, count: int) -> list[int]:
    """Ints of at most ``count`` pictures, the one most worth labelling first.

    The greedy k-centre rule (Sener and Savarese 2018, "Active learning for convolutional neural networks: a core-set
    approach") takes again and again the picture that is farthest from all that is labelled or taken; here the distance, of
    1 less the cosine, is multiplied by the entropy of the classifier's answer. Copies of a picture are not taken twice.

    Args:
        features: (N, D).
        probabilities: (N, C).
        known: (M, D) features of labelled pictures.
    """
    entropy = -(probabilities * np.log(np.clip(probabilities, 1e-12, 1))).sum(axis=1) / np.log(probabilities.shape[1])
    weight = LEAST + (1 - LEAST) * entropy
    x, centres = _unit(features), _unit(known)
    distance = 1 - (x @ centres.T).max(axis=1)
    taken: list[int] = []
    while len(taken) < count:
        best = int(np.argmax(weight * distance))
        if distance[best] < SAME:
            break
        taken.append(best)
        distance = np.minimum(distance, 1 - x @ x[best])
        distance[best] = 0
    return taken


def _unit(features: Floats) -> Floats:
    x = features.astype(np.float64)
    unit: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def described(incoming: Incoming, rows: list[int], known: Known) -> list[dict[str, Any]]:
    """The rows of the table: ``path``, in the folder of copies, ``original``, ``guess``, ``probability`` and ``why``."""
    strange = known.distances(incoming.features[rows]) if rows else np.empty(0)
    found = []
    for place, (row, far) in enumerate(zip(rows, strange, strict=True), start=1):
        p = incoming.probabilities[row]
        first, second = np.argsort(-p, kind="stable")[:2]
        reasons = []
        if far > known.limit:
            reasons.append(f"new in kind: {far:.1f} times as far from the labelled pictures as is usual")
        if p[first] < SURE:
            names = (f"{incoming.classes[c]} {p[c]:.0%}" for c in (first, second))
            reasons.append(f"unsure: {', '.join(names)}")
        found.append(
            {
                "path": f"{place:03d}-{Path(incoming.paths[row]).name}",
                "original": incoming.paths[row],
                "guess": incoming.classes[first],
                "probability": round(float(p[first]), 4),
                "why": "; ".join(reasons) or "unlike the others",
            }
        )
    return found


def export(incoming: Incoming, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Copies of the pictures that ``rows`` describes, and those as a table, in ``folder / "to_label"``; what an earlier
    export left there goes, and where there are no rows nothing is left. Returned are the rows whose pictures are still
    there."""
    target, part = folder / FOLDER, folder / f".{FOLDER}"
    shutil.rmtree(part, ignore_errors=True)
    rows = [row for row in rows if (incoming.folder / row["original"]).exists()]  # somebody may have moved some meanwhile
    if rows:
        part.mkdir(parents=True)
        for row in rows:
            shutil.copyfile(incoming.folder / row["original"], part / row["path"])
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(part / TABLE, text.getvalue())
    shutil.rmtree(target, ignore_errors=True)
    if rows:
        part.rename(target)
    return rows
