"""Shortcuts that are planted in pixels are found, pictures without any give none, and test pictures are never looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from headstart.base.artifacts import PrepareFolder, ShortcutsFolder
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.shortcuts import BlindScore, Shortcuts
from headstart.base.errors import HeadstartError
from headstart.base.sections import Data, Prepare, Split
from headstart.data.fetch import fetch
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels, read_file_properties
from headstart.data.prepare import prepare
from headstart.studies import shortcuts_report
from headstart.studies.shortcuts import CORNERS, SEES, Examined, examine, found_in_pixels, numbers_of
from tests.data.pictures import photograph

EACH = 90


def line(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline="black")
    return image


def watermark(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text(
        (image.width - 34, image.height - 13), "NEWS", fill="white", stroke_width=1, stroke_fill="black"
    )
    return image


def redder(image: Image.Image) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, "red"), 0.4)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A prepared set in which so many ants, and so many fewer bees, are changed."""
    monkeypatch.chdir(tmp_path)

    def make(change: Callable[[Image.Image], Image.Image] = lambda image: image, share: float = 1.0) -> Path:
        random = np.random.default_rng(0)
        for label, base in (("ants", 0), ("bees", 1000)):
            (tmp_path / "set" / label).mkdir(parents=True)
            for number in range(EACH):
                image = photograph(base + number)
                if random.random() < (share if label == "ants" else 1 - share):
                    image = change(image)
                image.save(tmp_path / "set" / label / f"{number:03}.bmp")  # of one size in bytes
        pictures = fetch(Data(source="set"), Path("fetched.csv"))
        prepare(pictures, tmp_path / "set", Prepare(short_side=64), Split(), 0, 1, tmp_path / "prepare")
        return tmp_path / "prepare"

    return make


def examined(folder: Path, features: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None = None) -> Examined:
    return examine(read_manifest(folder), read_file_properties(folder), Pixels(folder), features, 3)


def found(folder: Path) -> set[tuple[str, str]]:
    return {(one.sees, one.kind) for one in examined(folder).result.found}


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_line_around_the_pictures_of_a_class_is_a_shortcut(planted: Callable[..., Path], share: float) -> None:
    assert ("frame", "shortcut") in found(planted(line, share))


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_watermark_in_a_corner_is_worth_a_look(planted: Callable[..., Path], share: float) -> None:
    folder = planted(watermark, share)
    assert found(folder) == {("bottom right", "look")}


def test_pictures_without_a_shortcut_have_none_and_colours_alone_are_none(planted: Callable[..., Path]) -> None:
    folder = planted(redder, 0.9)
    result = examined(folder).result
    assert result.found == []
    assert set(result.sees) == set(SEES) == {score.sees for score in result.scores}
    assert result.pictures == (read_manifest(folder)["split"] != "test").sum()
    colours = next(score for score in result.scores if score.sees == "colours")
    assert colours.label is None
    assert colours.accuracy.value > 0.8
    assert colours.p < 0.001
    page = ShortcutsFolder(folder.parent)
    shortcuts_report.write(result, [], Pixels(folder), read_manifest(folder), page)
    assert "nothing was found that tells classes apart" in page.page.read_text()


def test_what_does_as_well_as_the_network_is_worth_a_look(planted: Callable[..., Path]) -> None:
    folder = planted(redder, 0.9)
    manifest = read_manifest(folder)
    weak = np.random.default_rng(0).normal(size=(len(manifest), 4)).astype(np.float32)
    strong = weak + 9 * (manifest["label"] == "ants").to_numpy(np.float32)[:, None]
    assert not examined(folder, strong).result.found
    both = examined(folder, weak)
    assert ("colours", None) in {(one.sees, one.label) for one in both.result.found}
    assert all(one.kind == "look" for one in both.result.found)
    assert "the network's features reach 0." in both.result.found[0].sentence
    other = strong.copy()
    other[(manifest["split"] == "test").to_numpy()] = 0
    assert examined(folder, other).result == examined(folder, strong).result


