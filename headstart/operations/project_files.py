"""The files that a project starts with: those of the checkout that headstart runs from, which its wheel carries along."""

from __future__ import annotations

from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.identity import PACKAGE

PARAMS = "params.yaml"
# The same patterns stand in pyproject.toml, for the wheel.
PATTERNS = (
    "dvc.yaml", PARAMS, "stages/*.py", "studies/dvc.yaml", "data/.gitignore", ".gitignore", ".dvcignore", ".dvc/config",
    ".dvc/.gitignore", "docs/*.md",
)  # fmt: skip
USERS_OWN = (PARAMS, ".dvc/config", ".dvc/.gitignore")  # of those, what `headstart upgrade` doesn't replace


def installed() -> Path:
    """The folder that the files of new projects are in.

    Raises:
        HeadstartError: there is none, as where only the library was copied.
    """
    for folder in (PACKAGE.parent / "headstart_project", PACKAGE.parent):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise HeadstartError(f"{PACKAGE} came without the files of a project; install headstart with pip")


def names_in(folder: Path) -> list[str]:
    """The project's files in ``folder``, relative to it."""
    return sorted(file.relative_to(folder).as_posix() for pattern in PATTERNS for file in folder.glob(pattern))
