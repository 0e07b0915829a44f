"""Commands that use a packaged model, and the list of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headstart.base.artifacts import DATA
from headstart.base.errors import HeadstartError
from headstart.base.terminal import say
from headstart.cli.app import Model, Trust, app


@app.command()
def predict(
    pictures: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders of them, addresses such as s3://bucket/folder, or - for paths on standard input, by "
            "line or by find -print0."
        ),
    ],
    model: Model = DATA.package.model,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="text, json (one object per line), csv or parquet. By default as --output ends, or text."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="A file to write to; it appears when it is whole. Or an address, or a folder with a / at the end: there "
            "answers come in parts, and a run that was killed goes on after the last."
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="Say nothing where not sure, so that at most this share of the answers is wrong: 0.05 is 5%."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Say what is on pictures, with the probability.

    A multi-label model names every class that reaches its threshold; as label they are joined by ";". With --max-error it
    names the classes that it is unsure of.

    A picture that is unlike anything learned is marked as unfamiliar, with the nearest training pictures. With --max-error
    it gets no answer.

    A picture that cannot be used is named on the error stream and the others are still answered; the exit status is
    then 1.
    """
    from headstart.base.params import Params
    from headstart.data.in_place import named_pictures
    from headstart.inference import batch, parts, prediction_files

    if output is not None and parts.is_for_parts(output):
        cluster = Params.load().cluster if Path("params.yaml").exists() else None
        parts.predict_in_parts(named_pictures(pictures), model, form or "csv", output, max_error, trust, cluster)
        return
    file = None if output is None else Path(output)
    suffix = file.suffix.lower() if file is not None else ""
    if form is None and suffix and suffix not in prediction_files.SUFFIXES:
        known = ", ".join(prediction_files.SUFFIXES)
        raise HeadstartError(f"--output {output}: {suffix} is not written; it may end in {known}, or name a --format")
    form = form or prediction_files.SUFFIXES.get(suffix, "text")
    if form not in prediction_files.FORMATS:
        raise HeadstartError(f"--format {form!r}; allowed: {', '.join(prediction_files.FORMATS)}")
    batch.predict(named_pictures(pictures), model, form, file, max_error, trust)


@app.command()
def export(
    to: Annotated[str, typer.Option(help="onnx, openvino, or int8 (OpenVINO with whole numbers of 8 bits).")],
    output: Annotated[Path | None, typer.Option(help="A folder. By default data/export/onnx, /openvino or /int8.")] = None,
    max_cost: Annotated[
        float, typer.Option(help="Accuracy on validation pictures that int8 may cost; beyond it is refused.")
    ] = 0.01,
    model: Model = DATA.package.model,
    trust: Trust = False,
) -> None:
    """Write the model in a form that needs neither headstart nor torch, after comparing its answers on real pictures."""
    from headstart.inference import export

    if to not in export.FORMS:
        raise HeadstartError(f"--to {to!r}; allowed: {', '.join(export.FORMS)}")
    say(export.export(model, to, DATA, output or DATA / "export" / to, max_cost, trust))


@app.command()
def serve(
    model: Model = DATA.package.model,
    host: Annotated[str, typer.Option(help="0.0.0.0 answers other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_megabytes: Annotated[float, typer.Option(min=0.001, max=256, help="Of one request's body.")] = 10.0,
    max_megapixels: Annotated[
        float | None,
        typer.Option(min=0.001, help="Of one picture, and of all in one request. By default as the model was made."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Another host name that the server is reached by, such as a proxy's.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="So many pictures go through the network at once, at most.")] = 32,
    wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a picture waits for others.")] = 5.0,
    trust: Trust = False,
) -> None:
    """Answer pictures over HTTP, with a page to drop one on; until Ctrl-C or SIGTERM.

    POST /predict takes a picture as body, as a form's file or as {"image": base64}; GET /health and GET /model tell.
    """
    from headstart.inference import server

    server.serve(model, host, port, server.Limits(max_megabytes, max_megapixels, batch, wait_ms), name or (), trust)


@app.command()
def models(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Names, or parts of them; * and ? stand for anything. A whole name is that one alone.",
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="name, top1, top5, depth, parameters, gmacs or size.")] = "name",
    library: Annotated[str | None, typer.Option(help="torchvision or timm.")] = None,
    at_hand: Annotated[bool, typer.Option("--at-hand", help="Only those whose weights are on this machine.")] = False,
    max_parameters: Annotated[float | None, typer.Option(help="Millions of parameters, at most.")] = None,
    min_top1: Annotated[float | None, typer.Option(help="Published top-1 accuracy on ImageNet, in percent.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many rows at most.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a picture forward and backward on this machine, with random weights.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help="text, csv, or json (one object per line).")] = "text",
) -> None:
    """List the backbones that params.yaml can name: accuracy on ImageNet, depth, parameters, cost, and whether the weights
    are at hand. No network is asked."""
    from headstart.base.params import Params
    from headstart.base.paths import state_folder
    from headstart.models import listing

    if form not in listing.FORMATS:
        raise HeadstartError(f"--format {form!r}; allowed: {', '.join(listing.FORMATS)}")
    query = listing.Query(tuple(patterns or ()), sort, library, at_hand, max_parameters, min_top1, limit)
    params = Params.load() if Path("params.yaml").exists() else Params()
    rows = listing.listed(query, params.weights_mirror, state_folder)
    note = listing.measure(rows, query, params.threads, state_folder) if measure else None
    listing.count(rows, state_folder)
    listing.show(rows, form, note)