def test_the_files_say_the_same_and_are_the_same_twice(
    planted: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = planted(line)
    manifest = read_manifest(folder)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        one = examined(folder)
        shortcuts_report.write(one.result, one.shown, Pixels(folder), manifest, ShortcutsFolder(tmp_path / name))
    files = ShortcutsFolder(tmp_path / "a")
    for file in (files.details, files.page):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert Shortcuts.read(files.details) == one.result
    page = files.page.read_text()
    assert "://" not in page
    assert page.count("<figure>") == sum(len(rows) for shown in one.shown for rows in shown.values())
    assert "Crop it off all pictures" in page
    first = next(shown for found, shown in zip(one.result.found, one.shown, strict=True) if found.label == "ants")
    heading, others = first
    assert (heading, others) == ("ants", "others that look like it")
    assert set(manifest["label"][first["ants"]]) == {"ants"}
    assert set(manifest["label"][first[others]]) == {"bees"}
    capsys.readouterr()
    shortcuts_report.show(one.result, files)
    printed = " ".join(capsys.readouterr().out.split())
    assert "shortcut: a line along the edges tells the classes apart: accuracy 1.000 (0." in printed
    assert str(files.page) in printed.replace(" ", "")


def test_a_line_is_seen_on_every_background_and_nothing_else_is_taken_for_one() -> None:
    plain = np.full((40, 60, 3), 255, np.uint8)
    assert not numbers_of(plain)["frame"].any()
    half = plain.copy()
    half[:, 30:] = 0  # what reaches the edge, as a wall does
    assert not numbers_of(half)["frame"].any()
    for colour in (0, 128):
        lined = plain.copy()
        lined[[0, -1]] = lined[:, [0, -1]] = colour
        assert np.abs(numbers_of(lined)["frame"]).max() == 255 - colour
    for shape in ((1, 1), (3, 200), (8, 8), (9, 64)):
        for seen in numbers_of(np.zeros((*shape, 3), np.uint8)).values():
            assert np.isfinite(seen).all()


def score(sees: str, label: str | None, value: float, probe: float | None = None) -> BlindScore:
    accuracy = Interval(value=value, low=value - 0.05, high=value + 0.05)
    return BlindScore(sees=sees, label=label, accuracy=accuracy, guessing=0.5, p=0.001, probe=probe)


def test_a_corner_is_named_only_if_the_others_do_not_tell_as_much() -> None:
    def named(values: tuple[float, ...]) -> list[str]:
        return [one.sees for one in found_in_pixels([score(c, "ants", v) for c, v in zip(CORNERS, values, strict=True)])]

    assert named((0.9, 0.9, 0.88, 0.95)) == []
    assert named((0.6, 0.6, 0.6, 0.75)) == ["bottom right"]
    assert named((0.62, 0.62, 0.7, 0.62)) == []


def test_one_class_cannot_be_told_from_others_that_are_not_there() -> None:
    table = pd.DataFrame({"path": ["a"] * 9, "label": "ants", "split": "train", "group": list("abcdefghi")})
    expected = (
        "takes two classes with at least 5 training and validation pictures that are no near-duplicates nor of one group"
    )
    with pytest.raises(HeadstartError, match=re.escape(expected)):
        examine(table, pd.DataFrame(), None, None, 3)  # type: ignore[arg-type]


def test_before_anything_was_found_the_command_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=re.escape("run `dvc repro studies/dvc.yaml:shortcuts`")):
        Shortcuts.read(tmp_path / "shortcuts.json")


def test_an_index_of_an_older_version_says_what_to_do(planted: Callable[..., Path]) -> None:
    import pyarrow.parquet as pq

    folder = planted()
    path = PrepareFolder(folder).pixels_index
    pq.write_table(pq.read_table(path).drop_columns(["file"]), path)
    with pytest.raises(HeadstartError, match=re.escape("run `dvc repro --force --single-item prepare`")):
        read_file_properties(folder)
