"""Where nothing changed drift is seldom seen, where something did it is found, and what is shown is what is new."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.drift import ClassCount, NewPictures
from headstart.base.artifacts.json_file import Interval
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Data, Prepare, Split
from headstart.data.fetch import fetch
from headstart.data.packed import Pixels
from headstart.data.prepare import prepare
from headstart.models.task import MULTI_LABEL, MultiLabel
from headstart.monitoring import drift_report, two_sample
from headstart.monitoring.active_learning import describe_selection, export, select_for_labelling
from headstart.monitoring.drift import ChampionPredictions, _predict, compare, compare_incoming, conclude, detect_drift
from headstart.monitoring.incoming import Incoming, Reader
from headstart.monitoring.two_sample import MIN_PICTURES, SIGNIFICANCE, NoveltyDetector, one_per_group
from tests.data.pictures import encoded, photograph, write_pictures
from tests.inference.test_predictor import known, put_model
from tests.studies.test_label_issues import clouds
from tests.training.test_features import packed

Floats = NDArray[np.floating[Any]]


def alone(count: int) -> NDArray[Any]:
    """Every picture a group of its own."""
    return np.arange(count)


def first(count: int, of: int) -> NDArray[np.bool_]:
    return np.arange(of) < count


# --- the test ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "old", "width"), [(15, 60, 40), (40, 40, 8)])
def test_where_nothing_changed_the_test_errs_as_often_as_it_says(
    new: int, old: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_sample, "PERMUTATIONS", 99)
    monkeypatch.setattr(two_sample, "RESAMPLES", 200)
    p, covered = [], []
    for seed in range(200):
        features = np.random.default_rng(seed).standard_t(3, (new + old, width))
        found = two_sample.two_sample(features, first(new, new + old), alone(new + old), seed)
        assert found
        p.append(found.p)
        covered.append(found.low <= 0.5 <= found.high)
    assert 0.04 <= np.mean(np.array(p) <= 0.1) <= 0.16
    assert 0.4 <= np.mean(np.array(p) <= 0.5) <= 0.6
    assert np.mean(covered) >= 0.85


@given(st.integers(0, 10_000), st.floats(2.5, 4), st.integers(20, 60))
@settings(max_examples=15)
def test_a_shift_of_the_features_is_found_and_measured(seed: int, shift: float, new: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(new + 150, 30))
    features[:new, :3] += shift / np.sqrt(3)
    found = two_sample.two_sample(features, first(new, new + 150), alone(new + 150), seed)
    assert found
    assert found.differ
    assert found.p <= SIGNIFICANCE
    assert 0.5 < found.low <= found.auc <= found.high <= 1
    assert found.auc > 0.75
    assert (found.new, found.old) == (new, 150)


def test_the_held_out_answers_are_those_of_regressions_that_were_fitted_without_the_fold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.metrics import roc_auc_score

    monkeypatch.setattr(two_sample, "RIDGE_PENALTIES", (0.7,))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 12))
    kernel, targets, fold = x @ x.T / 12, rng.normal(size=(60, 3)), np.arange(60) % two_sample.FOLDS
    found = two_sample._cross_validated(kernel, targets, fold)
    for number in range(two_sample.FOLDS):
        out = fold == number
        fitted = KernelRidge(alpha=0.7, kernel="precomputed").fit(kernel[np.ix_(~out, ~out)], targets[~out])
        assert found[out] == pytest.approx(fitted.predict(kernel[np.ix_(out, ~out)]))
    asked = rng.permuted(np.repeat(first(20, 60)[:, None], 3, axis=1), axis=0)
    expected = [roc_auc_score(asked[:, column], found[:, column]) for column in range(3)]
    assert two_sample._aucs(found, asked) == pytest.approx(expected)


def mixed(seed: int, shift: float) -> tuple[Floats, NDArray[np.bool_], NDArray[Any]]:
    """Old pictures of two classes, half and half, and new ones of which most are bees; those moved by ``shift``."""
    rng = np.random.default_rng(seed)
    new = first(80, 280)
    labels = np.where(rng.random(280) < np.where(new, 0.9, 0.4), "bee", "ant")
    features = rng.normal(size=(280, 20))
    features[:, 0] += 4 * (labels == "bee")
    features[new, 1] += shift
    return features, new, labels


def test_a_changed_mix_of_classes_is_told_from_changed_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "PERMUTATIONS", 199)
    told = []
    for seed in range(20):
        features, new, labels = mixed(seed, 0)
        whole, within = (two_sample.two_sample(features, new, alone(280), seed, c) for c in (None, labels))
        assert whole
        assert within
        told.append((whole.differ, within.differ))
    assert np.mean([whole for whole, _ in told]) > 0.8
    assert np.mean([within for _, within in told]) < 0.1
    features, new, labels = mixed(0, 1.5)
    moved = two_sample.two_sample(features, new, alone(280), 0, labels)
    assert moved
    assert moved.differ


def test_a_class_that_is_new_altogether_is_no_change_within_the_classes() -> None:
    features, new, labels = mixed(0, 0)
    labels = np.where(first(40, 280), "wasp", labels)
    found = two_sample.two_sample(features, new, alone(280), 0, labels)
    assert found
    assert (found.new, found.old) == (40, 200)


def test_a_hundred_pictures_of_one_scene_are_one_observation() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 10))
    features[:100] = features[0] + rng.normal(size=(100, 10)) * 1e-3
    new, groups = first(100, 300), alone(300)
    found = two_sample.two_sample(features, new, groups, 0)
    assert found
    assert found.differ
    groups[:100] = 0
    assert two_sample.two_sample(features, new, groups, 0) is None
    groups[:100] = np.arange(100) % MIN_PICTURES
    found = two_sample.two_sample(features, new, groups, 0)
    assert found
    assert found.new == MIN_PICTURES


@given(st.integers(0, 10_000), st.lists(st.integers(0, 9), min_size=1, max_size=40))
@settings(max_examples=25)
def test_one_picture_of_each_group_is_taken(seed: int, groups: list[int]) -> None:
    rows = one_per_group(np.array(groups), np.random.default_rng(seed))
    assert sorted(groups[row] for row in rows) == sorted(set(groups))


def test_that_two_dozen_pictures_are_all_told_apart_does_not_make_it_certain() -> None:
    features = np.random.default_rng(0).normal(size=(124, 10))
    features[:24, :5] += 12
    found = two_sample.two_sample(features, first(24, 124), alone(124), 0)
    assert found
    assert found.auc == found.high == 1
    assert found.low == pytest.approx(binomtest(24, 24).proportion_ci().low)


def test_features_that_are_all_the_same_are_no_difference() -> None:
    found = two_sample.two_sample(np.ones((60, 5)), first(20, 60), alone(60), 0)
    assert found
    assert (found.low, found.auc, found.high, found.p) == (0.5, 0.5, 0.5, 1.0)


# --- new in kind ------------------------------------------------------------------------------------------------------


def test_of_pictures_like_the_old_ones_about_one_in_a_hundred_is_strange_and_of_a_new_kind_all_are() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(4, 32)) * 2
    known = NoveltyDetector.fit(kinds[rng.integers(0, 3, 600)] + rng.normal(size=(600, 32)))
    same = known.distances(kinds[rng.integers(0, 3, 1000)] + rng.normal(size=(1000, 32)))
    other = known.distances(kinds[3] + rng.normal(size=(50, 32)))
    assert 0.002 <= (same > known.limit).mean() <= 0.03
    assert 0.8 <= np.median(same) <= 1.2
    assert (other > known.limit).all()


def labelled(seed: int, new: int = 40) -> tuple[pd.DataFrame, Floats, NDArray[np.bool_]]:
    """Pictures of two kinds in train, validation and test, of which every fourth or so is new."""
    pictures, features = clouds((100, 100), seed)
    pictures.loc[::5, "split"] = "test"
    return pictures, features, first(new, 200)[np.random.default_rng(seed).permutation(200)]


def test_the_pictures_that_are_new_in_kind_are_named_the_farthest_first_and_no_test_pictures() -> None:
    pictures, features, new = labelled(0)
    odd = np.flatnonzero(new)[:12]
    features[odd] = -3 * features[odd]
    found = compare(pictures, features, new, None, 0)
    strange = found.strange
    wanted = pictures.iloc[odd]
    assert set(wanted["path"][wanted["split"] != "test"]) <= {row.path for row in strange.pictures}
    assert not {row.path for row in strange.pictures} & set(pictures["path"][pictures["split"] == "test"])
    assert 12 <= strange.count <= 15
    assert strange.low < strange.share == strange.count / 40 < strange.high
    distances = [row.distance for row in strange.pictures]
    assert distances == sorted(distances, reverse=True)


def test_two_halves_of_the_old_pictures_are_the_control() -> None:
    pictures, features, new = labelled(1)
    features[new] += 1.5
    found = compare(pictures, features, new, None, 0)
    assert found.test.differ
    assert found.test_within_classes.differ
    assert not found.test_of_old_halves.differ
    assert NewPictures.model_validate_json(found.model_dump_json()) == found


# --- the champion -----------------------------------------------------------------------------------------------------


def answers_for(
    pictures: pd.DataFrame, new: NDArray[np.bool_], right: pd.Series[str], classes: tuple[str, ...]
) -> ChampionPredictions:
    """A champion that is always right, about all new pictures and the old test pictures."""
    rows = np.flatnonzero(new | (pictures["split"] == "test").to_numpy())
    return ChampionPredictions(rows, right.iloc[rows].tolist(), np.linspace(0.5, 1, len(rows)), classes)


def test_a_month_of_wrong_labels_is_what_the_champion_contradicts_and_no_drift_of_pictures() -> None:
    pictures, features, new = labelled(2)
    right = pictures["label"].copy()
    wrong = np.flatnonzero(new)[::2]
    pictures.loc[pictures.index[wrong], "label"] = right.iloc[wrong].map({"ant": "bee", "bee": "ant"}).to_numpy()
    found = compare(pictures, features, new, answers_for(pictures, new, right, ("ant", "bee")), 0)
    disagreement = found.champion.disagreement
    assert disagreement.new.value == 0.5
    assert disagreement.old == Interval(value=0.0, low=0.0, high=0.0)
    assert 0.3 < disagreement.difference.low < 0.5 < disagreement.difference.high < 0.7
    listed = [row.path for row in found.champion.contradicted]
    shown = pictures.iloc[wrong]
    assert set(listed) == set(shown["path"][shown["split"] != "test"])
    sure = [row.probability for row in found.champion.contradicted]
    assert sure == sorted(sure, reverse=True)
    assert not found.test.differ
    assert "contradicts 50% of their labels and 0% of those of old test pictures: +50 points" in drift_report.sentence(
        found, None
    )


def test_classes_that_the_champion_does_not_know_are_named() -> None:
    pictures, features, new = labelled(3)
    pictures.loc[new, "label"] = "wasp"
    found = compare(pictures, features, new, answers_for(pictures, new, pictures["label"], ("ant", "bee")), 0)
    assert found.champion.unknown_classes == ["wasp"]
    assert found.classes[0] == ClassCount(label="wasp", new=40, old=0)
    assert "Classes it does not know: wasp." in drift_report.sentence(found, None)


def test_several_labels_are_compared_as_sets_and_counted_one_by_one() -> None:
    pictures, features, new = labelled(3)
    pictures["labels"] = [["ant", "bee"] if n % 2 else [] for n in range(len(pictures))]
    pictures["label"] = pictures["labels"].map(";".join)
    guesses = pd.Series(["bee;ant" if n % 2 else "" for n in range(len(pictures))], pictures.index)
    found = compare(pictures, features, new, answers_for(pictures, new, guesses, ("ant", "bee")), 0)
    assert found.champion.disagreement.new.value == 0
    assert found.champion.unknown_classes == []
    both = int((new & (np.arange(200) % 2 == 1)).sum())
    assert found.classes == [ClassCount(label=name, new=both, old=100 - both) for name in ("ant", "bee")]
    pictures["labels"] = [
        [*names, "wasp"] if is_new else names for names, is_new in zip(pictures["labels"], new, strict=True)
    ]
    pictures["label"] = pictures["labels"].map(";".join)
    found = compare(pictures, features, new, answers_for(pictures, new, guesses, ("ant", "bee")), 0)
    assert found.champion.disagreement.new.value == 1
    assert found.champion.disagreement.old.value == 0
    assert found.champion.unknown_classes == ["wasp"]
    assert {(row.label, row.guess) for row in found.champion.contradicted} == {("wasp", ""), ("ant;bee;wasp", "bee;ant")}


def test_a_champion_of_the_other_task_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels, manifest = packed(tmp_path / "prepare", 30, None)
    several = manifest.assign(labels=[["red"]] * 30)
    for folder, thresholds, own, other in (("one", None, manifest, several), ("any", (0.5,) * 3, several, manifest)):
        champion = known(put_model(tmp_path / folder / "artifacts/classifier", thresholds=thresholds))
        asked = (pixels, first(9, 30), torch.device("cpu"), 0)
        answered = _predict(champion, own, *asked)
        assert answered is not None
        assert set(answered.rows) >= set(range(9))
        assert _predict(champion, other, *asked) is None


def test_without_old_pictures_nothing_is_compared_and_that_is_said() -> None:
    pictures, features, _ = labelled(4)
    everything = np.ones(200, bool)
    found = compare(pictures, features, everything, answers_for(pictures, everything, pictures["label"], ("ant", "bee")), 0)
    assert found.test is found.strange is found.champion.disagreement.old is None
    assert "too few to compare" in drift_report.sentence(found, None)


# --- worth labelling --------------------------------------------------------------------------------------------------


def spread(entropy: Floats) -> Floats:
    """(N, 2) probabilities, the less certain the larger ``entropy`` in [0, 1] is."""
    p = 1 - 0.5 * entropy
    return np.stack([p, 1 - p], axis=1)


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=20)
def test_what_is_to_be_labelled_is_one_of_each_kind_and_not_many_of_one(seed: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[: kinds + 1] * 10
    kind = np.repeat(np.arange(kinds), 30)
    features = centres[kind] + rng.normal(size=(len(kind), 8)) * 0.3
    known = centres[kinds] + rng.normal(size=(40, 8)) * 0.3
    rows = select_for_labelling(features, spread(rng.uniform(0.5, 1, len(kind))), known, kinds)
    assert sorted(kind[rows]) == list(range(kinds))


def test_of_pictures_that_are_equally_far_the_least_certain_comes_first() -> None:
    known = np.eye(6)[:1]
    rows = select_for_labelling(np.eye(6)[1:], spread(np.array([0.1, 0.9, 0.0, 0.5, 0.3])), known, 5)
    assert rows == [1, 3, 4, 0, 2]


def test_copies_of_what_is_labelled_or_taken_are_not_to_be_labelled() -> None:
    rng = np.random.default_rng(0)
    known, fresh = rng.normal(size=(10, 5)), rng.normal(size=(3, 5))
    features = np.concatenate([known[:4] * 2, fresh, fresh * 3])
    rows = select_for_labelling(features, spread(np.ones(10)), known, 10)
    assert sorted(row if row < 7 else row - 3 for row in rows) == [4, 5, 6]


def arrived(folder: Path, shift: float, count: int = 40) -> tuple[Incoming, Floats]:
    """Pictures in a folder, with features in which they are ``shift`` away from labelled ones, and those."""
    rng = np.random.default_rng(0)
    names = {f"day, {n % 3}/<b>{n}.png": n for n in range(count)}
    write_pictures(folder, names)
    features, old = rng.normal(size=(count, 20)) + 1, rng.normal(size=(150, 20)) + 1
    features[:, 0] += shift
    probabilities = spread(rng.random(count))
    return Incoming(folder, list(names), features, probabilities, ("ant", "bee"), alone(count), count, {"x.txt": "no"}), old


def test_pictures_without_labels_are_exported_where_drift_is_real_and_only_there(tmp_path: Path) -> None:
    incoming, old = arrived(tmp_path / "inbox", 4)
    folder = DataFolder(tmp_path).drift.to_label
    folder.parent.mkdir()
    found = compare_incoming(incoming, old, alone(150), 7, 0)
    assert found.test.differ
    assert len(found.to_label) == 7
    export(incoming, found.to_label, folder)
    rows = list(csv.DictReader(io.StringIO(folder.table.read_text())))
    assert list(rows[0]) == ["path", "original", "guess", "probability", "why"]
    for row in rows:
        assert (folder / row["path"]).read_bytes() == (incoming.folder / row["original"]).read_bytes()
        assert row["guess"] in incoming.classes
        assert row["why"]
    assert len(list(folder.iterdir())) == 8
    assert "The 7 most worth labelling are in data/drift/to_label." in drift_report.sentence(None, found)
    (incoming.folder / rows[0]["original"]).unlink()  # somebody has moved it meanwhile
    export(incoming, found.to_label, folder)
    assert list(csv.DictReader(io.StringIO(folder.table.read_text()))) == rows[1:]
    quiet, old = arrived(tmp_path / "inbox", 0)
    found = compare_incoming(quiet, old, alone(150), 7, 0)
    assert not found.test.differ
    assert found.to_label == []
    export(quiet, found.to_label, folder)
    assert not folder.exists()
    assert not list(folder.parent.iterdir())


def test_the_table_says_why(tmp_path: Path) -> None:
    incoming, old = arrived(tmp_path / "inbox", 0)
    known = NoveltyDetector.fit(old)
    incoming.features[0] = -5 * old.mean(axis=0)
    incoming.probabilities[:2] = [[0.98, 0.02], [0.45, 0.55]]
    strange, unsure = describe_selection(incoming, [0, 1], known)
    assert strange.why.startswith("new in kind: ")
    assert "unsure" not in strange.why
    assert unsure.why.endswith("unsure: bee 55%, ant 45%")
    assert (unsure.guess, unsure.probability) == ("bee", 0.55)
    assert strange.path == "001-<b>0.png"


def test_of_several_labels_each_class_is_guessed_and_unsure_by_itself(tmp_path: Path) -> None:
    incoming, old = arrived(tmp_path / "inbox", 4)
    probabilities = np.tile([0.99, 0.98, 0.01], (40, 1))
    probabilities[:4] = [[0.3, 0.01, 0.02], [0.95, 0.05, 0.6], [0.01, 0.01, 0.01], [0.4, 0.5, 0.5]]
    changed = {"probabilities": probabilities, "classes": ("ant", "bee", "wasp"), "task": MultiLabel((0.4, 0.5, 0.5))}
    incoming = Incoming(**{**vars(incoming), **changed})
    found = compare_incoming(incoming, old, alone(150), 7, 0)
    assert found.guesses == {"ant": 38, "bee": 37, "wasp": 2}
    one, two, none, three = describe_selection(incoming, [0, 1, 2, 3], NoveltyDetector.fit(old))
    assert one.why.endswith("unsure: ant 30%")
    assert (two.guess, two.probability) == ("ant;wasp", round(0.95 * 0.95 * 0.6, 4))
    assert two.why.endswith("unsure: wasp 60%")
    assert none.guess == ""
    assert "unsure" not in none.why
    assert three.why.endswith("unsure: ant 40%, bee 50%")


def test_of_several_labels_the_one_with_most_doubts_is_worth_labelling_first() -> None:
    doubts = np.array([[0.9, 0.9], [0.5, 0.5], [0.01, 0.99], [0.5, 0.02]])
    rows = select_for_labelling(np.eye(5)[1:], doubts, np.eye(5)[:1], 4, MULTI_LABEL)
    assert rows == [1, 3, 0, 2]


# --- pictures in a folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw_gb", [1.0, 0.0], ids=["raw", "jpeg"])
def test_an_incoming_picture_is_read_as_it_would_have_been_stored(
    tmp_path: Path, raw_gb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that how pictures are stored is nothing by which they can be told apart."""
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        label = ("ant", "bee")[number % 2]
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        picture = photograph(number, (300, 200) if number % 3 else (90, 70))
        (tmp_path / "set" / label / f"{number}.png").write_bytes(encoded(picture))
    pictures = fetch(Data(source=str(tmp_path / "set")), tmp_path / "fetched.csv")
    settings, folder = Prepare(short_side=96, raw_gb=raw_gb), tmp_path / "prepare"
    manifest = prepare(pictures, tmp_path / "set", settings, Split(val=0.3, test=0.3), 0, 1, folder)
    pixels = Pixels(folder)
    read = Reader(pixels)
    for row, picture in enumerate(manifest.itertuples()):
        seen = read(tmp_path / "set" / str(picture.path))
        assert not isinstance(seen, str)
        assert seen.sha256 == picture.sha256
        assert np.array_equal(seen.pixels, pixels[row])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    assert isinstance(read(tmp_path / "broken.png"), str)
    assert "No such file" in str(read(tmp_path / "gone.png"))


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_is_new_needs_no_network_and_is_the_same_every_time(tmp_path: Path) -> None:
    pixels, manifest = packed(tmp_path / "prepare", 60, None)
    manifest["group"] = manifest["path"] = [f"set, one/[{n}] <b>.png" for n in range(60)]
    rng = np.random.default_rng(0)
    features, new = rng.normal(size=(60, 16)) + 1, first(20, 60)
    features[new] *= -2
    guesses = ChampionPredictions(np.arange(60), ["ant"] * 60, np.full(60, 0.9), ("ant", "bee", "wolf"))
    incoming, _ = arrived(tmp_path / "inbox", 0, 15)
    incoming = Incoming(**{**vars(incoming), "features": rng.normal(size=(15, 16)) - 2})
    pages = []
    for _ in range(2):
        labelled = compare(manifest, features, new, guesses, 0)
        found = conclude(labelled, compare_incoming(incoming, features, alone(60), 5, 0))
        drift_report.write_page(found, manifest, pixels, incoming, tmp_path / "drift.html")
        pages.append((tmp_path / "drift.html").read_text())
    assert pages[0] == pages[1]
    page = pages[0]
    assert "://" not in page
    assert found.new.strange.pictures
    assert found.new.champion.contradicted
    assert len(found.incoming.to_label) == 5
    assert "[" + found.new.strange.pictures[0].path.split("[")[1].replace("<b>", "&lt;b&gt;") in page
    pictures = [*found.new.strange.pictures, *found.new.champion.contradicted]
    pictures += [*found.incoming.strange.pictures, *found.incoming.to_label]
    assert page.count("data:image/jpeg;base64,") == len(pictures) < 4 * drift_report.MAX_SHOWN
    assert "x.txt" in page


