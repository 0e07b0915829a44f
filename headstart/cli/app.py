"""The command's own options, and what several of its subcommands have in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart import __version__
from headstart.base.artifacts import DATA
from headstart.base.terminal import say

app = typer.Typer(
    help="From a folder of pictures to the best classifier a pre-trained network can give. The pipeline itself is "
    "`dvc repro`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[Path, typer.Option(help="A packaged model: the folder that holds MLmodel.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code in a model that was not made here.")]


def _version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def say_if_made_by_other_code(*stages: str, command: str = "dvc repro") -> None:
    """Where the code or libraries have changed since ``stages`` ran, say so."""
    from headstart.base.identity import outdated

    if sentence := outdated(DATA, stages):
        say(f"headstart: {sentence}; `{command}` makes it again", file=sys.stderr)
