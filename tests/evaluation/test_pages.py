"""What pages have in common: how sentences are shown, what their bytes depend on, and how they find each other."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from headstart.base.artifacts import DataFolder
from headstart.evaluation import figures, pages


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("`dvc repro` <b>", "<code>dvc repro</code> &lt;b&gt;"),
        ("`data/why/story.html`", "<code>data/why/story.html</code>"),
        ("see data/why/story.html.", 'see <a href="../why/story.html">data/why/story.html</a>.'),
        ("metadata/why/story.html", "metadata/why/story.html"),
        ("is 0.812 (0.774–0.848) on 9", 'is <span class="whole">0.812 (0.774–0.848)</span> on 9'),
        ("by -2.8 points (-6.5 to +1.0);", 'by <span class="whole">-2.8 points (-6.5 to +1.0)</span>;'),
        ("82.1% (79.0–85.0)", '<span class="whole">82.1% (79.0–85.0)</span>'),
        ("45% (40% to 50%)", '<span class="whole">45% (40% to 50%)</span>'),
        ("twice as many (1000)", "twice as many (1000)"),
    ],
)
def test_a_sentence_is_shown_with_code_links_and_whole_intervals(sentence: str, shown: str) -> None:
    assert pages.prose(sentence) == shown


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("emoji", "emoji"), ("~/pictures/birds/", "birds"), ("C:\\pictures\\birds", "birds"), ("../..", "../.."),
        ("https://anna:Geh/eim7@host/pets.zip?token=Geheim7", "pets.zip"), ("torchvision:CIFAR10", "torchvision:CIFAR10"),
    ],
)  # fmt: skip
def test_a_page_is_titled_with_a_name_and_no_path(source: str, title: str) -> None:
    assert pages.title_of(source) == title


def test_the_same_page_has_the_same_bytes_and_what_changes_is_beside_the_folders(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    page = pages.template("page.html.j2")
    pages.write(data.rank.page, page)
    first = data.rank.page.read_bytes()
    pages.write(data.tune.page, page)
    (tmp_path / pages.INDEX).write_text("damaged")
    pages.write(data.rank.page, page)
    assert data.rank.page.read_bytes() == first
    assert str(tmp_path).encode() not in first
    index = (tmp_path / pages.INDEX).read_text()
    found = json.loads(index.removeprefix("headstartPages(").removesuffix(")\n"))
    assert list(found) == ["rank/rank.html", "tune/tune.html"]
    assert f'data-digest="{found["rank/rank.html"]["digest"]}"'.encode() in first
    assert "made" not in found["tune/tune.html"], "when it was made was lost, and is not made up"
    data.tune.page.unlink()
    pages.write(data.rank.page, page)
    assert "tune" not in (tmp_path / pages.INDEX).read_text()


def test_a_figure_has_the_colours_of_its_page_and_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"confidence": c, "accuracy": c, "low": c - 0.1, "high": c + 0.1, "pictures": 9} for c in (0.5, 0.8)]
    one, other = (figures.reliability(rows, 0.1, tmp_path / name) for name in ("a.png", "b.png"))
    assert one == other
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "currentColor" in one[0]
    assert "var(--head)" in one[0]
    assert not [colour for colour in figures.OF_THE_PAGE if colour in one[0]]
    assert "://" not in one[0]


def test_more_heat_is_told_from_less_whatever_is_under_it() -> None:
    ramp = np.tile(np.linspace(0, 1, 5), (4, 1))
    for colour in ((255, 140, 0), (255, 255, 255), (0, 0, 0)):
        picture = np.full((4, 5, 3), colour, np.uint8)
        seen = pages.with_heat(picture, ramp)[0].astype(int)
        assert min(np.abs(a - b).max() for a, b in pairwise(seen)) > 20