def test_where_nothing_is_new_nothing_is_computed_or_written(tmp_path: Path) -> None:
    (tmp_path / "prepare").mkdir()
    pictures, _, _ = labelled(0)
    pictures["sha256"] = pictures["path"]
    pictures.to_parquet(tmp_path / "prepare/manifest.parquet")
    assert detect_drift(DataFolder(tmp_path), Params(data=Data()), set(pictures["path"]), None) is None
    assert detect_drift(DataFolder(tmp_path), Params(data=Data()), set(), None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["prepare"]


def test_a_folder_of_incoming_pictures_that_is_not_there_is_said(tmp_path: Path) -> None:
    from headstart.monitoring.incoming import read_incoming

    with pytest.raises(HeadstartError, match=r"drift\.incoming '.*inbox': there is no such folder"):
        read_incoming(tmp_path / "inbox", DataFolder(tmp_path), pd.DataFrame(), Params(), tmp_path, None)  # type: ignore[arg-type]


def test_a_new_kind_among_many_of_the_old_kinds_is_more_than_chance_explains() -> None:
    rng = np.random.default_rng(0)
    known = NoveltyDetector.fit(rng.normal(size=(85, 16)))
    assert known.p_value(243, 44) < 1e-3
    assert known.p_value(243, 3) > 0.1
    assert known.p_value(40, 0) == 1


def test_pictures_of_the_old_kinds_are_seldom_taken_for_a_new_one() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        known = NoveltyDetector.fit(rng.normal(size=(60, 8)))
        beyond = known.distances(rng.normal(size=(60, 8))) > known.limit
        alarms += known.p_value(60, int(beyond.sum())) < SIGNIFICANCE
    assert alarms <= 8  # of 200; a hundredth is two
