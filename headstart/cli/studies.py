"""Commands that show what a study has found; ``dvc repro studies/dvc.yaml:NAME`` makes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart.base.artifacts import DATA
from headstart.base.terminal import say
from headstart.cli.app import app, say_if_made_by_other_code


@app.command()
def rank(
    apply: Annotated[bool, typer.Option("--apply", help="Write the choice into params.yaml.")] = False,
) -> None:
    """Say which backbone `dvc repro studies/dvc.yaml:rank` found best for your pictures, and why."""
    from headstart.base.artifacts.rank import Ranking
    from headstart.base.params import Params
    from headstart.studies import ranking_report

    ranking, params = Ranking.read(DATA.rank.details), Params.load()
    say_if_made_by_other_code("rank", command=Ranking.made_by)
    ranking_report.show(ranking, params)
    if apply:
        say(ranking_report.apply(ranking, Path("params.yaml")))


@app.command()
def tune(
    apply: Annotated[bool, typer.Option("--apply", help="Write the best settings into params.yaml.")] = False,
) -> None:
    """Say which settings `dvc repro studies/dvc.yaml:tune` found best, and whether they are better than yours."""
    from headstart.base.artifacts.tune import Tuning
    from headstart.studies import tuning_report

    found = Tuning.read(DATA.tune.details)
    say_if_made_by_other_code("tune", command=Tuning.made_by)
    tuning_report.show(found)
    if apply:
        say(tuning_report.apply(found, Path("params.yaml")))


@app.command()
def why(
    apply: Annotated[bool, typer.Option("--apply", help="Write how much to train into params.yaml.")] = False,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Open the page in a browser.")] = None,
) -> None:
    """Say whether pre-training is worth it for your pictures, which network, how much to train, and what to do next.

    The page opens where there is a terminal; its path is printed in any case.
    """
    import webbrowser

    from headstart.base.artifacts.why import TransferGain
    from headstart.base.params import Params
    from headstart.studies.summary import Story

    story = Story.of(DATA, Params.load())
    say_if_made_by_other_code("why", command=TransferGain.made_by)
    say(*story.lines())
    page = DATA.why.page
    story.write_page(page, DATA)
    say(f"The whole story, with plots: {page}")
    if show if show is not None else sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())
    if apply:
        say(story.apply(Path("params.yaml")))


@app.command()
def labels() -> None:
    """Say which labels `dvc repro studies/dvc.yaml:labels` found to look wrong, and where the pictures are to be seen."""
    from headstart.base.artifacts.labels import LabelIssues
    from headstart.studies import label_issues_report

    say_if_made_by_other_code("labels", command=LabelIssues.made_by)
    label_issues_report.show(LabelIssues.read(DATA.labels.details), DATA.labels)


@app.command()
def groups() -> None:
    """Say which pictures `dvc repro studies/dvc.yaml:groups` found to belong together, and what it costs to part them."""
    from headstart.base.artifacts.groups import GroupSuggestions
    from headstart.studies import groups_report

    say_if_made_by_other_code("groups", command=GroupSuggestions.made_by)
    groups_report.show(GroupSuggestions.read(DATA.groups.details), DATA.groups)


@app.command()
def shortcuts() -> None:
    """Say what `dvc repro studies/dvc.yaml:shortcuts` found that tells classes apart without a look at the subject."""
    from headstart.base.artifacts.shortcuts import Shortcuts
    from headstart.studies import shortcuts_report

    say_if_made_by_other_code("shortcuts", command=Shortcuts.made_by)
    shortcuts_report.show(Shortcuts.read(DATA.shortcuts.details), DATA.shortcuts)
