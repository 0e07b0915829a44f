"""What came of rank: a table for the terminal, a page, and the choice written into params.yaml."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from headstart.checkout import read_json, write_text
from headstart.errors import HeadstartError
from headstart.params import set_values

RANK, PAGE = "rank.json", "rank.html"
COMMAND = "dvc repro rank/dvc.yaml"


def load_ranking(folder: Path) -> dict[str, Any]:
    """rank.json: ``choice``, ``reason`` and ``table``, best first."""
    try:
        ranking: dict[str, Any] = read_json(folder / RANK)
    except (OSError, ValueError):
        raise HeadstartError(f"{folder / RANK} is not there or not whole; run `{COMMAND}` first") from None
    return ranking


def show(ranking: dict[str, Any], weights: str = "default") -> None:
    """Print the table, the reason, and the command that tries the choice.

    Args:
        weights: as params.yaml has it; candidates were compared with their default ones.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 124, highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="left" if heading == "backbone" else "right", no_wrap=True)
    for row in ranking["table"]:
        style = "bold" if row["backbone"] == ranking["choice"] else None
        table.add_row(*cells(row), style=style)
    console.print(table)
    for row in ranking["table"]:
        if row["note"]:
            console.print(f"{row['backbone']}: {row['note']}", markup=False)
    console.print(ranking["reason"], markup=False)
    if ranking["choice"]:
        console.print(f"{try_it(ranking['choice'], weights)}", markup=False)


def try_it(choice: str, weights: str) -> str:
    return f"dvc exp run -S backbone={choice}" + ("" if weights == "default" else " -S weights=default")


def _number(form: str) -> Any:
    return lambda value: "" if value is None else format(value, form)


# Heading, key or keys of a row, and how it is written.
COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("backbone", "backbone", str),
    ("accuracy", "probe_accuracy", _number(".3f")),
    ("from", "low", _number(".3f")),
    ("to", "high", _number(".3f")),
    ("log-loss", "log_loss", _number(".3f")),
    ("LogME", "logme", _number(".3f")),
    ("kNN", "knn_accuracy", _number(".3f")),
    ("ImageNet", "imagenet_top1", _number(".1f")),
    ("GMACs", "gmacs", _number(".2f")),
    ("MB", "megabytes", _number(".1f")),
    ("images/s", "images_per_s", _number(".0f")),
    ("minutes", "finetune_minutes", _number(".1f")),
    ("pictures", "pictures", _number("d")),
)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as it is shown: an empty cell where nothing is known."""
    return [written(row[key]) for _, key, written in COLUMNS]


def write_page(ranking: dict[str, Any], path: Path) -> None:
    """One page that needs no network: the reason, the table, and accuracy over speed."""
    import jinja2

    from headstart import figures

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    drawing = figures.accuracy_over_speed(ranking["table"], ranking["choice"])
    text = environment.get_template("rank.html.j2").render(
        ranking=ranking,
        headings=[heading for heading, _, _ in COLUMNS],
        rows=[(row, cells(row)) for row in ranking["table"]],
        plot="data:image/png;base64," + base64.b64encode(drawing).decode() if drawing else None,
    )
    write_text(path, text)


def apply(ranking: dict[str, Any], params: Path) -> str:
    """Write the choice into params.yaml, whose comments and other lines stay; what to say about it.

    Raises:
        HeadstartError: there is no choice to write.
    """
    choice = ranking["choice"]
    if choice is None:
        raise HeadstartError(f"there is no choice to apply. {ranking['reason']}")
    told = set_values(
        params, {"backbone": choice, "weights": "default"}
    )  # a file of weights would belong to another network
    return f"{params}: {', '.join(told)}" if told else f"{params} has backbone: {choice} already"
