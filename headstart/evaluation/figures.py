"""Figures, the same bytes for the same numbers: as SVG in the colours of a page, and as PNG files for MLflow."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts.head import Strength

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from headstart.base.files import replacing
from headstart.base.safe_text import visible
from headstart.data.decode import Array
from headstart.evaluation.metrics import LOG_LOSS
from headstart.evaluation.pages import HEAT_MAP, HEAT_OPACITY

INK, GROUND, HEAD, FINETUNE, GREY = "#010203", "#fdfefd", "#1f6f8b", "#d1603d", "#8a8f98"
# What each is in a page, whose colours depend on whether the reader's screen is light or dark: page.css.j2.
OF_THE_PAGE = {
    INK: "currentColor",
    GROUND: "var(--ground)",
    HEAD: "var(--head)",
    FINETUNE: "var(--finetune)",
    GREY: "var(--grey)",
}
MOST_CLASSES_SHOWN = 40
NAME_SHOWN = 34  # characters of a file's name in a figure, from the end
PANEL = (3.55, 3.0)  # inches: two side by side on a page, and one is as wide as a phone
plt.rcParams.update({
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "svg.hashsalt": "headstart",
    "axes.facecolor": "none", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK,
})  # fmt: skip
Panel = Callable[[Axes], None]


def drawn(*panels: Panel, size: tuple[float, float] = PANEL, path: Path | None = None) -> list[Markup]:
    """Each panel as an SVG, which flow in a page as there is room; and all side by side as a PNG at ``path``."""
    found = []
    for panel in panels:
        figure, axes = plt.subplots(figsize=size)
        panel(axes)
        found.append(svg(figure))
    if path is not None:
        figure, grid = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), squeeze=False)
        for panel, axes in zip(panels, grid.flat, strict=True):
            panel(axes)
        save(figure, path)
    return found


def save(figure: Figure, path: Path) -> None:
    """The figure as a PNG file; it is closed."""
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    with replacing(path) as part:
        part.write_bytes(stream.getvalue())


def svg(figure: Figure) -> Markup:
    """The figure as an element of a page, whose letters are paths; it is closed."""
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", facecolor="none", metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # What an element of HTML needs not, and names that every figure has.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"| id="[\w.]+_\d+"', "", text).replace("xlink:href", "href")
    text = re.sub("|".join(OF_THE_PAGE), lambda found: OF_THE_PAGE[found[0]], text)
    return Markup(re.sub(r"\n\s*", "\n", text).strip())


def drawable(names: list[str]) -> list[str]:
    """The names with an escape, such as \\u732b, for every character that no font of this machine has.

    Characters that matplotlib's own font has not are drawn with the first other font that has them, from now on.
    """
    shown = [visible(name) for name in names]
    wanted = {sign for name in shown for sign in name}
    families = plt.rcParams["font.family"]
    for family in families:
        wanted -= _characters(font_manager.findfont(font_manager.FontProperties(family=[family])))
    others = font_manager.fontManager.ttflist if wanted else []
    for font in sorted(others, key=lambda font: (font.style != "normal", font.weight != 400, font.name, font.fname)):
        if found := wanted & _characters(font.fname):
            families = [*families, font.name]
            wanted -= found
    plt.rcParams["font.family"] = families
    return ["".join(_escaped(sign) if sign in wanted else sign for sign in name) for name in shown]


@cache
def _characters(file: str) -> frozenset[str]:
    """What a font draws; nothing where it is made of pixels, as some with coloured emoji are, or cannot be read."""
    with suppress(RuntimeError, OSError):
        font = font_manager.get_font(file)
        if font.scalable:
            return frozenset(map(chr, font.get_charmap()))
    return frozenset()


def _escaped(sign: str) -> str:
    if unicodedata.category(sign) == "Cf" or "\ufe00" <= sign <= "\ufe0f":  # they only change how their neighbours look
        return ""
    return " " if unicodedata.category(sign) == "Zs" else sign.encode("unicode_escape").decode()


def confusion(labels: Ints, predicted: Ints, classes: list[str], path: Path) -> list[Markup]:
    """Counts, each row one true class. Of very many classes, those with the most mistakes are shown."""
    n = len(classes)
    matrix = np.zeros((n, n), int)
    np.add.at(matrix, (labels, predicted), 1)
    shown = np.arange(n)
    if n > MOST_CLASSES_SHOWN:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES_SHOWN])
    part = matrix[np.ix_(shown, shown)]
    share = part / np.maximum(matrix[shown].sum(1, keepdims=True), 1)
    side = max(3.6, 0.36 * len(shown) + 1.6)
    names = drawable([classes[c] for c in shown])

    def panel(axes: Axes) -> None:
        for i, j in zip(*np.nonzero(part), strict=True):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=HEAD, alpha=share[i, j], linewidth=0))
            axes.text(j, i, str(part[i, j]), ha="center", va="center", color=GROUND if share[i, j] > 0.5 else INK)
        axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(len(shown) - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(len(shown)), names, rotation=60, ha="right", parse_math=False)  # a name may have dollars
        axes.set_yticks(range(len(shown)), names, parse_math=False)
        axes.set(xlabel="predicted", ylabel="true")

    return drawn(panel, size=(side, side), path=path)


def reliability(rows: list[dict[str, float]], ece: float, path: Path) -> list[Markup]:
    """
    Args:
        rows: of ``metrics.reliability``.
        ece: the calibration error.
    """

    def panel(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        values = np.array([[r["confidence"], r["accuracy"], r["low"], r["high"]] for r in rows]).T
        reach = np.abs(values[2:] - values[1])
        axes.errorbar(values[0], values[1], yerr=reach, fmt="o", color=HEAD, capsize=3)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence", ylabel="accuracy")
        axes.set_title(f"calibration error {ece:.3f}", fontsize=9)

    return drawn(panel, size=(3.55, 3.4), path=path)


def sweep(rows: list[Strength], path: Path) -> list[Markup]:
    """A dashed line for each strength in the refitted head, as thick as its share."""
    strengths = [row.C for row in rows]

    def marked(axes: Axes) -> None:
        for row in rows:
            axes.axvline(row.C, color=GREY, linestyle="--", linewidth=2 * row.weight)
        axes.set_xticks(strengths, [f"{c:g}" for c in strengths], rotation=40)
        axes.minorticks_off()

    def loss(axes: Axes) -> None:
        axes.semilogx(strengths, [row.val_log_loss for row in rows], "o-", color=HEAD)
        axes.set(xlabel="C (right: less regularisation)", ylabel=f"validation {LOG_LOSS.label}")
        marked(axes)

    def accuracy(axes: Axes) -> None:
        axes.semilogx(strengths, [row.val_accuracy for row in rows], "o-", color=HEAD, label="validation")
        axes.semilogx(strengths, [row.train_accuracy for row in rows], "o--", color=GREY, label="training")
        axes.set(xlabel="C", ylabel="accuracy")
        axes.legend(frameon=False)
        marked(axes)

    return drawn(loss, accuracy, path=path)


def learning_curve(curve: pd.DataFrame, head_loss: float, head_accuracy: float, path: Path) -> list[Markup]:
    """A line for each repeat of the training, where there are several."""
    repeats = [one for _, one in curve.groupby("repeat")] if "repeat" in curve else [curve]

    def panel(column: str, level: float) -> Panel:
        def draw(axes: Axes) -> None:
            for number, one in enumerate(repeats):
                axes.plot(one["epoch"], one[column], "o-", color=FINETUNE, label=None if number else "fine-tuned")
                if column == "val_log_loss":
                    label = None if number else "training loss"
                    axes.plot(one["epoch"], one["train_loss"], "o--", color=GREY, label=label)
            axes.axhline(level, color=HEAD, linestyle="--", linewidth=1, label="head alone")
            axes.set(xlabel="epoch", ylabel=column.replace("val_", "validation ").replace("_", "-"))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False)

        return draw

    return drawn(panel("val_log_loss", head_loss), panel("val_accuracy", head_accuracy), path=path)


def mistakes(pictures: list[Array], heat: Floats | None, captions: list[str], path: Path, columns: int = 3) -> None:
    """Each mistake as the network saw it, with its heat map beside it."""
    if not pictures:
        figure, axes = plt.subplots(figsize=(4, 1))
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        axes.axis("off")
        save(figure, path)
        return
    per_mistake = 1 if heat is None else 2
    rows = -(-len(pictures) // columns)
    size = (columns * per_mistake * 1.55, rows * 2.1)
    figure, grid = plt.subplots(rows, columns * per_mistake, figsize=size, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        axes = grid[row][column * per_mistake]
        axes.imshow(picture)
        axes.set_title(caption, fontsize=6.5, loc="left", parse_math=False)
        if heat is not None:
            beside = grid[row][column * per_mistake + 1]
            beside.imshow(picture)
            beside.imshow(heat[number], cmap=HEAT_MAP, vmin=0, vmax=1, alpha=HEAT_OPACITY)
    save(figure, path)
