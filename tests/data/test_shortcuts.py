"""Blind classifiers: what is planted is found and named, what labels do not say is not, and groups count as one."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import pearson3
from sklearn.linear_model import Ridge

from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.shortcuts import BlindScore
from headstart.data import blind
from headstart.data.blind import FOLDS, Blindfold, binned, cases_of, corrected, one_hot, permuted, smooth
from headstart.data.decode import decode
from headstart.data.file_properties import MAKE, MODEL, PHOTOGRAPH, TAKEN, FileProperties
from headstart.data.shortcuts import BYTES, FILE, examine_files, warnings_of
from tests.data.pictures import encoded, photograph

NAMES = np.array(["ant", "bee", "wolf"])


def pictures(counts: tuple[int, ...], seed: int = 0, each: int = 1) -> pd.DataFrame:
    """A manifest with so many pictures of each class, ``each`` of them in one group."""
    labels = np.repeat(NAMES[: len(counts)], counts)
    groups = [f"{label}{n // each}" for label, count in zip(NAMES, counts, strict=False) for n in range(count)]
    table = pd.DataFrame(
        {"path": [f"{n}.png" for n in range(len(labels))], "label": labels, "split": "train", "group": groups}
    )
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def properties(count: int, seed: int = 0) -> pd.DataFrame:
    """Of files whose properties say nothing."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "format": random.choice(["JPEG", "PNG"], count),
        "mode": random.choice(["RGB", "L"], count),
        "exif": random.random(count) < 0.5,
        "profile": False,
        "camera": random.choice(["", "Nikon D1"], count),
        "compression": random.choice([0.0, 4.56, 23.08], count),
        "bytes": random.integers(1000, 9000, count),
        "width": random.choice([400, 500, 640], count),
        "height": random.integers(300, 500, count),
    }
    return pd.DataFrame(columns)


def with_share(table: pd.DataFrame, label: str, share: float, seed: int = 0) -> np.ndarray[Any, Any]:
    """Whether each picture gets a sign: so many of the class, and so many fewer of the others."""
    random = np.random.default_rng(seed).random(len(table))
    return np.where(table["label"] == label, random < share, random < 1 - share)


# --- the files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "clue"),
    [
        ("format", "WEBP", "format WEBP: "),
        ("mode", "P", "colour mode P: "),
        ("camera", "Canon EOS", "camera Canon EOS: "),
        ("width", 512, " pixels: |width of 512 or more: |width below"),
        ("compression", 60.0, "compression of 60 or more: "),
    ],
)
@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_class_whose_files_differ_is_named_with_the_sign(column: str, value: Any, clue: str, share: float) -> None:
    table, files = pictures((80, 120, 100)), properties(300)
    if column == "width":
        files["width"] = 400
        files["height"] = 300
    files.loc[with_share(table, "bee", share), column] = value
    scores, found = examine_files(table, files)
    assert [score.sees for score in scores] == [FILE, BYTES]
    (bee,) = (one for one in found if one.label == "bee" and one.sees == FILE)
    assert bee.kind == "shortcut"
    assert bee.guessing == 0.5
    assert bee.accuracy.low < bee.accuracy.value <= bee.accuracy.high
    assert bee.accuracy.value == pytest.approx(share, abs=0.1)
    assert re.search(clue, bee.clue), bee.clue
    (ours,) = re.findall(r"(\d+)% of 'bee'", bee.clue)
    assert int(ours) == pytest.approx(100 * share, abs=15)
    warnings = warnings_of(found)
    assert len(warnings) >= 1
    assert all("docs/shortcuts.md" in warning for warning in warnings)
    assert any("'bee'" in warning for warning in warnings)


def test_sources_of_other_sizes_are_one_warning_for_all_classes() -> None:
    """As in a public set of chest X-rays: each class from a source of its own."""
    table, random = pictures((150, 100, 120)), np.random.default_rng(1)
    files = properties(len(table))
    middle = table["label"].map({"ant": 1000.0, "bee": 1400.0, "wolf": 2000.0})
    files["width"] = (middle * random.normal(1, 0.12, len(table))).astype(int)
    files["height"] = (files["width"] * random.normal(0.9, 0.05, len(table))).astype(int)
    scores, found = examine_files(table, files)
    overall = next(score for score in scores if score.sees == FILE)
    assert overall.label is None
    assert overall.accuracy.low > 0.7 > overall.guessing + 0.2
    warning = warnings_of(found)[0]
    assert warning.startswith("what the file says (format, colour mode, width, height")
    assert "tells the classes apart: accuracy 0." in warning
    assert f"guessing {150 / 370:.3f}" in warning


