"""What the learning curves are made to say is true to them: constructed outcomes, and a training that really runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.base.artifacts import DATA, FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.params import Params
from headstart.evaluation.intervals import Estimate, paired_difference
from headstart.studies import learning_curves
from headstart.studies.candidates import Sample
from headstart.studies.learning_curves import (
    CUTS,
    FINETUNED,
    FROZEN,
    SCRATCH,
    Clock,
    Curve,
    Curves,
    Laboratory,
    Outcome,
    Pictures,
    Training,
    _chances,
    plan,
)
from headstart.studies.transfer_gain import (
    Set,
    advice_230,
    advice_231,
    conclude,
    pictures_for,
    verdict,
    with_more,
)
from headstart.studies.transfer_gain_report import CANT_TELL, NOT_WORTH, WORTH
from headstart.training import finetune
from headstart.training.checkpoint import STATE
from headstart.training.linear_probe import folds_of
from headstart.training.recipe import TrainingSetup

COUNTS = [50, 125, 250, 500]


def curve(accuracies: list[float], held_out: int = 400, counts: list[int] | None = None, seconds: float = 60.0) -> Curve:
    """Right on the first pictures of the held-out ones, as many as the accuracy says; a log-loss to match."""
    counts = counts or COUNTS[: len(accuracies)]
    right = [round(accuracy * held_out) for accuracy in accuracies]
    correct = np.array([np.arange(held_out) < count for count in right])
    losses = np.where(correct, 0.1, 2.0)
    return Curve(np.array(counts), correct, losses, np.array([seconds * count / counts[-1] for count in counts]))


def curves(
    frozen: list[float], tuned: list[float], scratch: list[float], held_out: int = 400, seconds: float = 600.0
) -> Curves:
    found = {(FROZEN, "none"): curve(frozen, held_out), (FINETUNED, "half"): curve(tuned, held_out)}
    found |= {(FINETUNED, cut): curve(tuned[-1:], held_out, COUNTS[-1:]) for cut in ("last", "all")}
    return found | {(SCRATCH, "all"): curve(scratch, held_out, seconds=seconds)}


HERE = Set(500, 2, 0.6, 0.75)


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_a_large_gain_is_worth_it_and_the_sentence_says_by_how_much() -> None:
    found = conclude(
        "resnet50", curves([0.7, 0.8, 0.85, 0.9], [0.7, 0.8, 0.86, 0.92], [0.5, 0.55, 0.6, 0.75]), "half", HERE
    )
    assert found.verdict == WORTH
    assert found.pretrained == FINETUNED
    assert found.worth_points.value == pytest.approx(17)
    sentence = found.sentences[0]
    assert sentence.startswith("Pre-training is worth it here")
    for part in ("92.0%", "75.0%", "+17.0 points", "400 held-out"):
        assert part in sentence


def test_where_random_weights_do_as_well_that_is_said_and_the_minutes_with_it() -> None:
    flat = [0.8, 0.9, 0.97, 0.99]
    found = conclude("resnet50", curves([0.7, 0.8, 0.9, 0.94], flat, flat, held_out=2000, seconds=600), "half", HERE)
    assert found.verdict == NOT_WORTH
    assert found.sentences[0].startswith("Pre-training buys no accuracy here")
    assert "10 times as long" in found.sentences[2]


def test_a_small_gain_on_few_pictures_cannot_be_told() -> None:
    found = conclude(
        "resnet50", curves([0.6, 0.7, 0.7, 0.8], [0.6, 0.7, 0.8, 0.825], [0.5, 0.6, 0.7, 0.8], held_out=40), "half", HERE
    )
    assert found.verdict == CANT_TELL
    assert "can't be told" in found.sentences[0]


@given(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_there_is_one_verdict_for_every_interval(value: float, below: float, above: float) -> None:
    said = verdict(Estimate(value, value - below, value + above))
    assert said in (WORTH, NOT_WORTH, CANT_TELL)
    if said == WORTH:
        assert value - below > 0
        assert value >= 0.01
    if value + above < 0:
        assert said == NOT_WORTH
    if value - below < 0 and value + above > 0.01:
        assert said == CANT_TELL


def test_a_difference_of_which_a_few_more_pictures_could_make_nothing_is_not_certain() -> None:
    always = np.ones(6, bool)
    assert verdict(paired_difference(always, always).accuracy) == CANT_TELL
    four = paired_difference(np.arange(60) < 46, np.arange(60) < 50)  # and none the other way: McNemar's p is 0.125
    assert verdict(four.accuracy) == CANT_TELL


def test_several_trainings_widen_differences_and_one_says_what_is_missing() -> None:
    folds = [Outcome(n=9, seconds=1.0, correct=[1] * 30, losses=[0.1] * 30, repeats=[0.5, 0.7, 0.9]) for _ in range(2)]
    chances = _chances(folds)
    assert [chance.degrees for chance in chances] == [2, 2]
    assert sum(chance.variance for chance in chances) == pytest.approx(2 * 0.25 * 0.04 / 3)
    once = curves([0.6, 0.7, 0.8], [0.5, 0.6, 0.7], [0.4, 0.5, 0.7])
    several = {key: replace(one, chances=[chances] * len(one.n)) for key, one in once.items() if key[0] != FROZEN}
    missing, counted = (conclude("net", each, "half", HERE) for each in (once, once | several))
    assert counted.worth_points.low < missing.worth_points.low
    assert counted.worth_points.value == missing.worth_points.value
    assert counted.freeze.gap.low < missing.freeze.gap.low
    assert missing.sentences[0].endswith("Chance in training is not counted: see finetune.repeats.")
    assert "Chance in training" not in counted.sentences[0]
    assert (missing.repeated, counted.repeated) == (False, True)


def test_seconds_go_on_from_where_the_state_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(learning_curves.time, "perf_counter", lambda: now)
    clock = Clock(tmp_path)
    for saved in (b"1", b""):  # after the first epoch, not after the second
        now += 10
        if saved:
            (tmp_path / STATE).write_bytes(saved)
        clock.note()
    assert clock.seconds() == 20
    later = Clock(tmp_path)
    later.note()  # of the first epoch, told again
    now += 10
    assert later.seconds() == 20


@pytest.mark.parametrize("content", [b"", b"[]", b'{"n": 9', None], ids=["empty", "a list", "cut short", "a digit changed"])
def test_a_result_that_is_damaged_is_measured_again(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [(np.arange(0), np.array([0, 1])), (np.arange(0), np.array([2, 3]))]
    pictures = SimpleNamespace(folds=folds, sample=SimpleNamespace(groups=np.array(["a", "b", "b", "c"])))

    def measure(ran: list[Training]) -> Curves:
        def run(missing: Sequence[Training]) -> Iterator[tuple[Training, Outcome]]:
            for training in missing:
                ran.append(training)
                yield training, Outcome(n=10, seconds=1.0, correct=[1, 0], losses=[0.25, training.share])

        return learning_curves.measure(pictures, trainings, run, tmp_path)  # type: ignore[arg-type]

    first: list[Training] = []
    again: list[Training] = []
    trainings = [Training(FROZEN, "none", fold, share) for fold in (0, 1) for share in (0.5, 1.0)]
    whole = measure(first)
    assert first == trainings
    file = tmp_path / f"{trainings[1].name}.json"
    file.write_bytes(file.read_bytes().replace(b"0.25", b"0.35") if content is None else content)
    capsys.readouterr()
    found = measure(again)
    assert again == [trainings[1]]
    assert capsys.readouterr().err.startswith(f"headstart: {file} is damaged or of an older version; it is made again\n")
    assert all(np.array_equal(found[key].losses, whole[key].losses) for key in whole)
    assert all(np.array_equal(curve.groups, [0, 1, 1, 2]) for curve in found.values() if curve.groups is not None)
    assert found[FROZEN, "none"].groups is not None


# --- labels and more pictures -----------------------------------------------------------------------------------------


def test_pictures_for_an_accuracy_lie_between_the_points_that_surround_it() -> None:
    c = curve([0.6, 0.7, 0.8, 0.9])
    needed, at_most = pictures_for(0.75, c)
    assert needed is not None
    assert 125 < needed < 250
    assert not at_most
    assert pictures_for(0.5, c) == (50.0, True)
    assert pictures_for(0.95, c) == (None, False)


def test_the_sentence_on_labels_is_true_in_each_case() -> None:
    def labels(tuned: list[float], scratch: list[float]) -> str:
        sentence: str = conclude("resnet50", curves([0.5] * 4, tuned, scratch), "half", HERE).sentences[1]
        return sentence

    assert "250 pictures reach the 80.0%" in labels([0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.7, 0.8])
    assert "50 pictures or fewer reach the 60.0%" in labels([0.7, 0.7, 0.8, 0.9], [0.5, 0.5, 0.5, 0.6])
    assert "do not reach" in labels([0.6, 0.7, 0.8, 0.9], [0.6, 0.7, 0.8, 0.95])
    assert "about as many" in labels([0.6, 0.7, 0.8, 0.9], [0.6, 0.7, 0.8, 0.9])


@given(st.floats(0.2, 0.8), st.floats(0.2, 0.9))
@settings(max_examples=8)
def test_a_power_law_is_found_again_and_followed_to_twice_the_pictures(start: float, exponent: float) -> None:
    errors = [start * (n / COUNTS[0]) ** -exponent for n in COUNTS]
    found = with_more(curve([1 - error for error in errors], held_out=5000))
    assert found.n == 1000
    assert found.exponent == pytest.approx(exponent, abs=0.1)
    assert 1 - found.accuracy == pytest.approx(start * (1000 / COUNTS[0]) ** -exponent, rel=0.15)
    assert found.low < found.accuracy < found.high


def test_no_forecast_is_made_that_the_points_do_not_support() -> None:
    assert "three points" in with_more(curve([0.7, 0.8])).refused
    assert "not certain" in with_more(curve([0.8, 0.81, 0.80, 0.81], held_out=100)).refused
    assert "power law" in with_more(curve([0.5, 0.9, 0.9, 0.9], held_out=5000)).refused
    found = conclude("resnet50", curves([0.5] * 4, [0.8, 0.81, 0.8, 0.81], [0.5] * 4, held_out=100), "half", HERE)
    assert found.sentences[3].startswith("More pictures: no forecast")


def test_a_perfect_score_is_no_error_of_the_arithmetic() -> None:
    found = with_more(curve([0.9, 0.99, 1.0, 1.0]))
    assert found.refused or found.accuracy <= 1


# --- how much to freeze -----------------------------------------------------------------------------------------------


def test_the_rules_of_thumb_are_those_that_were_published() -> None:
    assert advice_231("small", True)[0] == "none"
    assert advice_231("small", False)[0] == "last"
    assert advice_231("large", True)[0] == advice_231("large", False)[0] == "all"
    assert [advice_230(size)[0] for size in ("small", "medium", "large")] == ["none", "last", "all"]


def test_the_least_training_that_is_not_clearly_worse_is_taken_and_compared_with_the_rules() -> None:
    equal = conclude("resnet50", curves([0.9] * 4, [0.9] * 4, [0.5] * 4), "half", Set(100, 2, 0.6, 0.75)).freeze
    assert equal.measured == "none"
    assert (equal.size, equal.similar) == ("small", True)
    assert equal.rules["CS231n"].agrees
    assert equal.rules["CS230"].agrees
    better = conclude("resnet50", curves([0.8] * 4, [0.95] * 4, [0.5] * 4), "half", Set(5000, 2, 0.2, 0.75))
    assert better.freeze.measured == "last"
    assert (better.freeze.size, better.freeze.similar) == ("large", False)
    assert not better.freeze.rules["CS230"].agrees
    assert "CS230 says freeze nothing, start from the pre-trained weights, not what was measured" in better.sentences[5]
    assert [row.cut for row in better.freeze.table] == ["none", "last", "half", "all"]
    assert better.freeze.gap.value == pytest.approx(0.15)


def test_a_network_without_a_linear_classifier_is_placed_by_size_alone() -> None:
    found = conclude("resnet50", curves([0.9] * 4, [0.9] * 4, [0.5] * 4), "half", Set(100, 2, None, 0.58))
    assert list(found.freeze.rules) == ["CS230"]
    assert "unknown likeness" in found.sentences[5]


# --- what is trained --------------------------------------------------------------------------------------------------


def test_every_start_is_trained_on_every_share_of_every_fold_and_other_cuts_on_all() -> None:
    trainings = plan([0.25, 1.0], 2, "last")
    for start, cut in ((FROZEN, "none"), (FINETUNED, "last"), (SCRATCH, "all")):
        mine = {(t.fold, t.share) for t in trainings if (t.start, t.cut) == (start, cut)}
        assert mine == {(fold, share) for fold in (0, 1) for share in (0.25, 1.0)}
    assert {t.share for t in trainings if t.start == FINETUNED and t.cut in ("half", "all")} == {1.0}
    assert {t.cut for t in trainings} == set(CUTS)
    assert len({t.name for t in trainings}) == len(trainings)
    assert Training(FROZEN, "none", 0, 0.1).name == "frozen-none-0-0.1"


@pytest.mark.usefixtures("checkout_with_store")
def test_random_weights_are_trained_as_the_pipeline_trains_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    params = Params.model_validate({"weights": "none", "finetune": {"unfreeze": "last", "patience": 2}, "seed": 5})
    manifest = pd.DataFrame({"label": "a", "split": ["train"] * 700 + ["val"] * 9})

    def train(setup: TrainingSetup, folder: FinetuneFolder, *_: object) -> None:
        ran.append(setup.recipe)
        FinetuneDetails(ran=False).write(folder.details)

    monkeypatch.setattr("headstart.training.repeats.finetune_repeatedly", train)
    card = SimpleNamespace(pretrained=False)
    for loader in ("load_trunk", "load_first"):
        monkeypatch.setattr(f"headstart.models.backbones.{loader}", lambda *_: (None, card), raising=False)
    monkeypatch.setattr("headstart.data.manifest.read_manifest", lambda _: manifest)
    monkeypatch.setattr("headstart.data.packed.Pixels", lambda _: None)
    monkeypatch.setattr("headstart.training.head_files.load_start", lambda _: None)
    monkeypatch.setattr("headstart.base.artifacts.members.first_of", lambda _: None)
    monkeypatch.setattr(finetune, "inputs_of", lambda _: "")
    finetune.run(params, DATA, lambda *_: lambda row: None)
    laboratory = Laboratory(None, Path(), Path(), params, torch.device("cpu"), 0.0, Path())  # type: ignore[arg-type]
    (pipeline,), why = ran, laboratory.recipe(Training(SCRATCH, "all", 0, 1.0), 700)
    for what in ("scratch", "epochs", "patience", "batch_norm_trained", "seed"):
        assert getattr(why, what) == getattr(pipeline, what), what
    assert why.size_ratio(224) == pipeline.size_ratio(224)
    assert why.epochs == 58
    assert why.settings.model_copy(update={"unfreeze": "last"}) == pipeline.settings  # all is trained, whatever that says


@given(st.integers(0, 1000), st.lists(st.integers(5, 40), min_size=2, max_size=5), st.sampled_from([5, 9, 40]))
@settings(max_examples=30)
def test_shares_are_nested_stratified_and_hold_every_class_on_the_side_that_is_trained(
    seed: int, sizes: list[int], groups_each: int
) -> None:
    names = [f"class {number}" for number, size in enumerate(sizes) for _ in range(size)]
    paths = [f"{number}.png" for number in range(len(names))]
    groups = [f"{name} {number % groups_each}" for number, name in enumerate(names)]
    manifest = pd.DataFrame({"path": paths, "label": names, "split": "train", "group": groups})
    pictures = object.__new__(Pictures)  # its features are of no interest here
    pictures.sample, pictures.manifest = Sample.of(manifest, seed), manifest
    pictures.folds = folds_of(pictures.sample.labels, pictures.sample.groups)
    shares = pictures.shares([0.1, 0.25, 0.5, 1.0])
    assert shares[-1] == 1.0
    before: set[int] = set()
    for share in shares:
        train, val = pictures.inner(0, share)
        chosen = set(pictures.pictures(0, share).tolist())
        assert before < chosen
        assert set(train) | set(val) <= chosen
        assert not set(train) & set(val)
        assert len(val)
        assert len(train) + len(val) == len(chosen) or len(set(groups)) < len(groups)  # what resembles val is left out
        assert not chosen & set(pictures.folds[0][1].tolist())
        assert set(pictures.sample.labels[train]) == set(range(len(sizes)))
        before = chosen
    table = pictures.as_manifest(train, val)
    assert (table["split"] == "train").sum() == len(train)
    assert table["group"].tolist() == pictures.manifest["group"].tolist()  # which fine-tuning's choices count
    assert table["label"][pictures.sample.rows[train]].tolist() == [names[row] for row in pictures.sample.rows[train]]
