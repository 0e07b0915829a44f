"""The ``headstart`` command: thin doors to the library. What the pipeline does is done by DVC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart import __version__
from headstart.base.artifacts import DATA
from headstart.base.errors import HeadstartError, run_cleanly
from headstart.base.terminal import say, say_json
from headstart.base.threads import wait_passively

app = typer.Typer(
    help="From a folder of pictures to the best classifier a pre-trained network can give. The pipeline itself is "
    "`dvc repro`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[Path, typer.Option(help="A packaged model: the folder that holds MLmodel.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code in a model that was not made here.")]


def main() -> None:
    wait_passively()
    run_cleanly(app)


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
        typer.Option(help="Say nothing where not sure, so that at most this share of the answers is wrong: 0.05 is 5 %."),
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
def track() -> None:
    """Log the result in data/ to MLflow, for instance after `dvc pull` in a fresh clone; once and no more."""
    from headstart.base.params import Params
    from headstart.tracking.track import track as log

    for needed in (DATA.evaluate.metrics, DATA.package.model.mlmodel):
        if not needed.exists():
            raise HeadstartError(f"{needed} is not there; run `dvc pull` or `dvc repro` first")
    say(log(DATA, Params.load()))


def _say_if_made_by_other_code(*stages: str, command: str = "dvc repro") -> None:
    from headstart.base.identity import outdated

    if sentence := outdated(DATA, stages):
        say(f"headstart: {sentence}; `{command}` makes it again", file=sys.stderr)


Why = Annotated[str, typer.Option("--why", help="The reason; it is kept with the version.")]


@app.command()
def gate(trust: Trust = False) -> None:
    """Decide whether the result in data/ becomes the champion, by the rules in params.yaml, and act on it; once."""
    from headstart.base.params import Params
    from headstart.tracking.gate import run
    from headstart.tracking.result import stages_of_the_result

    _say_if_made_by_other_code(*stages_of_the_result())
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
def rank(
    apply: Annotated[bool, typer.Option("--apply", help="Write the choice into params.yaml.")] = False,
) -> None:
    """Say which backbone `dvc repro studies/dvc.yaml:rank` found best for your pictures, and why."""
    from headstart.base.artifacts.rank import Ranking
    from headstart.base.params import Params
    from headstart.studies import ranking_report

    ranking, params = Ranking.read(DATA.rank.details), Params.load()
    _say_if_made_by_other_code("rank", command=Ranking.made_by)
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
    _say_if_made_by_other_code("tune", command=Tuning.made_by)
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
    _say_if_made_by_other_code("why", command=TransferGain.made_by)
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

    _say_if_made_by_other_code("labels", command=LabelIssues.made_by)
    label_issues_report.show(LabelIssues.read(DATA.labels.details), DATA.labels)


@app.command()
def groups() -> None:
    """Say which pictures `dvc repro studies/dvc.yaml:groups` found to belong together, and what it costs to part them."""
    from headstart.base.artifacts.groups import GroupSuggestions
    from headstart.studies import groups_report

    _say_if_made_by_other_code("groups", command=GroupSuggestions.made_by)
    groups_report.show(GroupSuggestions.read(DATA.groups.details), DATA.groups)


@app.command()
def shortcuts() -> None:
    """Say what `dvc repro studies/dvc.yaml:shortcuts` found that tells classes apart without a look at the subject."""
    from headstart.base.artifacts.shortcuts import Shortcuts
    from headstart.studies import shortcuts_report

    _say_if_made_by_other_code("shortcuts", command=Shortcuts.made_by)
    shortcuts_report.show(Shortcuts.read(DATA.shortcuts.details), DATA.shortcuts)


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


@app.command()
def doctor() -> None:
    """Say whether this machine and this checkout are ready for a run, and what to do about what is not.

    Nothing is downloaded or changed. The exit status is 1 where something is wrong.
    """
    from headstart.operations.doctor import show

    if not show():
        raise typer.Exit(1)