def test_bytes_count_only_where_they_tell_all_classes() -> None:
    table, random = pictures((100, 100, 100)), np.random.default_rng(0)
    files = properties(300)
    files["bytes"] = (table["label"].map({"ant": 2000, "bee": 9000, "wolf": 9000}) * random.normal(1, 0.2, 300)).astype(int)
    assert examine_files(table, files)[1] == []  # one class is plainer to look at than the others
    files["bytes"] = (table["label"].map({"ant": 2000, "bee": 5000, "wolf": 9000}) * random.normal(1, 0.1, 300)).astype(int)
    (found,) = examine_files(table, files)[1]
    assert (found.sees, found.kind, found.label) == (BYTES, "look", None)
    assert warnings_of([found]) == []  # by itself it may be what is to be learned


@given(st.integers(0, 10_000), st.sampled_from([(40, 40), (30, 60, 90), (200, 12)]))
@settings(max_examples=25)
def test_files_that_say_nothing_are_hardly_ever_named(seed: int, counts: tuple[int, ...]) -> None:
    """Once in twenty sets would be what is promised; with the same seeds each time, none is."""
    found = examine_files(pictures(counts, seed), properties(sum(counts), seed))[1]
    assert found == []


def test_pictures_of_a_group_count_as_one() -> None:
    """Ten pictures of each of ten people a class: each person has a camera, as it happens, and no class has one."""
    alarms = 0
    for seed in range(10):
        table = pictures((100, 100), seed, each=10)
        files = properties(200, seed)
        for column in ("format", "mode", "exif", "camera", "compression", "bytes", "width", "height"):
            files[column] = files.groupby(table["group"])[column].transform("first")
        alarms += bool(examine_files(table, files)[1])
        if seed == 0:
            cases = cases_of(table)
            fold = Blindfold(cases)
            for folds in fold.folds:
                assert pd.Series(folds).groupby(cases.groups).nunique().max() == 1
                assert set(folds) == set(range(FOLDS))
            naive = dataclasses.replace(cases, groups=np.arange(200))
            score, of_groups = (one._share(cases.truth[:, 0], np.ones(200, bool)) for one in (Blindfold(naive), fold))
            assert of_groups[0] == score[0] == 0.5
            assert of_groups[2] - of_groups[1] > 2.5 * (score[2] - score[1])
    assert alarms <= 1


def test_test_pictures_are_not_looked_at() -> None:
    table, files = pictures((60, 60)), properties(120)
    files.loc[table["label"] == "ant", "format"] = "GIF"
    found = examine_files(table, files)[1]
    more, others = table.copy(), files.copy()
    more["split"], others["format"] = "test", "BMP"
    both = pd.concat([table, more], ignore_index=True), pd.concat([files, others], ignore_index=True)
    assert examine_files(*both)[1] == found


def test_classes_with_too_few_groups_are_left_out_and_too_few_classes_are_not_judged() -> None:
    table = pictures((40, 40, 4))
    cases = cases_of(table)
    assert cases.classes == ["ant", "bee"]
    assert cases.left_out == ["wolf"]
    assert len(cases.rows) == 80
    assert examine_files(pictures((40, 4)), properties(44)) == ([], [])
    assert examine_files(pictures((40,)), properties(40)) == ([], [])
    assert examine_files(pictures((20, 20), each=5), properties(40)) == ([], [])


def test_of_pictures_with_several_labels_each_class_is_judged() -> None:
    random = np.random.default_rng(0)
    labels = [[str(name) for name in NAMES if random.random() < 0.4] for _ in range(200)]
    table = pd.DataFrame(
        {"path": range(200), "label": [";".join(own) for own in labels], "labels": labels, "split": "train"}
    )
    table["group"] = table["path"].astype(str)
    files = properties(200)
    files.loc[["bee" in own for own in labels], "mode"] = "P"
    scores, found = examine_files(table, files)
    assert {score.label for score in scores} == set(NAMES)
    (one,) = found
    assert one.label == "bee"
    assert one.clue == "colour mode P: 100% of 'bee', 0% of the others"
    everywhere = [[*own, "all"] for own in labels]
    assert "all" in cases_of(table.assign(labels=everywhere)).left_out


def test_of_very_many_pictures_some_are_drawn_with_their_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pictures((200, 300), each=4)
    monkeypatch.setattr(blind, "MOST_PICTURES", 100)
    cases = cases_of(table)
    assert 100 <= len(cases.rows) < 104
    drawn = table.iloc[cases.rows]
    assert (drawn.groupby("group").size() == 4).all()
    assert drawn["label"].nunique() == 2


