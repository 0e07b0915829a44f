"""The folds test every picture once, by a head that saw neither it nor its group, and say for what their figure stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.metrics import Measured, Metrics, Name
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Head
from headstart.evaluation.folds import Pictures, estimate, folds_asked_for, scores_in_folds
from headstart.evaluation.intervals import wilson
from headstart.evaluation.metrics import measured
from headstart.evaluation.summary import headline
from headstart.models.task import MULTI_LABEL, SINGLE_LABEL
from headstart.training.head_files import load_head
from headstart.training.linear_probe import train_head

NAMES = ["ant", "bee", "wolf"]
AUDIT = AuditReport(kept=60, dropped=[], warnings=[], leaks=0, converted={}, classes={})
FEW_STRENGTHS = Head(C=[0.01, 1.0])


def blobs(counts: tuple[int, ...], seed: int = 0, groups: NDArray[Any] | None = None) -> Pictures:
    """Overlapping clouds, one per class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.random.default_rng(7).normal(0, 1, (len(counts), 12))[labels] + rng.normal(0, 1.3, (len(labels), 12))
    names = np.arange(len(labels)).astype(str) if groups is None else groups
    features = torch.tensor(x, dtype=torch.float32)
    return Pictures(features, torch.from_numpy(labels), names, NAMES[: len(counts)], SINGLE_LABEL)


def people(seed: int = 0) -> Pictures:
    """Ten pictures of each of thirty people, alike within a person; what they are called says nothing."""
    rng = np.random.default_rng(seed)
    person = np.arange(300) // 10
    x = rng.normal(size=(30, 40))[person] + rng.normal(size=(300, 40)) * 0.2
    labels = torch.from_numpy(rng.permutation(np.arange(30) % 2)[person])
    return Pictures(torch.tensor(x, dtype=torch.float32), labels, person.astype(str), NAMES[:2], SINGLE_LABEL)


@pytest.mark.parametrize("changed", ["features", "labels"])
def test_what_is_held_out_changes_no_other_answer_of_its_fold(changed: str) -> None:
    pictures = blobs((20, 20, 20))
    folds = folds_asked_for(5, pictures)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(60))
    before = scores_in_folds(pictures, FEW_STRENGTHS, folds)
    one, *beside = folds[0][1].tolist()
    if changed == "features":
        other = pictures._replace(features=pictures.features.index_fill(0, torch.tensor([one]), 50.0))
    else:
        other = pictures._replace(labels=(pictures.labels + (torch.arange(60) == one)) % 3)
    after = scores_in_folds(other, FEW_STRENGTHS, folds)
    assert np.array_equal(before.probabilities[beside], after.probabilities[beside])
    for _, held_out in folds[1:]:
        assert not np.allclose(before.probabilities[held_out], after.probabilities[held_out])


def test_a_group_is_in_one_fold() -> None:
    apart = people()
    folds = folds_asked_for(5, apart)
    for learned, held_out in folds:
        assert not set(apart.groups[learned]) & set(apart.groups[held_out])
    found = scores_in_folds(apart, FEW_STRENGTHS, folds)
    assert found.correct.mean() < 0.75
    low, high = wilson(found.correct)  # as if there were 300 people
    told = measured(found, 10, 0)
    assert told["accuracy_high"] - told["accuracy_low"] > 2 * (high - low)
    mixed = apart._replace(groups=np.arange(300).astype(str))  # who is on a picture then tells the answer
    assert scores_in_folds(mixed, FEW_STRENGTHS, folds_asked_for(5, mixed)).correct.mean() > 0.95


def test_the_folds_tell_what_such_heads_reach_on_new_pictures(tmp_path: Path) -> None:
    pictures, world = blobs((40, 40, 40)), blobs((1000, 1000, 1000), 1)
    found = scores_in_folds(pictures, Head(), folds_asked_for(5, pictures))
    x, y = pictures.features, pictures.labels
    train_head((x[:80], y[:80]), (x[80:100], y[80:100]), NAMES, Head(), tmp_path)
    answers = load_head(tmp_path, refit=True).logits(world.features).argmax(1)
    truth = float((answers == world.labels).double().mean())
    assert found.correct.mean() == pytest.approx(truth, abs=0.08)


