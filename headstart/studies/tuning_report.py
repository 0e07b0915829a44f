"""What came of tune: a table for the terminal, a page, and the best settings written into params.yaml."""

from __future__ import annotations

import json
from pathlib import Path

from headstart.base.artifacts.tune import Trial, Tuning
from headstart.base.errors import HeadstartError
from headstart.base.files import write_text
from headstart.base.params import set_values
from headstart.base.terminal import console
from headstart.evaluation.metrics import ACCURACY, LOG_LOSS


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
    drawings = (
        figures.log_loss_by_trial(trials, present),
        figures.log_loss_by_knob(trials, tuning.choices, tuning.by_logarithm),
    )
    by_trial, by_knob = (pages.embedded(drawing) if drawing else None for drawing in drawings)
    text = pages.template("tune.html.j2").render(
        tuning=tuning,
        headings=headings(tuning),
        rows=[(trial, cells(trial)) for trial in trials],
        by_trial=by_trial,
        by_knob=by_knob,
    )
    write_text(path, text)


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
