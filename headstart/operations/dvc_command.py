"""DVC's command, run in a project: what it says is passed on, and what went wrong becomes one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

from headstart.base.errors import HeadstartError
from headstart.base.terminal import say

PATIENCE = 10  # seconds that DVC has to end after a signal before it gets the next one


def dvc(*arguments: str, project: Path, file: TextIO, keep_open: Sequence[int] = ()) -> None:
    """Run DVC, and wait until it has ended, also where Ctrl-C ends it.

    Args:
        project: the folder to run it in.
        file: where its output goes, line by line.
        keep_open: descriptors that it inherits, where there is such a thing.

    Raises:
        HeadstartError: it failed; the message holds DVC's or the stage's reason.
    """
    programs = str(Path(sys.executable).parent)  # under cron, or in a kernel, PATH does not have this environment
    ours = {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "DVC_NO_ANALYTICS": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments], cwd=project, env=os.environ | ours | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        pass_fds=keep_open if os.name == "posix" else (),
    )  # fmt: skip
    reason = ""
    try:
        for line in process.stdout or ():
            say(line.rstrip("\n"), file=file, flush=True)
            if line.startswith("Running stage "):
                reason = ""  # a message of the stage before was not an error
            if line.startswith("headstart: ") or (line.startswith("ERROR: ") and not reason.startswith("headstart: ")):
                reason = line
        code = process.wait()
    except KeyboardInterrupt:
        _stop(process)
        raise
    if code:
        why = reason.removeprefix("headstart: ").removeprefix("ERROR: ").strip() or _status(code)
        raise HeadstartError(
            f"`dvc {arguments[0]}` failed: {why.rstrip('.')}. Finished stages are kept; mend it and run it again"
        )


def _stop(process: subprocess.Popen[str]) -> None:
    """Wait until DVC and all that it runs have ended. In a terminal Ctrl-C has reached its children too; a signal from
    `kill` or systemd has not, and background processes of a shell may ignore it."""
    descendants: set[psutil.Process] = set()  # also those whose parent has ended since
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PATIENCE)
            break
        descendants |= set(psutil.Process().children(recursive=True))
        for child in descendants:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)
    for child in psutil.wait_procs(descendants, timeout=PATIENCE)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def _status(code: int) -> str:
    return f"it was killed by signal {-code}, as happens when memory runs out" if code < 0 else f"exit status {code}"
