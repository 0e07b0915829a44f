"""`headstart init`: a folder with a pipeline of its own, under git and DVC."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from headstart import __version__
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Data
from headstart.base.validation import explained
from headstart.base.yaml_file import set_values
from headstart.data.sources import source_of
from headstart.operations.doctor import other_python, pictures
from headstart.operations.git_branch import committer, run_git
from headstart.operations.project_files import PARAMS, installed, names_in

MADE_BY = "headstart-files:"  # in the message of a commit whose pipeline files are as headstart has them


def init(name: str, source: str | None = None) -> list[str]:
    """Make a project called ``name`` in the current folder, and return what to tell its user.

    Args:
        source: ``data.source`` as seen from the current folder; None: that of params.yaml.

    Raises:
        HeadstartError: there is no such source, git is not installed, or the folder can't be made here.
    """
    folder = _folder(name)
    value, found = (None, "") if source is None else _seen_from(source)
    before = folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        _fill(folder, value)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if before:
            folder.mkdir()
        raise
    shown = shlex.quote(name)
    lines = [f"{name} is ready{f'; pictures: {found}' if found else ''}. Next:"]
    if other_python() is not None:
        lines.append(f"  {activation()}")
    return [*lines, f"  cd {shown} && dvc repro"]


def activation() -> str:
    """The command that puts this environment's programs first."""
    scripts = Path(sys.prefix, "Scripts" if os.name == "nt" else "bin")
    return str(scripts / "activate") if os.name == "nt" else f"source {shlex.quote(str(scripts / 'activate'))}"


def _folder(name: str) -> Path:
    """The folder to make, which is not there or empty."""
    if name in ("", ".", "..") or name.startswith("-") or {"/", "\\"} & set(name):
        raise HeadstartError(
            f"{name!r} is not the name of a folder; go to where the project belongs and give its name alone"
        )
    if shutil.which("git") is None:
        raise HeadstartError("git is not installed, and DVC needs it")
    here = Path.cwd()
    for around in (here, *here.parents):
        for inner, kind in ((".git", "git repository"), (".dvc", "DVC project")):
            if (around / inner).exists():
                raise HeadstartError(f"{around} is a {kind}, and a project within one is not possible; go elsewhere")
    folder = here / name
    if folder.is_dir() and any(folder.iterdir()):
        raise HeadstartError(f"{folder} is there already and not empty; give the project another name")
    if folder.exists() and not folder.is_dir():
        raise HeadstartError(f"{folder} is a file; give the project another name")
    return folder


def _seen_from(source: str) -> tuple[str, str]:
    """``data.source`` for a project one folder below, and what is found there."""
    try:
        data = Data(source=source)
    except ValidationError as error:
        raise HeadstartError(explained(error.errors()[0], Data, "data.")) from None
    kind = source_of(data)
    _, found = pictures(Params(data=data))
    if kind.needs_network or source.startswith("~") or Path(source).is_absolute() or not kind.takes(f"./{source}"):
        return source, found  # a name, an address, or a path that means the same everywhere
    return Path("..", os.path.normpath(source)).as_posix(), found


def _fill(folder: Path, source: str | None) -> None:
    run_git("init", "--quiet", cwd=folder)
    dvc = subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"DVC_NO_ANALYTICS": "true"},
    )  # fmt: skip
    if dvc.returncode:
        raise HeadstartError(f"`dvc init` failed: {' '.join(dvc.stderr.split())[:300]}")
    place = installed()
    names = names_in(place)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(place / name, folder / name)
    if source is not None:
        set_values(folder / PARAMS, {"data.source": source})
    run_git("add", "--force", "--", *names, cwd=folder)
    message = f"A project of headstart {__version__}\n\n{MADE_BY} {__version__}\n"
    run_git(
        "commit", "--quiet", "--no-verify", "--no-gpg-sign", "-F", "-", stdin=message, cwd=folder, **committer("headstart")
    )
