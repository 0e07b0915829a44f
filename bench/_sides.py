"""Two ways of doing the same, measured alternately, each time in a fresh process: what both scripts here share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

SCRIPTS = Path(__file__).parent
RESULTS = SCRIPTS / "results.json"
DEFAULTS = {"threads": "all cores", "source": "generated pictures"}  # where nothing is given


def alternate(
    script: str, sides: Sequence[str], rounds: int, *arguments: str, cwd: Path | None = None
) -> list[dict[str, dict[str, float]]]:
    """Run ``script --side SIDE`` for every side, ``rounds`` times over; what each printed as JSON on its last line.

    The sides of a round run one after the other, so that whatever else the machine does meets both alike, and the order
    turns from round to round.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "THP_MEM_ALLOC_ENABLE")}
    results = []
    for number in range(rounds):
        found = {}
        for side in sides if number % 2 == 0 else list(reversed(sides)):
            command = [sys.executable, str(SCRIPTS / script), "--side", side, *arguments]
            done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        results.append({side: found[side] for side in sides})
    return results


def report(claim: str, before: Sequence[float], after: Sequence[float], unit: str, sides: Sequence[str]) -> None:
    """Print a claim's medians and the ratio of each round, after by before, and keep them in results.json, from which
    ``make bench`` makes its table."""
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    row = {
        "unit": unit,
        "sides": list(sides),
        "medians": [round(median(before), 2), round(median(after), 2)],
        "ratio": [round(value, 3) for value in (median(ratios), min(ratios), max(ratios))],
        "rounds": len(ratios),
    }
    print(
        f"{claim}: {sides[0]} {median(before):.1f}, {sides[1]} {median(after):.1f} {unit}, ratio {median(ratios):.2f} "
        f"({min(ratios):.2f}–{max(ratios):.2f}), {len(ratios)} rounds"
    )
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(
        json.dumps(known | {claim: row}, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def table() -> str:
    """All results as a table in Markdown."""
    lines = ["| what | before | after | ratio (least–most) |", "|---|---|---|---|"]
    for claim, row in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        (first, second), (middle, least, most) = row["sides"], row["ratio"]
        before, after = row["medians"]
        lines.append(
            f"| {claim} | {first}: {before:g} {row['unit']} | {second}: {after:g} {row['unit']} | {middle:.2f} "
            f"({least:.2f}–{most:.2f}) |"
        )
    return "\n".join(lines)


def measured(
    doc: str,
    sides: Sequence[str],
    measure: Callable[[str, argparse.Namespace], dict[str, float]],
    rounds: int,
    options: dict[str, int | str | None],
    fill: Callable[[argparse.Namespace], None] = lambda asked: None,
) -> tuple[argparse.Namespace, list[dict[str, dict[str, float]]]]:
    """The command line of a script that measures ``sides``: what was asked for, and what ``alternate`` found.

    Args:
        doc: the script's own docstring, for ``--help``.
        measure: (side, what was asked for) → numbers by name, run in processes of their own, which end with it.
        rounds: unless others are asked for.
        options: numbers and words that can be asked for, by name, with what they are otherwise.
        fill: puts what both sides get into ``asked.folder``, a path in a temporary folder.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (options | {"rounds": rounds}).items():
        kind = str if isinstance(value, str) else int
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"default: {value or DEFAULTS[name]}")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measure(asked.side, asked)))
        sys.exit()
    with tempfile.TemporaryDirectory() as scratch:
        asked.folder = Path(scratch) / "pictures"
        fill(asked)
        given = {name: getattr(asked, name) for name in (*options, "folder")}
        arguments = [part for name, value in given.items() if value for part in (f"--{name}", str(value))]
        return asked, alternate(Path(sys.argv[0]).name, sides, asked.rounds, *arguments, cwd=Path(scratch))


def compare(
    doc: str, sides: tuple[str, str], measure: Callable[[str, int | None], dict[str, float]], rates: Sequence[str]
) -> list[dict[str, dict[str, float]]]:
    """``measured`` with any number of threads: report the ``rates`` of both sides, in pictures per second, and return all
    that was found."""
    _, rounds = measured(doc, sides, lambda side, asked: measure(side, asked.threads), 5, {"threads": None})
    for name in rates:
        before, after = ([found[side][name] for found in rounds] for side in sides)
        report(f"{Path(sys.argv[0]).stem}: {name}", before, after, "pictures/s", sides)
    return rounds


if __name__ == "__main__":
    print(table())
