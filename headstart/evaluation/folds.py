"""What heads made like the result's reach on the pictures of all splits, each tested by one that never saw it.

Of a few hundred pictures the test split holds a few dozen, which tell accuracy to within ten points. Cross-validation
(Stone 1974, "Cross-validatory choice and assessment of statistical predictions") tests all of them. It estimates how good
such heads are on average rather than how good this one is (Bates et al. 2024, "Cross-validation: what does it estimate and
how well does it do it?"), and its heads learn from fewer pictures. It only reports: nothing is chosen by it, and its heads
are thrown away.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.base import artifacts, sections
from headstart.base.arrays import Floats
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.metrics import Folds, Name
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.progress import hidden, progress
from headstart.base.terminal import say
from headstart.data.manifest import class_names
from headstart.data.splits import SPLITS
from headstart.evaluation.intervals import numbered
from headstart.evaluation.metrics import Scores, measured
from headstart.models.classifier import FittedHead
from headstart.models.task import Task, task_of
from headstart.training import linear_probe
from headstart.training.feature_files import load_features
from headstart.training.head_files import load_head

SMALL = 500  # pictures; "auto" has folds for smaller sets


class Pictures(NamedTuple):
    """Those of all splits.

    Attributes:
        features: (N, D), on the device that is to do the work.
        labels: (N, ...), encoded.
        groups: (N,) names; the pictures of one are in one fold.
    """

    features: Tensor
    labels: Tensor
    groups: NDArray[Any]
    classes: list[str]
    task: Task


def of_all_splits(data: artifacts.DataFolder, manifest: pd.DataFrame, device: torch.device) -> Pictures:
    stored = [load_features(data.features, split, device) for split in SPLITS]
    features, labels = (torch.cat(parts) for parts in zip(*stored, strict=True))
    groups = np.concatenate([manifest.loc[manifest["split"] == split, "group"] for split in SPLITS])
    return Pictures(features, labels, groups, class_names(manifest), task_of(manifest))


def folds_asked_for(asked: int | str | None, pictures: Pictures) -> linear_probe.Folds:
    """(N,) numbers of the pictures to learn from and to test, by fold; no folds where none are asked for.

    Args:
        asked: ``evaluate.folds``. Where it is "auto" and a class has too few pictures, a line says so.

    Raises:
        HeadstartError: a number is asked for, and a class has too few pictures.
    """
    if asked is None or (asked == "auto" and len(pictures.groups) >= SMALL):
        return []
    count = linear_probe.FOLDS if isinstance(asked, str) else asked
    folds = linear_probe.folds_that_hold_each_class(pictures.labels.cpu().numpy(), pictures.groups, count)
    if not folds and asked != "auto":
        raise HeadstartError(f"evaluate.folds is {asked}, but {_fewest(pictures)}; lower it, or set it to null")
    if not folds:
        say(f"No estimate in folds: of {count}, each needs pictures of all classes, and {_fewest(pictures)}.")
    return folds


def _fewest(pictures: Pictures) -> str:
    labels, groups = pictures.labels.cpu().numpy(), pictures.groups
    counts = {"the set": len(set(groups))}
    if labels.ndim == 1:
        counts = {f"class {name!r}": len(set(groups[labels == n])) for n, name in enumerate(pictures.classes)}
    what = min(counts, key=lambda name: counts[name])
    return f"{what} has {counts[what]} that are no near-duplicates nor of one group"


def scores_in_folds(pictures: Pictures, settings: sections.Head, folds: linear_probe.Folds) -> Scores:
    """What heads that were made as the stage head makes them, each without its fold, say of the fold's pictures. Where the
    stage needs validation pictures, to choose by, it gets those of the next fold."""
    features, labels, groups, classes, task = pictures
    answers = labels.cpu().numpy()
    probabilities, predicted = np.zeros((len(answers), len(classes))), np.zeros_like(answers)
    with progress("folds", len(folds), "heads") as advance, tempfile.TemporaryDirectory() as scratch:
        for (learned, held_out), (_, val) in zip(folds, folds[1:] + folds[:1], strict=True):
            train, folder = np.setdiff1d(learned, val), Path(scratch)
            both = groups[np.concatenate([train, val])]
            of_train, of_val = ((features[side], labels[side]) for side in (train, val))
            with hidden():
                start = linear_probe.train_head(of_train, of_val, classes, settings, folder, both, task)
            decided = task.with_thresholds(_probabilities(start, of_val[0]), answers[val])
            probabilities[held_out] = _probabilities(load_head(folder, refit=True), features[held_out])
            predicted[held_out] = decided.decide(probabilities[held_out])
            advance()
    scores = Scores(probabilities, answers, task, numbered(groups.astype(str)))
    vars(scores)["predicted"] = predicted  # each head has thresholds of its own
    return scores


def _probabilities(head: FittedHead, features: Tensor) -> Floats:
    logits = head.logits(features.cpu()).double() / head.temperature
    probabilities: Floats = head.task.probabilities(logits).numpy()
    return probabilities


def estimate(
    pictures: Pictures, folds: linear_probe.Folds, chosen: Name, audit: AuditReport, params: Params
) -> Folds | None:
    """What metrics.json holds of the folds, and which of the two estimates to quote: that of the folds, which tests more
    pictures, unless it is no estimate of what is asked. Which interval is narrower does not count, for where a few test
    pictures happen to be all right theirs is."""
    if not folds:
        return None
    scores = scores_in_folds(pictures, params.head, folds)
    reason = _against_quoting(chosen, audit, params)
    return Folds(
        count=len(folds),
        head=measured(scores, params.evaluate.bootstrap, params.seed),
        quote="test" if reason else "folds",
        reason=reason or "all pictures were tested, not only those of the test split",
    )


def _against_quoting(chosen: Name, audit: AuditReport, params: Params) -> str:
    """Why the folds do not estimate what is asked: how good what is packaged is on new pictures. Empty where they do."""
    if chosen != "head":
        return "the folds are of the head alone, and that is not what validation chose"
    if audit.own_test:
        return "the source sets its test pictures apart, and the folds mix them with the others"
    if params.data.exclude or params.data.relabel:
        return "data.exclude or data.relabel may have taken out what such heads get wrong, though not among test pictures"
    return ""