@pytest.mark.parametrize(
    ("asked", "pictures", "count"),
    [("auto", 499, 5), ("auto", 500, 0), (None, 60, 0), (3, 60, 3), (10, 600, 10)],
)
def test_auto_has_five_folds_for_small_sets(asked: int | str | None, pictures: int, count: int) -> None:
    assert len(folds_asked_for(asked, blobs((pictures - 30, 30)))) == count


def test_a_class_too_small_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    alike = np.array([*map(str, range(24)), *["twin"] * 6])
    pictures = blobs((20, 10))
    pictures = pictures._replace(groups=alike[np.argsort(np.argsort(pictures.labels.numpy(), kind="stable"))])
    assert folds_asked_for("auto", pictures) != []  # bees: four alone and six together
    assert folds_asked_for("auto", pictures._replace(labels=pictures.labels * 0 + (torch.arange(30) < 3))) == []
    assert "class 'bee' has 3 that are no near-duplicates nor of one group" in capsys.readouterr().out
    with pytest.raises(HeadstartError, match=r"evaluate\.folds is 6, but class 'bee' has 5 that are no near-duplicates"):
        folds_asked_for(6, pictures)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_three_pictures_of_a_class_are_enough_for_three_folds(kind: str, weights: str | None) -> None:
    pictures = blobs((30, 3, 3))
    settings = Head.model_validate({"kind": kind, "class_weight": weights, "C": [0.1, 1.0]})
    found = scores_in_folds(pictures, settings, folds_asked_for(3, pictures))
    assert np.isfinite(found.losses).all()
    assert sorted(found.labels) == sorted(pictures.labels)


def test_of_several_labels_each_fold_decides_by_thresholds_of_its_own() -> None:
    one = blobs((30, 20, 10))
    labels = torch.nn.functional.one_hot(one.labels, 3)
    labels[:, 2] |= one.features[:, 0] > 0
    pictures = one._replace(labels=labels, task=MULTI_LABEL)
    found = scores_in_folds(pictures, FEW_STRENGTHS, folds_asked_for(5, pictures))
    half = (found.probabilities >= 0.5).astype(int)
    assert found.predicted.shape == (60, 3)
    assert (found.predicted != half).any()
    assert (found.predicted == found.labels).mean() > 0.7


@pytest.mark.parametrize(
    ("chosen", "own_test", "data", "quoted"),
    [
        ("head", False, {}, "Quote the figure of the folds: all pictures were tested"),
        ("ensemble", False, {}, "Quote the test figure: the folds are of the head alone"),
        ("head", True, {}, "Quote the test figure: the source sets its test pictures apart"),
        ("head", False, {"relabel": "mended.csv"}, "Quote the test figure: data.exclude or data.relabel may have"),
    ],
)
def test_which_figure_to_quote(chosen: Name, own_test: bool, data: dict[str, str], quoted: str) -> None:
    pictures = blobs((20, 20, 20))
    params = Params.model_validate({"evaluate": {"bootstrap": 100}, "head": {"C": [0.1]}, "data": data})
    audit = AUDIT.model_copy(update={"own_test": own_test})
    folds = estimate(pictures, folds_asked_for("auto", pictures), chosen, audit, params)
    assert folds is not None
    low, value, high = (folds.head[key] for key in ("accuracy_low", "accuracy", "accuracy_high"))
    assert low < value < high
    assert folds.head["n"] == 60
    test: Measured = {"accuracy": 0.9, "accuracy_low": 0.6, "accuracy_high": 0.98, "n": 9}
    said = headline(Metrics(chosen=chosen, val={}, test={"chosen": test}, folds=folds))
    expected = f"In 5 folds over all 60 pictures, heads made like this one from 4/5 of them reach accuracy {value:.3f} ("
    assert expected in said
    assert quoted in said
    assert "folds" not in headline(Metrics(chosen=chosen, val={}, test={"chosen": test}))


def test_the_same_folds_give_the_same_bytes() -> None:
    pictures = people()
    once, again = (scores_in_folds(pictures, FEW_STRENGTHS, folds_asked_for(3, pictures)) for _ in range(2))
    assert once.probabilities.tobytes() == again.probabilities.tobytes()
