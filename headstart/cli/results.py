"""Commands about results: MLflow, its registry, retraining, and whether all is well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart.base.artifacts import DATA
from headstart.base.errors import HeadstartError
from headstart.base.terminal import say, say_json
from headstart.cli.app import Trust, app, say_if_made_by_other_code

Why = Annotated[str, typer.Option("--why", help="The reason; it is kept with the version.")]


@app.command()
def track() -> None:
    """Log the result in data/ to MLflow, for instance after `dvc pull` in a fresh clone; once and no more."""
    from headstart.base.params import Params
    from headstart.tracking.track import track as log

    for needed in (DATA.evaluate.metrics, DATA.package.model.mlmodel):
        if not needed.exists():
            raise HeadstartError(f"{needed} is not there; run `dvc pull` or `dvc repro` first")
    say(log(DATA, Params.load()))


@app.command()
def gate(trust: Trust = False) -> None:
    """Decide whether the result in data/ becomes the champion, by the rules in params.yaml, and act on it; once."""
    from headstart.base.params import Params
    from headstart.tracking.gate import run
    from headstart.tracking.result import stages_of_the_result

    say_if_made_by_other_code(*stages_of_the_result())
    say(run(DATA, Params.load(), trust).sentence)


@app.command()
def promote(
    why: Why,
    version: Annotated[int | None, typer.Argument(help="The version's number; otherwise the challenger.")] = None,
) -> None:
    """Make a version the champion, whatever the gate says."""
    from headstart.base.params import Params
    from headstart.tracking.registry import Registry

    registry = Registry(Params.load())
    chosen = registry.challenger() if version is None else registry.version(version)
    if chosen is None:
        raise HeadstartError(f"{registry.name} has no challenger; run `headstart track`, or name a version")
    registry.promote(chosen, why)
    say(f"version {chosen.number} of {registry.name} is the champion")


@app.command()
def rollback(why: Why) -> None:
    """Make the champion before this one the champion again."""
    from headstart.base.params import Params
    from headstart.tracking.registry import Registry

    registry = Registry(Params.load())
    say(f"version {registry.rollback(why).number} of {registry.name} is the champion again")


@app.command()
def retrain(
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """One unattended round, for cron, timers and CI: pull, `dvc repro`, let the gate decide, push, commit dvc.lock.

    Exit status: 0 promoted, 10 skipped (nothing new to decide), 11 kept, 12 refused, 75 another round is running,
    1 failed, 130 interrupted. Killed anywhere, the next round carries on.
    """
    from headstart.base.params import Params
    from headstart.operations import retrain as rounds

    summary = rounds.retrain(Params.load)
    unheard = summary["outcome"] in ("failed", "busy")
    if as_json:
        say_json(summary, indent=2)
    elif not unheard:
        say(*rounds.summary_lines(summary))
    if unheard:
        say(f"headstart: {summary['sentence']}", file=sys.stderr)
    raise typer.Exit(rounds.EXIT[summary["outcome"]])


@app.command()
def drift(
    folder: Annotated[
        Path | None, typer.Argument(help="Pictures without labels, in place of drift.incoming of params.yaml.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Say whether new pictures differ from those that the champion was made from, which are new in kind, and which of those
    without labels are most worth labelling."""
    from headstart.base.params import Params
    from headstart.monitoring.drift import drift_from_champion

    params = Params.load()
    if folder is not None:
        params = params.model_copy(update={"drift": params.drift.model_copy(update={"incoming": str(folder.resolve())})})
    found = drift_from_champion(DATA, params, trust)
    say(*((found.sentence, f"With the pictures: {DATA.drift.page}") if found else ("No usable picture is new.",)))


@app.command()
def verify(
    run: Annotated[str | None, typer.Argument(help="A run's id, name or result; by default the result in data/.")] = None,
) -> None:
    """Make a tracked result again from its git commit and DVC's cache, and say whether it is identical, or what differs.

    It takes as long as the pipeline took. Your files and MLflow are left alone. The exit status is 1 where it differs.
    """
    from headstart.base.params import Params
    from headstart.operations.verify import verify as make_again

    verdict = make_again(run, Params.load())
    say(*verdict.lines())
    if verdict.differences:
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Open the page in a browser.")] = None,
) -> None:
    """MLflow's page with all results side by side, until Ctrl-C. It opens where there is a terminal."""
    from headstart.base.params import Params
    from headstart.operations.ui import ui as show_results

    show_results(Params.load(), port, sys.stdout.isatty() if show is None else show)


@app.command()
def doctor() -> None:
    """Say whether this machine and this checkout are ready for a run, and what to do about what is not.

    Nothing is downloaded or changed. The exit status is 1 where something is wrong.
    """
    from headstart.operations.doctor import show

    if not show():
        raise typer.Exit(1)
