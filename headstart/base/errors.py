"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable

from headstart.base.private_names import end_as_python_does
from headstart.base.safe_text import masked, sentence
from headstart.base.terminal import say

# What a full disk answers, a quota that is used up, and a limit on the size of files.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NAMED = 3  # of many, in one sentence


class HeadstartError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do. Secrets in it are masked."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def made_again(made_by: str) -> str:
    """What to do about a damaged file: DVC runs a stage whose output seems unchanged only where it is told to.

    Args:
        made_by: the command that made the file.
    """
    return f"run `{made_by.replace('dvc repro', 'dvc repro --force --single-item')}`"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A ready hint such as ``did you mean 'resnet18'?``, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name[:100], dict.fromkeys(allowed), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def some(names: Iterable[str], most: int = NAMED) -> str:
    """The first few of the names, and how many more there are."""
    listed = list(names)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")


def run_cleanly(main: Callable[[], None]) -> None:
    """Run a stage or a command and end the process. A HeadstartError ends it with its sentence and status 1, and so does
    what the operating system refuses and nobody expected (a full disk, a folder that may not be written); Ctrl-C with 130.
    A defect ends it with a traceback, whose secrets are masked too.
    """
    if sys.platform == "win32":  # where a pipe's code page lacks signs that sentences here have
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8")
    try:
        main()
    except SystemExit as end:  # how typer ends a command
        if end.code:
            raise
    except HeadstartError as error:
        say(f"headstart: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        say("headstart: interrupted; finished stages and finished epochs are kept", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if refused := refusal(error):
            say(sentence(f"headstart: {refused}"), file=sys.stderr)
        else:  # a defect, which may quote an address all the same
            sys.stderr.write(masked(traceback.format_exc()))
        raise SystemExit(1) from None
    leave()


def refusal(error: BaseException) -> str:
    """What the operating system refused, in words; empty where ``error`` is none of its own, nor due to a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        refused = system_error(cause)
        if refused and (cause is error or refused.errno in FULL):
            where = f"{os.fsdecode(refused.filename)}: " if refused.filename else ""
            advice = "; free some space there and run it again, what is finished is kept" if refused.errno in FULL else ""
            return f"{where}{refused.strerror or refused}{advice}"
        cause = cause.__cause__ or cause.__context__
    return ""


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error that ``error`` is, or that a library has put into words; None where it is none."""
    if isinstance(error, OSError):
        return error if error.errno is not None else None
    if in_words := re.search(r"\(os error (\d+)\)", str(error)):  # as safetensors, which is written in Rust, has it
        return OSError(number := int(in_words[1]), os.strerror(number))
    is_full = "database or disk is full" in str(error)  # as SQLite has it
    return OSError(errno.ENOSPC, "No space left on device") if is_full else None


def leave() -> None:
    """End the process with status 0 as Python does, but without taking apart all that was imported: with torch that takes
    one or two seconds, in every stage, and frees what the system frees anyway."""
    end_as_python_does()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # whoever read it is gone; Python ends with what it has for that
        return
    os._exit(0)
