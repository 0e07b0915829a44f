"""What came of rank: a table for the terminal, a page, and the choice written into params.yaml."""

from __future__ import annotations

from pathlib import Path

from headstart.base import terminal
from headstart.base.artifacts.rank import Ranking
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.paths import members_of
from headstart.base.sections import View, network_and_view
from headstart.base.terminal import Column, cells, number
from headstart.base.yaml_file import set_values


def show(ranking: Ranking, params: Params) -> None:
    """Print the table, the reason, and the command that tries the choice."""
    terminal.show(ranking.table, COLUMNS, bold=ranking.choice)
    out = terminal.console()
    for row in ranking.table:
        if row.note:
            out.print(f"{row.backbone}: {row.note}")
    out.print(ranking.reason)
    if ranking.choice and (command := try_it(ranking.choice, params)):
        out.print(command)


def try_it(choice: str, params: Params) -> str | None:
    """The command that runs the pipeline with the choice and leaves params.yaml as it is; None where that has it."""
    now = {"backbone": params.backbone, "weights": params.weights} | _view(params.view)
    changed = {key: value for key, value in _settings(choice).items() if value != now[key]}
    if not changed:
        return None
    return " ".join(["dvc exp run", *(f"-S {key}={'null' if value is None else value}" for key, value in changed.items())])


def _settings(choice: str) -> dict[str, object]:
    """What params.yaml has to hold for it, by dotted key. A file of weights would belong to another network."""
    if len(members_of(choice)) > 1:
        return {"backbone": choice, "weights": "default"} | _view(View())
    name, view = network_and_view(choice)
    return {"backbone": name, "weights": "default"} | _view(view)


def _view(view: View) -> dict[str, object]:
    return {f"view.{key}": value for key, value in view.model_dump().items()}


COLUMNS: tuple[Column, ...] = (
    ("backbone", "backbone", str),
    ("size", "size", number("d")),
    ("frame", "frame", number("s")),
    ("accuracy", "probe_accuracy", number(".3f")),
    ("from", "low", number(".3f")),
    ("to", "high", number(".3f")),
    ("log-loss", "log_loss", number(".3f")),
    ("LogME", "logme", number(".3f")),
    ("kNN", "knn_accuracy", number(".3f")),
    ("ImageNet", "imagenet_top1", number(".1f")),
    ("GMACs", "gmacs", number(".2f")),
    ("MB", "megabytes", number(".1f")),
    ("images/s", "images_per_s", number(".0f")),
    ("minutes", "finetune_minutes", number(".1f")),
    ("pictures", "pictures", number("d")),
)


def write_page(ranking: Ranking, path: Path) -> None:
    """One page that needs no network: the reason, the table, and accuracy over speed."""
    from headstart.evaluation import pages
    from headstart.studies import figures

    pages.write(
        path,
        pages.template("rank.html.j2"),
        ranking=ranking,
        headings=[heading for heading, _, _ in COLUMNS],
        rows=[(row, cells(row, COLUMNS)) for row in ranking.table],
        drawings=figures.accuracy_over_speed(ranking.table, ranking.choice),
    )


def apply(ranking: Ranking, params: Path) -> str:
    """Write the choice into params.yaml, whose comments and other lines stay; what to say about it.

    Raises:
        HeadstartError: there is no choice to write.
    """
    choice = ranking.choice
    if choice is None:
        raise HeadstartError(f"there is no choice to apply. {ranking.reason}")
    now = _view(Params.load(params).view)
    told = set_values(params, {key: value for key, value in _settings(choice).items() if now.get(key, ...) != value})
    return f"{params}: {', '.join(told)}" if told else f"{params} has backbone: {choice} already"
