"""The ``headstart`` command: thin doors to the library. What the pipeline does is done by DVC."""

from __future__ import annotations

from headstart.base.errors import run_cleanly
from headstart.base.threads import wait_passively
from headstart.cli import labels, projects, results, studies, use  # noqa: F401  # which register their commands
from headstart.cli.app import app


def main() -> None:
    wait_passively()
    run_cleanly(app)
