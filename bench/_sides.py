"""Two ways of doing the same, measured alternately, each time in a fresh process: what both scripts here share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

SCRIPTS = Path(__file__).parent


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


def spread(values: Sequence[float]) -> str:
    """Median, least and most: 1.43 (1.38–1.51)."""
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def compare(
    doc: str, sides: tuple[str, str], measure: Callable[[str, int | None], dict[str, float]], rates: Sequence[str]
) -> list[dict[str, dict[str, float]]]:
    """The command line of a script that compares two ``sides``: print the ``rates`` of both, and their ratios.

    Args:
        doc: the script's own docstring, for ``--help``.
        measure: (side, threads) → pictures per second by name, run in a process of its own.

    Returns:
        What ``alternate`` found, for what else the script has to say; it does not return in a measuring process.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measure(asked.side, asked.threads)))
        sys.exit()
    threads = ["--threads", str(asked.threads)] if asked.threads else []
    rounds = alternate(Path(sys.argv[0]).name, sides, asked.rounds, *threads)
    for name in rates:
        before, after = ([found[side][name] for found in rounds] for side in sides)
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        print(
            f"{name}: {median(before):.0f} → {median(after):.0f} pictures/s, ratio {spread(ratios)}, {len(rounds)} rounds"
        )
    return rounds
