"""groups: which pictures belong together, and how much a split that parts them flatters the result.

Ten pictures of a patient, frames of a film or shots of one afternoon resemble each other. With some of them in training a
classifier knows the others, which it will not where it is used: the test figures are too good (Kapoor and Narayanan 2023,
"Leakage and the reproducibility crisis in machine-learning-based science"). Where nobody has said which pictures belong
together, the names of the files often do, or the times that a camera wrote into them, or that they look the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.groups import GroupSuggestion, GroupSuggestions
from headstart.base.artifacts.json_file import Interval
from headstart.base.device import set_up
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.data import fetch
from headstart.data.duplicates import clusters
from headstart.data.manifest import class_names, groups_per_class, is_multi_label, read_manifest
from headstart.data.packed import Pixels, read_file_properties
from headstart.evaluation.intervals import DIGITS, numbered, paired_difference
from headstart.models.task import Task, task_of
from headstart.studies import group_readings, groups_report
from headstart.studies.group_readings import ties
from headstart.training.feature_files import load_features, training_and_validation
from headstart.training.linear_probe import FOLDS, folds_of, held_out_logits

MOST_PICTURES = 5000  # that it is measured on


def measured(
    name: str, groups: Sequence[str], pictures: pd.DataFrame, features: Tensor, classes: list[str], task: Task
) -> GroupSuggestion | None:
    """What a probe reaches on N pictures if folds keep them together, and if not; None if a class has too few groups.

    Args:
        groups: N names, "" where a picture is on its own.
        pictures: N rows of the manifest; near-duplicates are kept together in any case.
        features: (N, D).
    """
    known = pictures["group"].to_numpy(str)
    named = np.array([group or f"only {number}" for number, group in enumerate(groups)])
    together = clusters(np.concatenate([ties(known), ties(named)]), len(known))
    if not is_multi_label(pictures):  # each fold has to hold something of a class
        counts = groups_per_class(pictures.assign(group=together))
        classes = [label for label in classes if counts.get(label, 0) >= FOLDS]
        enough = pictures["label"].isin(classes).to_numpy(copy=True)
        if len(classes) < 2:
            return None
        pictures, features, together, known = (
            pictures[enough],
            features[torch.from_numpy(enough)],
            together[enough],
            known[enough],
        )
    labels = task.labels_of(pictures, classes)
    correct = []
    for each in (known, together):
        logits = held_out_logits(features, labels, folds_of(labels, each), task)
        correct.append(task.correct(task.predict(logits), labels))
    flattered = paired_difference(correct[1], correct[0], numbered(together))
    sizes = Counter(group for group in groups if group)
    return GroupSuggestion(
        by=name,
        setting=group_readings.PATTERNS.get(name),
        groups=len(sizes),
        pictures=sum(size for size in sizes.values() if size > 1),
        largest=max(sizes.values()),
        accuracy_apart=_rounded(correct[0].mean()),
        accuracy_together=_rounded(correct[1].mean()),
        optimism=Interval(**{key: _rounded(value) for key, value in flattered.accuracy._asdict().items()}),
    )


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def suggest(
    manifest: pd.DataFrame, data: DataFolder, device: torch.device, given: bool
) -> tuple[GroupSuggestions, list[str]]:
    """What groups.json holds, and for each row of the manifest its group by the first suggestion, "" where it has none.

    The test pictures are grouped too, but what it is worth is measured without them.

    Args:
        given: whether the pictures have groups already.
    """
    labels = manifest["label"].tolist()
    pictures, features = training_and_validation(manifest, data.features, device)
    rows_of_all = np.concatenate([pictures.index, manifest.index[manifest["split"] == "test"]])
    of_all = torch.cat([features, load_features(data.features, "test", device)[0]])[np.argsort(rows_of_all)]
    readings = (
        group_readings.of_names(manifest["path"].tolist(), labels)
        | group_readings.of_photographs(read_file_properties(data.prepare))
        | group_readings.of_looks(of_all, labels, (manifest["split"] != "test").to_numpy())
    )
    plausible = group_readings.plausible(readings, labels)
    chosen = np.sort(np.random.default_rng(0).permutation(len(pictures))[:MOST_PICTURES])
    rows, some = pictures.index.to_numpy()[chosen], pictures.iloc[chosen].reset_index(drop=True)
    features = features[torch.from_numpy(chosen).to(features.device)]
    classes, task = class_names(manifest), task_of(manifest)
    found = []
    with progress("groups", len(plausible), "suggestions") as advance:
        for name, groups in plausible.items():
            of_some = [groups[row] for row in rows.tolist()]
            found.append(measured(name, of_some, some, features, classes, task))
            advance()
    suggestions = sorted((one for one in found if one is not None), key=lambda one: -one.optimism.low)
    best = 0 if suggestions and suggestions[0].optimism.low > 0 else None
    told = groups_report.sentence(suggestions, best, given)
    result = GroupSuggestions(suggestions=suggestions, best=best, given=given, sentence=told)
    return result, plausible[suggestions[0].by] if suggestions else [""] * len(labels)


def run(params: Params, data: DataFolder) -> None:
    """The stage groups: suggest which pictures belong together, and measure what it costs to part them."""
    manifest = read_manifest(data.prepare)
    given = any(picture.group for picture in fetch.read_manifest(data.fetch.manifest))
    found, groups = suggest(manifest, data, set_up(params.threads), given)
    groups_report.write(found, groups, manifest, Pixels(data.prepare), data.groups)
    groups_report.show(found, data.groups)
