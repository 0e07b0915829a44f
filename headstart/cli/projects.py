"""Commands that make a project, and bring it to the installed version."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from headstart.base.errors import HeadstartError
from headstart.base.terminal import say
from headstart.cli.app import app


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Of the folder to make here.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="Pictures to learn from: a folder of class folders, or whatever data.source takes. Else emoji."
        ),
    ] = None,
) -> None:
    """Make a project: a folder with the pipeline and its settings, under git and DVC.

    Any number of projects can use one installation.
    """
    from headstart.operations import new_project

    say(*new_project.init(name, source))


@app.command()
def upgrade(yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False) -> None:
    """Bring this project's pipeline files to the installed version and commit them; the changes are shown first.

    Your settings in params.yaml stay. New keys are added with their comments, and those that are gone are named. What you
    changed in the other files is merged.
    """
    from headstart.operations import upgrade as project

    found = project.plan()
    say(*found.lines())
    if not found.changes:
        return
    if not yes and not (sys.stdin.isatty() and typer.confirm("Make these changes?")):
        raise HeadstartError("nothing was changed; `headstart upgrade --yes` makes the changes without asking")
    say(found.make())
    project.check_params()
