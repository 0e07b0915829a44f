"""labels: which pictures look mislabelled, which look like no other, and which look the same.

All of it is found in the frozen features that the pipeline has anyway, of training and validation pictures. Test is left
alone: whoever mends the test labels that a classifier stumbles over makes its report better than it is.

Labels are judged by confident learning (Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset
labels") as cleanlab has it, from what a regression fitted without a picture says of it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.labels import Counts, DuplicatePair, LabelIssues, Outlier, Suspect
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.data.manifest import groups_per_class, is_multi_label, one_row_per_label, read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation.leaks import ROUNDING, SAME
from headstart.models.task import LABEL_SEPARATOR, MULTI_LABEL, SINGLE_LABEL
from headstart.studies import label_issues_report
from headstart.training.feature_files import training_and_validation
from headstart.training.linear_probe import FOLDS, folds_of, held_out_logits

NEIGHBOURS = 10
# Outliers are beyond Tukey's fence, as wide as in cleanlab's Datalab: in interquartile ranges above the upper quartile.
FENCE = 1 / 0.37037 - 1
DIGITS = 6


def examine(pictures: pd.DataFrame, features: Tensor) -> LabelIssues:
    """What labels.json holds.

    Args:
        pictures: path, label, split and group of N training and validation pictures.
        features: (N, D).

    Raises:
        HeadstartError: fewer than two classes have pictures enough.
    """
    classes, left_out = _classes(pictures)
    if is_multi_label(pictures):
        known = np.ones(len(pictures), bool)  # a label of a class that is left out is not judged, the others are
        suspects, issues = find_suspects_of_several(pictures, features, classes)
    else:
        known = pictures["label"].isin(classes).to_numpy(copy=True)  # torch warns of pandas' own, which are read-only
        suspects, issues = find_suspects(pictures[known], features[torch.from_numpy(known).to(features.device)], classes)
    graph = neighbours(features)
    outliers, duplicates = find_outliers(pictures, graph), find_duplicates(pictures, graph)
    counts = Counts(
        pictures=len(pictures),
        judged=int(known.sum()),
        suspects=len(suspects),
        label_issues=issues,
        outliers=len(outliers),
        duplicates=len(duplicates),
        duplicates_under_two_labels=sum(len(set(pair.labels)) > 1 for pair in duplicates),
    )
    return LabelIssues(counts=counts, left_out=left_out, suspects=suspects, outliers=outliers, duplicates=duplicates)


def _classes(pictures: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Classes of which each fold can hold something, and the others."""
    several, groups = is_multi_label(pictures), groups_per_class(pictures)
    enough = groups >= FOLDS
    if several:  # of a class that all have, no picture can tell what it looks like where it is missing
        enough &= len(pictures) - one_row_per_label(pictures).groupby("label").size() >= FOLDS
    if enough.sum() < (1 if several else 2):
        noun, without = ("a class", " and as many without it,") if several else ("two classes", "")
        raise HeadstartError(
            f"to judge labels takes {noun} with at least {FOLDS} training and validation pictures{without} that are no "
            f"near-duplicates nor of one group; found {enough.sum()} in data/prepare/manifest.parquet"
        )
    return sorted(groups.index[enough]), sorted(groups.index[~enough])


def find_suspects(pictures: pd.DataFrame, features: Tensor, classes: list[str]) -> tuple[list[Suspect], int]:
    """The pictures whose label is not what the others of the set make of them, most suspicious first; and how many
    of them cleanlab counts as wrong."""
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = pd.Categorical(pictures["label"], categories=classes).codes.astype(np.int64)
    logits = held_out_logits(features, labels, folds_of(labels, pictures["group"].to_numpy()))
    p = SINGLE_LABEL.probabilities(logits.astype(np.float64))
    # Of cleanlab's scores this one held up best where labels of ants and bees, signs and emoji were swapped, at random or
    # for the likeliest other. Taking off each class's average confidence first (adjust_pred_probs) did not help.
    quality = get_label_quality_scores(labels, p, method="normalized_margin")
    suggested = SINGLE_LABEL.decide(p)
    paths = pictures["path"].tolist()
    suspects = [
        Suspect(
            path=paths[row],
            label=classes[labels[row]],
            suggested=classes[suggested[row]],
            quality=_rounded(quality[row]),
            probability=_rounded(p[row, labels[row]]),
            suggested_probability=_rounded(p[row, suggested[row]]),
        )
        for row in np.argsort(quality, kind="stable")
        if suggested[row] != labels[row]
    ]
    return suspects, int(num_label_issues(labels, p))


