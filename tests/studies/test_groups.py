"""Groups that names, EXIF tags or looks give away are suggested and others are not; what it costs to part them is what was
planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.base.artifacts import GroupsFolder
from headstart.base.artifacts.groups import GroupSuggestion, GroupSuggestions
from headstart.base.artifacts.json_file import Interval
from headstart.data.corrections import grouped
from headstart.data.picture import Picture
from headstart.models.task import MULTI_LABEL, SINGLE_LABEL
from headstart.studies import group_readings, groups, groups_report
from headstart.studies.group_readings import Readings
from headstart.training.linear_probe import FOLDS

PEOPLE, EACH = 40, 10


def suggested(paths: list[str], labels: list[str]) -> Readings:
    """What names alone suggest."""
    return group_readings.plausible(group_readings.of_names(paths, labels), labels)


def test_the_patients_in_the_names_of_the_best_known_chest_x_rays_are_found() -> None:
    kinds = ("bacteria", "virus")
    paths = [f"{kinds[p % 2]}/person{p}_{kinds[p % 2]}_{100 + 3 * p + n}.jpeg" for p in range(30) for n in range(3)]
    found = suggested(paths, [path.split("/")[0] for path in paths])
    (by,) = found.values()
    assert len(set(by)) == 30
    assert all(group.split("_")[0] == path.split("/")[1].split("_")[0] for group, path in zip(by, paths, strict=True))


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("the folder", [f"cat/session {s}/{n}.png" for s in range(12) for n in range(4)]),
        ("the name up to its last number", [f"cat/plant{chr(97 + s)}-{n:03}.jpg" for s in range(12) for n in range(4)]),
        (
            "the first number in the name",
            [f"cat/{('left', 'right')[n % 2]}{s}eye{n}.png" for s in range(12) for n in range(4)],
        ),
    ],
)
def test_what_people_call_files_is_found_and_the_pattern_makes_the_same_groups(name: str, paths: list[str]) -> None:
    by = suggested(paths, ["cat"] * len(paths))[name]
    assert len(set(by)) == 12
    made = grouped([Picture(path, "cat") for path in paths], group_readings.PATTERNS[name])
    assert [picture.group for picture in made] == by


def test_one_who_photographs_each_class_in_turn_is_a_group() -> None:
    numbers = [n for n in range(1118, 1118 + 300) if n != 1200]  # the picture of a 2 was thrown away
    paths = [f"{(n - 1118) % 10}/IMG_{n}.JPG" for n in numbers]
    by = suggested(paths, [path[0] for path in paths])[group_readings.SERIES]
    people = dict(zip(numbers, by, strict=True))
    assert {people[n] for n in range(1118, 1128)} == {"IMG_1118"}
    assert people[1128] == "IMG_1128"
    assert people[1199] == "IMG_1198"
    assert people[1201] != people[1199]


@pytest.mark.parametrize(
    "paths",
    [
        [f"ants/{n}.jpg" for n in range(60)] + [f"bees/{n}.jpg" for n in range(60)],
        [f"ants/{n * 7919 % 10**6}_{n * 104729 % 10**8:x}.jpg" for n in range(120)],
        [f"ants/ant {n}.png" for n in range(60)] + [f"bees/bee {n}.png" for n in range(60)],
        ["a/x.png"],
        [],
    ],
    ids=["numbers", "flickr", "class and number", "one", "none"],
)
def test_names_that_say_nothing_suggest_nothing(paths: list[str]) -> None:
    assert suggested(paths, [path.split("/")[0] for path in paths]) == {}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=60), st.integers(0, 3))
@settings(max_examples=50)
def test_any_names_are_taken(names: list[str], classes: int) -> None:
    labels = [str(number % (classes + 1)) for number in range(len(names))]
    for by in suggested(names, labels).values():
        assert len(by) == len(names)
        assert 2 * FOLDS <= len(set(by)) < len(names)


def test_photographs_of_one_camera_are_together_up_to_a_pause() -> None:
    cameras = ["A 1", "A 1", "A 1", "B", "A 1", "", "A 1", "A 1"]
    taken = [
        "2024:05:01 23:58:00", "2024:05:02 00:07:30", "2024:05:02 00:17:31", "2024:05:01 23:59:00", "2024:05:01 23:51:00",
        "2024:05:01 23:59:00", "", "2024:13:01 00:00:00",
    ]  # fmt: skip
    found = group_readings.of_photographs(pd.DataFrame({"camera": cameras, "taken": taken}))
    first = "A 1 2024-05-01 23:51:00"
    assert found[group_readings.SHOOT] == [
        first, first, "A 1 2024-05-02 00:17:31", "B 2024-05-01 23:59:00", first, "2024-05-01 23:59:00", "", "",
    ]  # fmt: skip
    assert found[group_readings.DAY][:2] == ["A 1 2024-05-01", "A 1 2024-05-02"]
    assert found[group_readings.CAMERA] == cameras


@pytest.mark.parametrize("frames", [6, 1])
def test_frames_of_a_film_are_together_and_films_of_a_class_are_not(frames: int) -> None:
    chance = np.random.default_rng(0)
    film = np.repeat(np.arange(240 // frames), frames)
    scene = chance.normal(size=(len(set(film)), 64))[film]
    scene[:, 0] += 4 * (film % 2)
    walk = np.concatenate([chance.normal(0, 0.15, (frames, 64)).cumsum(axis=0) for _ in set(film)])  # the camera moves
    order = chance.permutation(len(film))
    features = torch.from_numpy((scene + walk)[order].astype(np.float32))
    labels = [str(number % 2) for number in film[order]]
    readings = group_readings.of_looks(features, labels, chance.random(len(film)) < 0.8)
    if frames == 1:
        assert group_readings.plausible(readings, labels) == {}
        return
    (found,) = group_readings.plausible(readings, labels).values()
    assert len(set(zip(found, film[order].tolist(), strict=True))) == len(set(found)) == 40


def test_looks_of_one_class_or_of_very_many_pictures_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = torch.randn(30, 4), ["a", "b"] * 15
    assert group_readings.of_looks(features, labels, np.arange(30) % 2 == 0) == {}
    assert group_readings.of_looks(features, labels, np.ones(30, bool)) != {}
    monkeypatch.setattr(group_readings, "MOST_COMPARED", 20)
    assert group_readings.of_looks(features, labels, np.ones(30, bool)) == {}


def people(alike: float, several: bool = False) -> tuple[pd.DataFrame, torch.Tensor, list[str]]:
    """Ten pictures each of some people, of one class, whose features have as much of the person in them."""
    chance = np.random.default_rng(0)
    person = np.repeat(np.arange(PEOPLE), EACH)
    labels = person % 2
    features = chance.normal(0, 1, (len(person), 40)) + alike * chance.normal(0, 1, (PEOPLE, 40))[person]
    features[:, 0] += 1.2 * labels
    names = np.array(["a", "b"])[labels]
    rows = {"path": [f"{p}/{n}.png" for n, p in enumerate(person)], "label": names, "split": "train"}
    pictures = pd.DataFrame(rows | {"group": [f"own {n}" for n in range(len(person))]})
    if several:
        pictures["labels"] = [[name] for name in names]
    return pictures, torch.from_numpy(features.astype(np.float32)), [f"person {p}" for p in person]


@pytest.mark.parametrize("several", [False, True])
def test_what_it_costs_to_part_people_is_what_was_planted(several: bool) -> None:
    task = MULTI_LABEL if several else SINGLE_LABEL
    classes = ["a", "b"] if several else ["a", "b", "of test pictures alone"]
    found = groups.measured("names", (given := people(1.0, several))[2], *given[:2], classes, task)
    assert found is not None
    assert (found.groups, found.pictures, found.largest) == (PEOPLE, PEOPLE * EACH, EACH)
    assert found.accuracy_apart > found.accuracy_together + 0.1
    assert found.optimism.low > 0
    none = groups.measured("names", (given := people(0.0, several))[2], *given[:2], ["a", "b"], task)
    assert none is not None
    assert none.optimism.low < 0.01


def test_groups_that_the_folds_cannot_keep_together_are_not_measured() -> None:
    pictures, features, _ = people(1.0)
    assert groups.measured("names", list(pictures["label"]), pictures, features, ["a", "b"], SINGLE_LABEL) is None


@pytest.mark.parametrize("best", [None, 0])
def test_the_sentence_says_what_was_shown(best: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low, setting = (-0.01, None) if best is None else (0.01, "^it's (.+)/")
    one = GroupSuggestion(
        by="the folder", setting=setting, groups=40, pictures=400, largest=10, accuracy_apart=0.93, accuracy_together=0.9,
        optimism=Interval(value=0.03, low=low, high=0.07),
    )  # fmt: skip
    sentence = groups_report.sentence([one], best, given=False)
    assert ("is not shown" in sentence) == (best is None)
    assert "0.930 in five folds that part them and 0.900 in five that do not" in sentence
    folder = GroupsFolder(tmp_path / "groups")
    groups_report.show(GroupSuggestions(suggestions=[one], best=best, given=False, sentence=sentence), folder)
    printed = capsys.readouterr().out
    assert (
        f"data.group: groups.csv  (a copy: cp {folder.table} groups.csv)" if best is None else "data.group: '^it''s (.+)/'"
    ) in printed
    assert "nothing of further pictures" in groups_report.sentence([], None, given=True)
