"""Commands that put labels right: by looking at pictures, or in a labelling tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart.base.artifacts import DATA
from headstart.base.errors import HeadstartError
from headstart.base.terminal import say
from headstart.cli.app import app, say_if_made_by_other_code


@app.command()
def review(
    host: Annotated[
        str, typer.Option(help="0.0.0.0 answers other machines too; whoever reaches it may judge.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8100,
    name: Annotated[
        list[str] | None, typer.Option(help="Another host name that the page is reached by, such as a proxy's.")
    ] = None,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Open the page in a browser.")] = None,
) -> None:
    """Look at suspects, duplicates and outliers on a local page, and judge them by keyboard: keep, another class, leave
    out, undo.

    Every judgement is written at once to the tables that data.relabel and data.exclude of params.yaml name, and what was
    kept to kept.csv. Where params.yaml names none, relabel.csv and exclude.csv are made and entered there. Several people
    may judge at once. The page opens where there is a terminal; Ctrl-C ends it.
    """
    from headstart.operations import review_server

    say_if_made_by_other_code("labels", command="dvc repro studies/dvc.yaml:labels")
    review_server.serve(DATA, host, port, name or (), sys.stdout.isatty() if show is None else show)


@app.command()
def export_labels(
    output: Annotated[Path, typer.Argument(help="The file to write: .json, for CVAT .xml.")],
    to: Annotated[str, typer.Option(help="coco, cvat (for images 1.1) or label-studio.")],
    images: Annotated[
        str, typer.Option(help="For Label Studio, what its address of a picture has before the picture's path.")
    ] = "/data/local-files/?d=",
) -> None:
    """Write the labels of all pictures for a labelling tool, as they are with every judgement so far.

    For Label Studio they come with what `dvc repro studies/dvc.yaml:labels` suggests, as predictions.
    """
    from headstart.data import label_exchange

    if to not in label_exchange.TOOLS:
        raise HeadstartError(f"--to {to!r}; allowed: {', '.join(label_exchange.TOOLS)}")
    say(label_exchange.export_labels(DATA, to, output, images))


@app.command()
def import_labels(
    file: Annotated[
        Path,
        typer.Argument(help="An export of a labelling tool: COCO, CVAT for images 1.1, Label Studio's JSON or JSON-MIN."),
    ],
) -> None:
    """Take over the labels that somebody has changed in a labelling tool: they go to the tables that data.relabel and
    data.exclude of params.yaml name, as with `headstart review`.

    A picture with the label "(leave out)" is left out; in a multi-label set "(none)" stands for no label. A picture without
    a label stays as it is. Unknown pictures or classes are an error, and nothing is changed.
    """
    from headstart.data import label_exchange

    say(label_exchange.import_labels(DATA, file))
