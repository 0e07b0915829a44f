"""Drawings of what the studies found, as elements of a page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from headstart.base.artifacts.rank import RankedBackbone
from headstart.base.artifacts.tune import Knob, Trial
from headstart.base.artifacts.why import CurvePoint, CutResult
from headstart.evaluation.figures import FINETUNE, GREY, HEAD, Panel, drawn
from headstart.evaluation.metrics import LOG_LOSS


def accuracy_over_speed(rows: list[RankedBackbone], choice: str | None) -> list[Markup]:
    """Probe accuracy with its interval over images per second; the line joins those that nothing beats in both. Nothing
    where nothing was measured."""
    shown = sorted((r for r in rows if r.probe_accuracy is not None), key=lambda r: -(r.images_per_s or 0.0))
    if not shown:
        return []
    numbers = np.array([[r.images_per_s, r.probe_accuracy, r.low, r.high] for r in shown], np.float64)

    def panel(axes: Axes) -> None:
        front: list[tuple[float, float]] = []
        for row, (speed, accuracy, low, high) in zip(shown, numbers.tolist(), strict=True):
            if not front or accuracy > front[-1][1]:
                front.append((speed, accuracy))
            reach = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
            colour = FINETUNE if row.backbone == choice else HEAD
            axes.errorbar(speed, accuracy, yerr=reach, fmt="o", color=colour, capsize=3)
            axes.annotate(row.backbone, (speed, accuracy), xytext=(6, 5), textcoords="offset points")
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel="images/s on this machine", ylabel="probe accuracy")
        axes.margins(x=0.25)

    return drawn(panel, size=(7.2, 4))


def log_loss_by_trial(trials: list[Trial], present: float | None) -> list[Markup]:
    """What each trial of a tuning ended with, in the order they were tried, and the lowest so far; crosses were stopped
    early. Nothing where no trial has a figure."""
    shown = sorted((t for t in trials if t.val_log_loss is not None), key=lambda t: t.trial)
    if not shown:
        return []
    whole = [t for t in shown if t.state == "complete"]
    lowest = np.minimum.accumulate(np.array([t.val_log_loss for t in whole], np.float64))

    def panel(axes: Axes) -> None:
        _trials(axes, [t.trial for t in shown], shown)
        axes.step([t.trial for t in whole], lowest, where="post", color=GREY, linewidth=1, label="lowest so far")
        if present is not None:
            axes.axhline(present, color=HEAD, linestyle="--", linewidth=1, label="present settings")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        better = "higher" if LOG_LOSS.higher_is_better else "lower"
        axes.set(xlabel="trial", ylabel=f"validation {LOG_LOSS.label} ({better} is better)")
        axes.legend(frameon=False)

    return drawn(panel, size=(7.2, 3.2))


def log_loss_by_knob(trials: list[Trial], choices: dict[str, list[Knob]], by_logarithm: list[str]) -> list[Markup]:
    """For every knob of a tuning what the trials ended with, over the values it had. Nothing where no trial has a figure.

    Args:
        choices: the values of each knob that is no range, in the order in which they are shown.
        by_logarithm: the ranges that are shown on a logarithmic axis.
    """
    shown = [t for t in trials if t.val_log_loss is not None]
    if not shown:
        return []

    def panel(name: str) -> Panel:
        values: list[Any] = [t.knobs[name] for t in shown]

        def draw(axes: Axes) -> None:
            if name in choices:
                _trials(axes, [choices[name].index(value) for value in values], shown)
                axes.set_xticks(range(len(choices[name])), [str(value).lower() for value in choices[name]])
                axes.set_xlim(-0.5, len(choices[name]) - 0.5)
            else:
                _trials(axes, values, shown)
                if name in by_logarithm:
                    low, high = min(values), max(values)
                    ticks = sorted(
                        {low, math.sqrt(low * high), high}
                    )  # matplotlib's own labels overlap on so short an axis
                    axes.set_xscale("log")
                    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
                    axes.minorticks_off()
            axes.set(xlabel=name, ylabel=f"validation {LOG_LOSS.label}")

        return draw

    return drawn(*map(panel, shown[0].knobs), size=(2.9, 2.6))


def _trials(axes: Any, at: list[Any], trials: list[Trial]) -> None:
    """A point for each trial, the best one in another colour; a cross where it was stopped early."""
    best = min((t.val_log_loss for t in trials if t.state == "complete" and t.val_log_loss is not None), default=None)
    for x, trial in zip(at, trials, strict=True):
        whole = trial.state == "complete"
        colour = GREY if not whole else FINETUNE if trial.val_log_loss == best else HEAD
        axes.scatter(x, trial.val_log_loss, marker="o" if whole else "x", color=colour, s=28)


STARTS = {"finetuned": ("fine-tuned", FINETUNE), "frozen": ("frozen", HEAD), "scratch": ("random weights", GREY)}


def accuracy_over_pictures(points: list[CurvePoint]) -> list[Markup]:
    """Learning curves with their 95% intervals, and the minutes they took.

    Args:
        points: ``curves`` of why.json.
    """
    counts = sorted({p.n for p in points})

    def over_pictures(axes: Axes, name: str) -> None:
        axes.set(xscale="log", xlabel="pictures to learn from", ylabel=name)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()

    def accuracy(axes: Axes) -> None:
        for start, (name, colour) in STARTS.items():
            mine = [p for p in points if p.start == start]
            reach = [[max(0.0, p.accuracy - p.low) for p in mine], [max(0.0, p.high - p.accuracy) for p in mine]]
            values = [p.accuracy for p in mine]
            axes.errorbar([p.n for p in mine], values, yerr=reach, fmt="o-", color=colour, capsize=3, label=name)
        axes.legend(frameon=False)
        over_pictures(axes, "accuracy on held-out pictures")

    def minutes(axes: Axes) -> None:
        for start, (name, colour) in STARTS.items():
            mine = [p for p in points if p.start == start]
            axes.plot([p.n for p in mine], [p.seconds / 60 for p in mine], "o-", color=colour, label=name)
        axes.legend(frameon=False)
        over_pictures(axes, "minutes of training")

    return drawn(accuracy, minutes, size=(3.55, 3.4))


def accuracy_by_cut(rows: list[CutResult], measured: str) -> list[Markup]:
    """Accuracy on all pictures by how much of the network is trained, with its 95% interval.

    Args:
        rows: ``freeze.table`` of why.json.
    """

    def panel(axes: Axes) -> None:
        for number, row in enumerate(rows):
            reach = [[max(0.0, row.accuracy - row.low)], [max(0.0, row.high - row.accuracy)]]
            colour = FINETUNE if row.cut == measured else HEAD
            axes.errorbar(row.accuracy, number, xerr=reach, fmt="o", color=colour, capsize=3)
        axes.set_yticks(range(len(rows)), [row.cut for row in rows])
        axes.set(xlabel="accuracy on held-out pictures", ylabel="trained")
        axes.invert_yaxis()
        axes.margins(y=0.2)

    return drawn(panel, size=(3.55, 2.4))
