"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable

from headstart.base.private_names import end_as_python_does


class HeadstartError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do."""


def made_again(made_by: str) -> str:
    """What to do about a damaged file: DVC runs a stage whose output seems unchanged only where it is told to.

    Args:
        made_by: the command that made the file.
    """
    return f"run `{made_by.replace('dvc repro', 'dvc repro --force --single-item')}`"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A ready hint such as ``did you mean 'resnet18'?``, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, list(allowed), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def run_cleanly(main: Callable[[], None]) -> None:
    """Run a stage or a command and end the process. A HeadstartError ends it with its sentence and status 1, and so does
    what the operating system refuses and nobody expected (a full disk, a folder that may not be written); Ctrl-C with 130.
    """
    try:
        main()
    except SystemExit as end:  # how typer ends a command
        if end.code:
            raise
    except HeadstartError as error:
        print(f"headstart: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno is None:  # not the system's
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"headstart: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("headstart: interrupted; finished stages and finished epochs are kept", file=sys.stderr)
        raise SystemExit(130) from None
    leave()


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
