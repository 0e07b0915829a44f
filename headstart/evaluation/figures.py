"""Figures as PNG files, the same bytes for the same numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from headstart.base.arrays import Floats, Ints

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from headstart.base.files import replacing
from headstart.data.decode import Array
from headstart.evaluation.metrics import LOG_LOSS

HEAD, FINETUNE, GREY = "#1f6f8b", "#d1603d", "#8a8f98"
MOST_CLASSES_SHOWN = 40
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})


def save(figure: Figure, path: Path) -> None:
    png = _png(figure)
    with replacing(path) as part:
        part.write_bytes(png)


def _png(figure: Figure) -> bytes:
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


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
    names = [classes[c] for c in shown]
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


def sweep(rows: list[dict[str, Any]], chosen: float, path: Path) -> None:
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(7.2, 3))
    strengths = [row["C"] for row in rows]
    loss.semilogx(strengths, [row["val_log_loss"] for row in rows], "o-", color=HEAD)
    loss.axvline(chosen, color=GREY, linestyle="--", linewidth=1)
    loss.set(xlabel="C (right: less regularisation)", ylabel=f"validation {LOG_LOSS.label}")
    accuracy.semilogx(strengths, [row["val_accuracy"] for row in rows], "o-", color=HEAD, label="validation")
    accuracy.semilogx(strengths, [row["train_accuracy"] for row in rows], "o--", color=GREY, label="training")
    accuracy.axvline(chosen, color=GREY, linestyle="--", linewidth=1)
    accuracy.set(xlabel="C", ylabel="accuracy")
    accuracy.legend(frameon=False)
    for axes in (loss, accuracy):
        axes.set_xticks(strengths, [f"{c:g}" for c in strengths], rotation=40)
        axes.minorticks_off()
    save(figure, path)


def learning_curve(curve: pd.DataFrame, head_loss: float, head_accuracy: float, path: Path) -> None:
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(7.2, 3))
    for axes, column, level in ((loss, "val_log_loss", head_loss), (accuracy, "val_accuracy", head_accuracy)):
        axes.plot(curve["epoch"], curve[column], "o-", color=FINETUNE, label="fine-tuned")
        axes.axhline(level, color=HEAD, linestyle="--", linewidth=1, label="head alone")
        axes.set(xlabel="epoch", ylabel=column.replace("val_", "validation ").replace("_", "-"))
    loss.plot(curve["epoch"], curve["train_loss"], "o--", color=GREY, label="training loss")
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


def accuracy_over_speed(rows: list[dict[str, Any]], choice: str | None) -> bytes | None:
    """Probe accuracy with its interval over images per second, as PNG; the line joins those that nothing beats in both.
    None where nothing was measured."""
    shown = sorted((r for r in rows if r["probe_accuracy"] is not None), key=lambda r: -r["images_per_s"])
    if not shown:
        return None
    figure, axes = plt.subplots(figsize=(7.2, 4))
    front: list[dict[str, Any]] = []
    for row in shown:
        if not front or row["probe_accuracy"] > front[-1]["probe_accuracy"]:
            front.append(row)
        value = row["probe_accuracy"]
        reach = [[max(0.0, value - row["low"])], [max(0.0, row["high"] - value)]]
        colour = FINETUNE if row["backbone"] == choice else HEAD
        axes.errorbar(row["images_per_s"], value, yerr=reach, fmt="o", color=colour, capsize=3)
        axes.annotate(row["backbone"], (row["images_per_s"], value), xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.plot([r["images_per_s"] for r in front], [r["probe_accuracy"] for r in front], color=GREY, linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="images/s on this machine", ylabel="probe accuracy")
    axes.margins(x=0.25)
    return _png(figure)


def log_loss_by_trial(trials: list[dict[str, Any]], present: float | None) -> bytes | None:
    """What each trial of a tuning ended with, in the order they were tried, and the lowest so far, as PNG; crosses were
    stopped early. None where no trial has a figure."""
    shown = sorted((t for t in trials if t["val_log_loss"] is not None), key=lambda t: t["trial"])
    if not shown:
        return None
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    _trials(axes, [t["trial"] for t in shown], shown)
    whole = [t for t in shown if t["state"] == "complete"]
    lowest = np.minimum.accumulate([t["val_log_loss"] for t in whole])
    axes.step([t["trial"] for t in whole], lowest, where="post", color=GREY, linewidth=1, label="lowest so far")
    if present is not None:
        axes.axhline(present, color=HEAD, linestyle="--", linewidth=1, label="present settings")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    better = "higher" if LOG_LOSS.higher_is_better else "lower"
    axes.set(xlabel="trial", ylabel=f"validation {LOG_LOSS.label} ({better} is better)")
    axes.legend(frameon=False)
    return _png(figure)


def log_loss_by_knob(trials: list[dict[str, Any]], choices: dict[str, list[Any]], by_logarithm: list[str]) -> bytes | None:
    """For every knob of a tuning what the trials ended with, over the values it had, as PNG. None where no trial has a
    figure.

    Args:
        choices: the values of each knob that is no range, in the order in which they are shown.
        by_logarithm: the ranges that are shown on a logarithmic axis.
    """
    shown = [t for t in trials if t["val_log_loss"] is not None]
    if not shown:
        return None
    names = list(shown[0]["knobs"])
    rows, columns = -(-len(names) // 4), min(4, len(names))
    figure, grid = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.6 * rows), squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names, strict=False):
        values = [t["knobs"][name] for t in shown]
        if name in choices:
            _trials(axes, [choices[name].index(value) for value in values], shown)
            axes.set_xticks(range(len(choices[name])), [str(value).lower() for value in choices[name]])
            axes.set_xlim(-0.5, len(choices[name]) - 0.5)
        else:
            _trials(axes, values, shown)
            if name in by_logarithm:
                axes.set_xscale("log")
        axes.set(xlabel=name)
    for row in grid:
        row[0].set(ylabel=f"validation {LOG_LOSS.label}")
    return _png(figure)


def _trials(axes: Any, at: list[Any], trials: list[dict[str, Any]]) -> None:
    """A point for each trial, the best one in another colour; a cross where it was stopped early."""
    best = min((t["val_log_loss"] for t in trials if t["state"] == "complete"), default=None)
    for x, trial in zip(at, trials, strict=True):
        whole = trial["state"] == "complete"
        colour = GREY if not whole else FINETUNE if trial["val_log_loss"] == best else HEAD
        axes.scatter(x, trial["val_log_loss"], marker="o" if whole else "x", color=colour, s=28)


STARTS = {"finetuned": ("fine-tuned", FINETUNE), "frozen": ("frozen", HEAD), "scratch": ("random weights", GREY)}


def accuracy_over_pictures(points: list[dict[str, Any]]) -> bytes:
    """Learning curves with their 95 % intervals, and the minutes they took, as PNG.

    Args:
        points: ``curves`` of why.json.
    """
    figure, (accuracy, minutes) = plt.subplots(1, 2, figsize=(8.6, 3.4), width_ratios=(3, 2))
    for start, (name, colour) in STARTS.items():
        mine = [p for p in points if p["start"] == start]
        counts, values = [p["n"] for p in mine], [p["accuracy"] for p in mine]
        reach = [[max(0.0, p["accuracy"] - p["low"]) for p in mine], [max(0.0, p["high"] - p["accuracy"]) for p in mine]]
        accuracy.errorbar(counts, values, yerr=reach, fmt="o-", color=colour, capsize=3, label=name)
        minutes.plot(counts, [p["seconds"] / 60 for p in mine], "o-", color=colour)
    accuracy.legend(frameon=False)
    for axes, name in ((accuracy, "accuracy on held-out pictures"), (minutes, "minutes of training")):
        axes.set(xscale="log", xlabel="pictures to learn from", ylabel=name)
        axes.set_xticks(sorted({p["n"] for p in points}), [str(n) for n in sorted({p["n"] for p in points})])
        axes.minorticks_off()
    return _png(figure)


def accuracy_by_cut(rows: list[dict[str, Any]], measured: str) -> bytes:
    """Accuracy on all pictures by how much of the network is trained, with its 95 % interval, as PNG.

    Args:
        rows: ``freeze.table`` of why.json.
    """
    figure, axes = plt.subplots(figsize=(5, 2.2))
    for number, row in enumerate(rows):
        reach = [[max(0.0, row["accuracy"] - row["low"])], [max(0.0, row["high"] - row["accuracy"])]]
        colour = FINETUNE if row["cut"] == measured else HEAD
        axes.errorbar(row["accuracy"], number, xerr=reach, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row["cut"] for row in rows])
    axes.set(xlabel="accuracy on held-out pictures", ylabel="trained")
    axes.invert_yaxis()
    axes.margins(y=0.2)
    return _png(figure)


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")  # Pillow's built-in font has no more
