"""The studies on pictures that have several labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from headstart.base.arrays import Ints
from headstart.base.errors import HeadstartError
from headstart.engines.select import objection_to
from headstart.models.task import MULTI_LABEL
from headstart.studies.candidates import Sample
from headstart.studies.label_issues import examine
from headstart.studies.transferability import knn_accuracy, log_me, probe
from headstart.training.linear_probe import FOLDS, folds_of

CLASSES = ("ant", "bee", "wasp")
FEW = 3  # pictures with the class that is left out


def made(count: int = 240) -> tuple[pd.DataFrame, Tensor, Ints]:
    """A manifest of pictures of which each has some classes, features that tell them, and the labels."""
    rng = np.random.default_rng(0)
    labels = (rng.random((count, len(CLASSES))) < 0.4).astype(int)
    features = np.hstack([labels + rng.normal(0, 0.35, labels.shape), rng.normal(size=(count, 5))])
    names = [[name for name, there in zip(CLASSES, row, strict=True) if there] for row in labels]
    for some in names[:FEW]:
        some.append("yak")
    frame = {
        "path": [f"{number}.jpg" for number in range(count)], "label": [";".join(some) for some in names], "labels": names,
        "split": rng.choice(["train", "val"], count), "group": [f"group {number // 2}" for number in range(count)],
    }  # fmt: skip
    return pd.DataFrame(frame), torch.from_numpy(features.astype(np.float32)), labels


def test_a_sample_has_the_labels_of_every_picture_without_the_classes_of_which_there_are_too_few() -> None:
    manifest, _, labels = made()
    manifest.loc[5, "split"] = "test"
    sample = Sample.of(manifest, seed=1)
    assert (sample.classes, sample.left_out, sample.task) == (CLASSES, ("yak",), MULTI_LABEL)
    assert sorted(sample.rows.tolist()) == [row for row in range(240) if row != 5]
    assert sample.labels.tolist() == labels[sample.rows].tolist()
    assert sample.groups.tolist() == manifest["group"].iloc[sample.rows].tolist()
    manifest["labels"], manifest["label"] = [["yak"]] * 3 + [[]] * 237, [""] * 240
    with pytest.raises(HeadstartError, match=r"needs a class with at least 5 .*; found 0 in"):
        Sample.of(manifest, seed=1)


def test_folds_hold_every_class_and_keep_groups_together() -> None:
    manifest, _, labels = made()
    folds = folds_of(labels, manifest["group"].to_numpy())
    assert sorted(np.concatenate([held_out for _, held_out in folds]).tolist()) == list(range(240))
    shares = np.array([labels[held_out].sum(0) for _, held_out in folds])
    assert (np.abs(shares - labels.sum(0) / FOLDS) <= 6).all()
    for fitted, held_out in folds:
        assert not set(manifest["group"].iloc[fitted]) & set(manifest["group"].iloc[held_out])


def test_features_that_tell_the_labels_are_better_in_every_measure() -> None:
    manifest, features, labels = made()
    folds, noise = (
        folds_of(labels, manifest["group"].to_numpy()),
        torch.randn(240, 8, generator=torch.Generator().manual_seed(0)),
    )
    tells, guesses = (probe(each, labels, folds, MULTI_LABEL) for each in (features, noise))
    assert tells.losses.mean() < guesses.losses.mean() - 0.2
    assert tells.correct.mean() > guesses.correct.mean() + 0.3
    assert knn_accuracy(features, labels, folds, MULTI_LABEL) > knn_accuracy(noise, labels, folds, MULTI_LABEL) + 0.3
    assert log_me(features.numpy(), labels) > log_me(noise.numpy(), labels)


def test_labels_that_were_taken_away_or_added_are_found_first() -> None:
    manifest, features, labels = made()
    rng = np.random.default_rng(3)
    spoiled = rng.choice(np.arange(FEW, 240), 10, replace=False)
    for number, row in enumerate(spoiled):
        name = CLASSES[number % len(CLASSES)]
        manifest.at[row, "labels"] = sorted(set(manifest.at[row, "labels"]) ^ {name})
    found = examine(manifest, features)
    assert found.left_out == ["yak"]
    first = {suspect.path: suspect for suspect in found.suspects[:20]}
    assert len(first.keys() & {f"{row}.jpg" for row in spoiled}) >= 7
    truth = {f"{row}.jpg": ";".join(np.array(CLASSES)[labels[row] == 1]) for row in spoiled}
    right = [first[path].suggested == truth[path] for path in first.keys() & truth.keys()]
    assert sum(right) >= 7
    assert found.counts.judged == 240


def test_rounded_features_are_refused_by_what_they_do_to_a_class() -> None:
    _, features, labels = made()
    encoded = torch.from_numpy(labels)
    assert objection_to(features, features, encoded) is None
    assert objection_to(features, features, torch.ones(240, 2).long()) == "the sample has one class only"
    poor = features.clone()
    poor[:, :3] += 0.02 * torch.randn(240, 3, generator=torch.Generator().manual_seed(1))
    assert "probe's" in (objection_to(poor, features, encoded) or "")


@pytest.mark.parametrize("classes", [1, 2])
def test_a_class_that_all_pictures_have_is_not_judged_and_one_class_is_enough(classes: int) -> None:
    manifest, features, labels = made()
    for names, row in zip(manifest["labels"], labels, strict=True):
        names[:] = ["everywhere", *(name for name, there in zip(CLASSES[:classes], row, strict=False) if there)]
    spoiled = list(range(10, 16))
    for row in spoiled:
        manifest.at[row, "labels"] = sorted(set(manifest.at[row, "labels"]) ^ {CLASSES[0]})
    found = examine(manifest, features)
    assert found.left_out == ["everywhere"]
    first = {suspect.path for suspect in found.suspects[:12]}
    assert len(first & {f"{row}.jpg" for row in spoiled}) >= 4
    manifest["labels"] = [["everywhere"]] * 240
    with pytest.raises(HeadstartError, match=r"takes a class with at least 5 .* pictures and as many without"):
        examine(manifest, features)


def test_neighbours_are_asked_about_one_class_as_about_two() -> None:
    manifest, features, labels = made()
    one = labels[:, :1]
    folds = folds_of(one, manifest["group"].to_numpy())
    assert knn_accuracy(features, one, folds, MULTI_LABEL) == knn_accuracy(features, one[:, 0], folds)
    with_empty = np.hstack([labels, np.zeros((240, 1), int)])
    assert log_me(features.numpy(), with_empty) == log_me(features.numpy(), labels)


def test_the_first_pictures_of_a_sample_have_five_of_a_rare_class() -> None:
    manifest, _, _ = made()
    for row in range(200, 206):
        manifest.at[row, "labels"] = [*manifest.at[row, "labels"], "zebra"]
    manifest["group"] = [f"group {number}" for number in range(240)]
    for seed in range(5):
        sample = Sample.of(manifest, seed)
        assert sample.classes[-1] == "zebra"
        assert sample.labels[: FOLDS * len(sample.classes), -1].sum() >= FOLDS
        assert len(set(sample.rows.tolist())) == 240
