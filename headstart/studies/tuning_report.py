"""What came of tune: a table for the terminal, a page, and the best settings written into params.yaml."""

from __future__ import annotations

import json
from pathlib import Path

from headstart.base.artifacts.tune import Knobs, Trial, Tuning, TuningGain
from headstart.base.errors import HeadstartError
from headstart.base.terminal import console
from headstart.base.wording import log_loss_difference
from headstart.base.yaml_file import set_values
from headstart.evaluation.metrics import ACCURACY, LOG_LOSS
from headstart.studies.search_space import written


def show(tuning: Tuning) -> None:
    """Print the table, the outcome in words, and the command that runs the pipeline with the best settings."""
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False)
    for heading in headings(tuning):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in tuning.trials:
        table.add_row(*cells(trial), style="bold" if trial is tuning.trials[0] else None)
    out.print(table)
    for trial in tuning.trials:
        if trial.state == "failed":
            out.print(f"trial {trial.trial}: {trial.note}")
    out.print(tuning.sentence)
    if tuning.command:
        out.print(tuning.command, soft_wrap=True)


def headings(tuning: Tuning) -> list[str]:
    return ["trial", "state", LOG_LOSS.label, ACCURACY.label, "epochs", "minutes", *tuning.present]


def cells(trial: Trial) -> list[str]:
    """A row of the table as it is shown: an empty cell where nothing is known."""
    numbers = [("val_log_loss", ".3f"), ("val_accuracy", ".3f"), ("epochs", "d"), ("minutes", ".1f")]
    written = ["" if getattr(trial, key) is None else format(getattr(trial, key), form) for key, form in numbers]
    knobs = [value if isinstance(value, str) else json.dumps(value) for value in trial.knobs.values()]
    return [str(trial.trial), trial.state, *written, *knobs]


def write_page(tuning: Tuning, path: Path) -> None:
    """One page that needs no network: the outcome, the table, log-loss by trial and over each knob."""
    from headstart.evaluation import pages
    from headstart.studies import figures

    trials = tuning.trials
    present = next(trial.val_log_loss for trial in trials if trial.knobs == tuning.present)
    pages.write(
        path,
        pages.template("tune.html.j2"),
        tuning=tuning,
        headings=headings(tuning),
        rows=[(trial, cells(trial)) for trial in trials],
        by_trial=figures.log_loss_by_trial(trials, present),
        by_knob=figures.log_loss_by_knob(trials, tuning.choices, tuning.by_logarithm),
    )


def apply(tuning: Tuning, params: Path) -> str:
    """Write the best trial's settings into params.yaml, whose comments and other lines stay; what to say about it.

    Raises:
        HeadstartError: no trial was trained to the end.
    """
    best = tuning.trials[0]
    if best.state != "complete":
        raise HeadstartError(f"there is nothing to apply. {tuning.sentence}")
    told = set_values(params, {f"finetune.{key}": value for key, value in best.knobs.items()})
    return f"{params}: {', '.join(told)}" if told else f"{params} has the best settings already"


def sentence(rows: list[Trial], present: Trial, gain: TuningGain | None) -> str:
    """The outcome in words.

    Args:
        rows: of tune.json, best first.
        present: the row of the present settings.
        gain: by how much the best one's log-loss is lower than the present one's, with the interval of that.
    """
    best, count = rows[0], len(rows)
    if best.state != "complete":
        return f"No trial was trained to the end. The present settings: {present.note}."
    if best is present:
        others = f"of {count} trials none" if count > 1 else "nothing else was tried, and nothing"
        return f"No better than what you have: {others} is below the present settings' log-loss, {best.val_log_loss:.3f}."
    which = f"trial {best.trial} ({in_words(best.knobs)})"
    if gain is None:
        return (
            f"The lowest validation log-loss is {best.val_log_loss:.3f}, of {which}. The present settings cannot be "
            f"compared: {present.note}."
        )
    once = "" if gain.repeats > 1 else " Chance in training is not counted: see finetune.repeats."
    by = f"{log_loss_difference(gain.value, gain.low, gain.high)} on {gain.pictures} validation pictures"
    if gain.low <= 0:
        return (
            f"No better than what you have: the lowest log-loss of {count} trials, {best.val_log_loss:.3f} of {which}, "
            f"is below the present settings' {present.val_log_loss:.3f} by {by}, which includes zero.{once}"
        )
    return (
        f"Better than what you have: {which} has log-loss {best.val_log_loss:.3f}, the present settings "
        f"{present.val_log_loss:.3f}: lower by {by}. The best of {count} looks somewhat better than it is; the test "
        f"pictures, which tuning never saw, tell.{once}"
    )


def command(changed: Knobs) -> str:
    """The command that runs the pipeline with these settings."""
    return " ".join(["dvc exp run", *(f"-S finetune.{key}={written(value)}" for key, value in changed.items())])


def in_words(knobs: Knobs) -> str:
    return ", ".join(f"{key} {written(value)}" for key, value in knobs.items())
