"""Figures as PNG files, the same bytes for the same numbers."""

from __future__ import annotations

import io
import unicodedata
from contextlib import suppress
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts.head import Strength

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.figure import Figure

from headstart.base.files import replacing
from headstart.base.safe_text import visible
from headstart.data.decode import Array
from headstart.evaluation.metrics import LOG_LOSS

HEAD, FINETUNE, GREY = "#1f6f8b", "#d1603d", "#8a8f98"
MOST_CLASSES_SHOWN = 40
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})


def save(figure: Figure, path: Path) -> None:
    drawn = png(figure)
    with replacing(path) as part:
        part.write_bytes(drawn)


def png(figure: Figure) -> bytes:
    """The figure as a file's bytes; it is closed."""
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


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


def confusion(labels: Ints, predicted: Ints, classes: list[str], path: Path) -> None:
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
    side = max(3.6, 0.42 * len(shown) + 1.8)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(part), strict=True):
        axes.text(j, i, str(part[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    names = drawable([classes[c] for c in shown])
    axes.set_xticks(range(len(shown)), names, rotation=60, ha="right", parse_math=False)  # there may be dollars in a name
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    save(figure, path)


def reliability(rows: list[dict[str, float]], ece: float, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(3.8, 3.6))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    sizes = [8 + 3 * np.sqrt(row["pictures"]) for row in rows]
    axes.scatter([r["confidence"] for r in rows], [r["accuracy"] for r in rows], s=np.square(sizes) / 4, color=HEAD)
    axes.plot([r["confidence"] for r in rows], [r["accuracy"] for r in rows], color=HEAD, linewidth=1)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence", ylabel="accuracy", title=f"calibration error {ece:.3f}")
    save(figure, path)


def sweep(rows: list[Strength], path: Path) -> None:
    """A dashed line for each strength in the refitted head, as thick as its share."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(7.2, 3))
    strengths = [row.C for row in rows]
    loss.semilogx(strengths, [row.val_log_loss for row in rows], "o-", color=HEAD)
    loss.set(xlabel="C (right: less regularisation)", ylabel=f"validation {LOG_LOSS.label}")
    accuracy.semilogx(strengths, [row.val_accuracy for row in rows], "o-", color=HEAD, label="validation")
    accuracy.semilogx(strengths, [row.train_accuracy for row in rows], "o--", color=GREY, label="training")
    accuracy.set(xlabel="C", ylabel="accuracy")
    accuracy.legend(frameon=False)
    for axes in (loss, accuracy):
        for row in rows:
            axes.axvline(row.C, color=GREY, linestyle="--", linewidth=2 * row.weight)
        axes.set_xticks(strengths, [f"{c:g}" for c in strengths], rotation=40)
        axes.minorticks_off()
    save(figure, path)


def learning_curve(curve: pd.DataFrame, head_loss: float, head_accuracy: float, path: Path) -> None:
    """A line for each repeat of the training, where there are several."""
    repeats = [one for _, one in curve.groupby("repeat")] if "repeat" in curve else [curve]
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(7.2, 3))
    for axes, column, level in ((loss, "val_log_loss", head_loss), (accuracy, "val_accuracy", head_accuracy)):
        for number, one in enumerate(repeats):
            axes.plot(one["epoch"], one[column], "o-", color=FINETUNE, label=None if number else "fine-tuned")
        axes.axhline(level, color=HEAD, linestyle="--", linewidth=1, label="head alone")
        axes.set(xlabel="epoch", ylabel=column.replace("val_", "validation ").replace("_", "-"))
    for number, one in enumerate(repeats):
        loss.plot(one["epoch"], one["train_loss"], "o--", color=GREY, label=None if number else "training loss")
    loss.legend(frameon=False)
    save(figure, path)


def mistakes(pictures: list[Array], heat: Floats | None, captions: list[str], path: Path, columns: int = 3) -> None:
    """Each mistake as the network saw it, with its Grad-CAM beside it."""
    if not pictures:
        figure, axes = plt.subplots(figsize=(4, 1))
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        axes.axis("off")
        save(figure, path)
        return
    per_mistake = 1 if heat is None else 2
    rows = -(-len(pictures) // columns)
    size = (columns * per_mistake * 1.55, rows * 1.95)
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
            beside.imshow(heat[number], cmap="inferno", alpha=0.55)
    save(figure, path)
