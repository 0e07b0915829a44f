"""How a stage's script starts its function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.params import Params


def start(run: Callable[[Params, Path], None]) -> None:
    """Call ``run`` with params.yaml of the current folder and its data folder, and end the process as a stage should."""
    run_cleanly(lambda: run(Params.load(), Path("data")))
