"""What came of rank: a table for the terminal, a page, and the choice written into params.yaml."""

from __future__ import annotations

from pathlib import Path

from headstart.base import terminal
from headstart.base.artifacts.rank import Ranking
from headstart.base.errors import HeadstartError
from headstart.base.files import write_text
from headstart.base.params import set_values
from headstart.base.terminal import Column, cells, number


def show(ranking: Ranking, weights: str = "default") -> None:
    """Print the table, the reason, and the command that tries the choice.

    Args:
        weights: as params.yaml has it; candidates were compared with their default ones.
    """
    terminal.show(ranking.table, COLUMNS, bold=ranking.choice)
    out = terminal.console()
    for row in ranking.table:
        if row.note:
            out.print(f"{row.backbone}: {row.note}")
    out.print(ranking.reason)
    if ranking.choice:
        out.print(f"{try_it(ranking.choice, weights)}")


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


def write_page(ranking: Ranking, path: Path) -> None:
    """One page that needs no network: the reason, the table, and accuracy over speed."""
    from headstart.evaluation import pages
    from headstart.studies import figures

    drawing = figures.accuracy_over_speed(ranking.table, ranking.choice)
    text = pages.template("rank.html.j2").render(
        ranking=ranking,
        headings=[heading for heading, _, _ in COLUMNS],
        rows=[(row, cells(row, COLUMNS)) for row in ranking.table],
        plot=pages.embedded(drawing) if drawing else None,
    )
    write_text(path, text)


def apply(ranking: Ranking, params: Path) -> str:
    """Write the choice into params.yaml, whose comments and other lines stay; what to say about it.

    Raises:
        HeadstartError: there is no choice to write.
    """
    choice = ranking.choice
    if choice is None:
        raise HeadstartError(f"there is no choice to apply. {ranking.reason}")
    told = set_values(
        params, {"backbone": choice, "weights": "default"}
    )  # a file of weights would belong to another network
    return f"{params}: {', '.join(told)}" if told else f"{params} has backbone: {choice} already"