def test_what_a_file_says_is_read_while_it_is_decoded() -> None:
    exif = Image.Exif()
    exif[MAKE], exif[MODEL] = "Maker\0 ", "D1"
    exif.get_ifd(PHOTOGRAPH)[TAKEN] = "2008:05:30 15:56:01"
    taken = decode(encoded(photograph(0), "JPEG", quality=75, exif=exif, icc_profile=b"profile")).file
    assert (taken.format, taken.mode, taken.exif, taken.profile, taken.camera) == ("JPEG", "RGB", True, True, "Maker D1")
    assert taken.taken == "2008:05:30 15:56:01"
    better = decode(encoded(photograph(0), "JPEG", quality=95)).file
    assert taken.compression > 3 * better.compression > 0
    assert (better.exif, better.profile, better.camera, better.taken) == (False, False, "", "")
    assert decode(encoded(photograph(0).convert("P"), "PNG")).file == FileProperties("PNG", "P")
    garbled = encoded(photograph(0), "JPEG", exif=exif.tobytes()).replace(b"Exif\0\0MM\0", b"Exif\0\0??\0")
    assert decode(garbled).file.camera == ""


# --- the classifier -------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_ridge_regressions_fitted_without_the_fold() -> None:
    cases = cases_of(pictures((50, 70, 30)))
    fold = Blindfold(cases)
    seen = np.random.default_rng(0).normal(size=(150, 8)) + cases.truth @ np.eye(3, 8)
    fold.scores("it", seen)
    expected = np.zeros((150, 3))
    for folds in fold.folds:
        for number in range(FOLDS):
            known, held_out = folds != number, folds == number
            model = Ridge(alpha=1.0).fit(seen[known], cases.truth[known])
            expected[held_out] += (model.predict(seen[held_out]) - cases.truth[known].mean(0)) / len(fold.folds)
    assert fold.answers["it"] == pytest.approx(expected, abs=1e-4)


def test_p_values_are_those_of_the_pearson_distribution_and_near_the_share_of_permutations() -> None:
    random = np.random.default_rng(0)
    chance = np.stack([random.gamma(3, size=4000), -random.gamma(3, size=4000), random.normal(size=4000)], axis=1)
    measured = np.quantile(chance, 0.98, axis=0)
    found = blind._p_values(measured, chance)
    assert found == pytest.approx(0.02, abs=0.005)
    z = (chance - chance.mean(0)) / chance.std(0, ddof=1)
    far = chance.mean(0) + 5 * chance.std(0, ddof=1)
    expected = [pearson3.sf(5, skew) for skew in (z**3).mean(0)]
    assert blind._p_values(far, chance) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert blind._p_values(np.ones(1), np.zeros((50, 1))) == 1.0


def test_permuted_labels_stay_with_their_groups() -> None:
    cases = cases_of(pictures((40, 60), each=4))
    for rows in permuted(cases.groups, 5):
        assert sorted(rows) == list(range(100))  # groups are of one size here
        assert pd.Series(cases.truth[rows, 0]).groupby(cases.groups).nunique().max() == 1
        assert (cases.truth[rows] != cases.truth).any()


def test_holms_correction() -> None:
    scores = [
        BlindScore(sees="it", accuracy=Interval(value=1.0, low=1.0, high=1.0), guessing=0.5, p=p)
        for p in (0.01, 0.04, 0.03, 0.005)
    ]
    assert [score.p for score in corrected(scores)] == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_numbers_and_names_become_columns() -> None:
    assert (binned([1, 1, 1]) > 0).any(0).sum() == 1
    assert (binned(np.arange(100), 4) > 0).sum(0).tolist() == [25] * 4
    assert (one_hot(["a"] * 6 + ["b"] * 4 + ["c"] * 5) > 0).sum(0).tolist() == [6, 5]
    assert one_hot(["a", "b"]).shape == (2, 0)
    assert np.isfinite(smooth(np.zeros((10, 3)))).all()
    values = np.random.default_rng(0).normal(size=(400, 1))
    bent = smooth(values)
    known, rest = slice(0, 300), slice(300, 400)
    model = Ridge(alpha=1.0).fit(bent[known], np.abs(values[known, 0]) > 0.7)
    assert ((model.predict(bent[rest]) > 0.5) == (np.abs(values[rest, 0]) > 0.7)).mean() > 0.9  # no line tells these apart
