"""What came of rank: a table for the terminal, a page, and the choice written into params.yaml."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from headstart import tables
from headstart.checkout import read_json, write_text
from headstart.errors import HeadstartError
from headstart.tables import Column, cells, number

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
    tables.show(ranking["table"], COLUMNS, bold=ranking["choice"])
    terminal = tables.console()
    for row in ranking["table"]:
        if row["note"]:
            terminal.print(f"{row['backbone']}: {row['note']}", markup=False)
    terminal.print(ranking["reason"], markup=False)
    if ranking["choice"]:
        terminal.print(f"{try_it(ranking['choice'], weights)}", markup=False)


def try_it(choice: str, weights: str) -> str:
    return f"dvc exp run -S backbone={choice}" + ("" if weights == "default" else " -S weights=default")


COLUMNS: tuple[Column, ...] = (
    ("backbone", "backbone", str),
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
        rows=[(row, cells(row, COLUMNS)) for row in ranking["table"]],
        plot="data:image/png;base64," + base64.b64encode(drawing).decode() if drawing else None,
    )
    write_text(path, text)


def apply(ranking: dict[str, Any], params: Path) -> str:
    """Write the choice into params.yaml, whose comments and other lines stay; what to say about it.

    Raises:
        HeadstartError: there is no choice to write.
    """
    import yaml

    choice = ranking["choice"]
    if choice is None:
        raise HeadstartError(f"there is no choice to apply. {ranking['reason']}")
    text = params.read_text(encoding="utf-8")
    wanted = {"backbone": choice, "weights": "default"}  # a file of weights would belong to another network
    told = []
    root = yaml.compose(text)
    for key, value in reversed(root.value if root else []):  # from the end, so that earlier positions stay right
        new = wanted.get(key.value)
        if new is not None and value.value != new:
            text = f"{text[: value.start_mark.index]}{new}{text[value.end_mark.index :]}"
            told.append(f"{key.value}: {new}")
    if not told:
        return f"{params} has backbone: {choice} already"
    write_text(params, text)
    return f"{params}: {', '.join(reversed(told))}"
