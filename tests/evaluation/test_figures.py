"""Names of classes in figures: drawn where the machine has a font for them, readable where it has not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from headstart.evaluation import figures

LABELS = np.array([0, 1, 1])


@pytest.fixture(autouse=True)
def fonts() -> Iterator[list[font_manager.FontEntry]]:
    """matplotlib's own, and no other that this machine may have: a test may add to them."""
    known, families = font_manager.fontManager.ttflist, figures.plt.rcParams["font.family"]
    font_manager.fontManager.ttflist = [font for font in known if font.name.startswith("DejaVu")]
    yield font_manager.fontManager.ttflist
    font_manager.fontManager.ttflist, figures.plt.rcParams["font.family"] = known, families


def font(file: Path, name: str, signs: str) -> font_manager.FontEntry:
    """A font in which each of ``signs`` is a black square."""
    builder, pen = FontBuilder(1000, isTTF=True), TTGlyphPen(None)
    for place in ((0, 0), (0, 800), (800, 800), (800, 0)):
        (pen.lineTo if place != (0, 0) else pen.moveTo)(place)
    pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *(f"u{ord(sign):X}" for sign in signs)]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(sign): f"u{ord(sign):X}" for sign in signs})
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return font_manager.FontEntry(fname=str(file), name=name)


def drawn(names: list[str], file: Path) -> bytes:
    """The pixels of a confusion matrix; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.confusion(LABELS, LABELS, names, file)
    with Image.open(file) as picture:
        return picture.tobytes()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("猫", r"\u732b"), ("한국어", r"\ud55c\uad6d\uc5b4"), ("ไทย", r"\u0e44\u0e17\u0e22"), ("🦜", r"\U0001f99c"),
        ("👩\u200d🔬", "\\U0001f469\u200d\\U0001f52c"), ("猫　写", r"\u732b \u5199"), ("a\nb\x1b[1m", r"a\nb\u001b[1m"),
        ("Ärger", "Ärger"), ("кошка", "кошка"), ("قطة", "قطة"), ("חתול", "חתול"), ("$x_1$", "$x_1$"), ("\udc80", r"\udc80"),
    ],
)  # fmt: skip
def test_a_name_without_a_font_is_escaped_and_no_warning_is_given(name: str, shown: str, tmp_path: Path) -> None:
    assert figures.drawable([name, "dog"]) == [shown, "dog"]
    drawn([name, "dog"], tmp_path / "confusion.png")
    captions = [f"{one} 0.99\nis {one}" for one in figures.drawable([name, "dog"])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.mistakes([np.zeros((8, 8, 3), np.uint8)] * 2, None, captions, tmp_path / "mistakes.png")


def test_a_name_is_drawn_with_the_font_that_the_machine_has_for_it(
    fonts: list[font_manager.FontEntry], tmp_path: Path
) -> None:
    without = drawn(["猫", "dog"], tmp_path / "without.png")
    fonts.append(font(tmp_path / "cats.ttf", "Cats", "猫"))
    fonts.append(font(tmp_path / "parrots.ttf", "Parrots", "🦜写"))
    assert figures.drawable(["猫🦜", "犬写"]) == ["猫🦜", r"\u72ac写"]
    assert drawn(["猫", "dog"], tmp_path / "with.png") != without
    assert drawn(["猫", "dog"], tmp_path / "with.png") == drawn(["猫", "dog"], tmp_path / "again.png")


def test_names_that_matplotlib_has_a_font_for_are_drawn_with_it_alone(
    fonts: list[font_manager.FontEntry], tmp_path: Path
) -> None:
    before = drawn(["cat", "dog"], tmp_path / "before.png")
    fonts.append(font(tmp_path / "cats.ttf", "Cats", "catdog猫"))
    figures.drawable(["猫"])
    assert drawn(["cat", "dog"], tmp_path / "after.png") == before


def test_a_font_that_cannot_be_read_is_passed_over(fonts: list[font_manager.FontEntry], tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts.append(font_manager.FontEntry(fname=str(tmp_path / "broken.ttf"), name="Broken"))
    fonts.append(font_manager.FontEntry(fname=str(tmp_path / "gone.ttf"), name="Gone"))
    assert figures.drawable(["猫"]) == [r"\u732b"]
