"""How a stage's script starts its function."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.errors import run_cleanly
from headstart.base.identity import check_code
from headstart.base.params import Params
from headstart.base.threads import wait_passively

wait_passively()  # not in start(): what a stage's script imports after this module imports torch


def start(script: str, run: Callable[[Params, DataFolder], None]) -> None:
    """Call ``run`` with params.yaml and the data folder of the current folder, and end the process as a stage should.

    Args:
        script: the path of the stage's script, which is named after the stage.
    """
    if multiprocessing.current_process().name != "MainProcess":
        return  # in a process that the stage has started afresh, which first imports its script again

    def checked() -> None:
        params, stage = Params.load(), Path(script).stem
        if stage != "fetch":  # which records the code
            check_code(DATA, stage)
        run(params, DATA)

    run_cleanly(checked)