def find_suspects_of_several(pictures: pd.DataFrame, features: Tensor, classes: list[str]) -> tuple[list[Suspect], int]:
    """As ``find_suspects`` where a picture may have several labels: a class is there and should not be, or the other way
    round. The suggestion changes the one that the other pictures contradict most; the probabilities are that class's."""
    labels = MULTI_LABEL.labels_of(pictures, classes)
    logits = held_out_logits(features, labels, folds_of(labels, pictures["group"].to_numpy()), MULTI_LABEL)
    p = MULTI_LABEL.probabilities(logits.astype(np.float64))
    quality, issues = _quality_of_several(labels, p)
    own = np.where(labels == 1, p, 1 - p)
    worst = own.argmin(axis=1)
    suspects = []
    for row in np.argsort(quality, kind="stable"):
        name, probability = classes[worst[row]], own[row, worst[row]]
        if probability < 0.5:
            given = set(pictures["labels"].iloc[row])
            suspects.append(
                Suspect(
                    path=pictures["path"].iloc[row],
                    label=LABEL_SEPARATOR.join(sorted(given)),
                    suggested=LABEL_SEPARATOR.join(sorted(given ^ {name})),
                    quality=_rounded(quality[row]),
                    probability=_rounded(probability),
                    suggested_probability=_rounded(1 - probability),
                )
            )
    return suspects, issues


def _quality_of_several(labels: Ints, p: Floats) -> tuple[Floats, int]:
    """cleanlab's score of each picture's labels, (N,), and how many pictures it counts as wrong.

    Args:
        labels: (N, classes) ones and zeros.
        p: (N, classes) probabilities.
    """
    if labels.shape[1] == 1:  # cleanlab takes one class for a mistake, and its being there or not for two classes
        from cleanlab.count import num_label_issues
        from cleanlab.rank import get_label_quality_scores as quality_of_one

        there, both = labels[:, 0], np.hstack([1 - p, p])
        return quality_of_one(there, both), int(num_label_issues(there, both))
    from cleanlab.multilabel_classification import get_label_quality_scores
    from cleanlab.multilabel_classification.filter import find_label_issues

    present = [np.flatnonzero(row).tolist() for row in labels]
    # One process: cleanlab forks its workers, and a fork of a process with threads (torch's) can wait for ever.
    return get_label_quality_scores(present, p), int(find_label_issues(present, p, n_jobs=1).sum())


def neighbours(features: Tensor) -> csr_matrix:
    """(N, N) sparse: the cosine distances of each picture to the ten nearest others, the nearest first."""
    from sklearn.neighbors import kneighbors_graph

    x = features.cpu().numpy()
    return kneighbors_graph(x, min(NEIGHBOURS, len(x) - 1), mode="distance", metric="cosine")


def find_outliers(pictures: pd.DataFrame, graph: csr_matrix) -> list[Outlier]:
    """The pictures that are far from even their nearest neighbours, the farthest first, by the mean distance to ten."""
    mean = graph.data.reshape(len(pictures), -1).mean(axis=1)
    distance = mean / max(np.median(mean), ROUNDING)
    low, high = np.percentile(distance, [25, 75])
    return [
        Outlier(path=str(row.path), label=str(row.label), distance=_rounded(far))
        for far, row in sorted(zip(distance, pictures.itertuples(), strict=True), key=lambda pair: -pair[0])
        if far > high + FENCE * (high - low)
    ]


def find_duplicates(pictures: pd.DataFrame, graph: csr_matrix) -> list[DuplicatePair]:
    """Pairs that are much nearer to each other than a picture and its nearest neighbour usually are, those under two labels
    first, then the nearest."""
    limit = SAME * np.median(graph.data[graph.indptr[:-1]])
    edges = graph.tocoo()
    close = edges.data <= limit
    ends = np.sort(np.stack([edges.row[close], edges.col[close]]), axis=0)
    distances = {
        (int(a), int(b)): float(distance) for a, b, distance in zip(*ends, edges.data[close], strict=True)
    }  # each pair once, whichever of the two has the other among its nearest
    paths, labels, splits = (pictures[column].tolist() for column in ("path", "label", "split"))
    pairs = [
        DuplicatePair(
            paths=[paths[a], paths[b]],
            labels=[labels[a], labels[b]],
            splits=[splits[a], splits[b]],
            distance=_rounded(distance),
        )
        for (a, b), distance in distances.items()
    ]
    return sorted(pairs, key=lambda pair: (pair.labels[0] == pair.labels[1], pair.distance, pair.paths))


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def run(params: Params, data: DataFolder) -> None:
    """The stage labels: find pictures whose label looks wrong, that look like no other, or look the same; never in test."""
    device = set_up(params.threads)
    pictures, features = training_and_validation(read_manifest(data.prepare), data.features, device)
    issues = examine(pictures, features)
    label_issues_report.write(issues, Pixels(data.prepare), pictures, params.labels.shown, data.labels)
    label_issues_report.show(issues, data.labels)
