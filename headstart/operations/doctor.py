"""`headstart doctor`: whether this machine and this checkout are ready for a run, and what to do if not."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from headstart import __version__
from headstart.base.artifacts import DATA
from headstart.base.errors import HeadstartError, some
from headstart.base.identity import outdated
from headstart.base.params import Params
from headstart.base.paths import checkout, network_file, weights_file
from headstart.base.terminal import console, many
from headstart.base.threads import cores
from headstart.data.corrections import corrected
from headstart.data.fetch import check_classes
from headstart.data.picture import classes_of, is_multi_label
from headstart.data.sources import source_of
from headstart.operations.git_branch import RESULT, ask_git, commit_here
from headstart.tracking import store
from headstart.tracking.result import stages_of_the_result

LOCK = Path("requirements.lock")
ENOUGH_DISK = 5  # GB that a run on a few thousand pictures may need
OK, NOTE, WRONG = "ok", "note", "wrong"
COLOURS = {OK: "green", NOTE: "yellow", WRONG: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        about: what was checked.
        state: ``ok``; ``note`` if a run works but may surprise; ``wrong`` if it fails.
        sentence: the finding.
    """

    about: str
    state: str
    sentence: str


def examine() -> Iterator[Finding]:
    """Check each thing that a run depends on. Nothing is downloaded and no database is created."""
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "python": _python, "packages": _packages, "machine": _machine, "disk": _disk, "git": _git,
    }  # fmt: skip
    yield from (_finding(about, check) for about, check in checks.items())
    try:
        params = Params.load()
    except HeadstartError as error:
        yield Finding("params.yaml", WRONG, str(error))
        return
    yield Finding("params.yaml", OK, "every key and value is allowed")
    yield _finding("pictures", lambda: pictures(params))
    yield _finding("backbone", lambda: _backbone(params))
    yield _finding("result", _result)
    yield _finding("mlflow", _mlflow)
    yield _finding("dvc", _dvc)


def show() -> bool:
    """Print what was found, and say whether nothing is wrong."""
    terminal, well = console(), True
    for finding in examine():
        terminal.print(f"{finding.state:6}", style=COLOURS[finding.state], end="")
        terminal.print(f"{finding.about}: {finding.sentence}", soft_wrap=True)
        well &= finding.state != WRONG
    return well


def _finding(about: str, check: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return Finding(about, *check())
    except HeadstartError as error:
        return Finding(about, WRONG, str(error))
    except Exception as error:  # a package is broken or incomplete
        return Finding(about, WRONG, f"{type(error).__name__}: {error}; where a package is named, {_mended_by()}")


def _mended_by() -> str:
    if Path("Makefile").exists():
        return "run `make setup`"
    return f"run `pip install -r {LOCK}`" if LOCK.exists() else "install headstart again, with pip"


def _python() -> tuple[str, str]:
    if (other := other_python()) is not None:
        return WRONG, f"stages would run in {other}, and headstart is in {sys.prefix}; activate that environment"
    return OK, f"{platform.python_version()}, headstart {__version__}, in {sys.prefix}"


def other_python() -> str | None:
    """The environment of `python`, by which dvc.yaml runs the stages, where it is another than this one's; else None."""
    python = shutil.which("python")
    if python is None:
        return "no environment, since there is no command `python`"
    asked = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=False)
    prefix = asked.stdout.strip()
    return None if prefix and Path(prefix).resolve() == Path(sys.prefix).resolve() else prefix or python


def _packages() -> tuple[str, str]:
    """Whether the installed versions are those of the lock, or those that headstart asks for where there is none; of the
    requirements that apply to this machine."""
    from packaging.requirements import Requirement

    wanted, by = metadata.requires("headstart") or [], f"headstart {__version__}"
    if LOCK.exists():
        lines = LOCK.read_text(encoding="utf-8").splitlines()
        wanted = [line.split(" \\")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))]
        by = str(LOCK)
    differ = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            wish = str(requirement.specifier).removeprefix("==") or "any"
            differ.append(f"{requirement.name} ({version} instead of {wish})")
    if not differ:
        return OK, f"as {by} has them" if LOCK.exists() else f"as {by} asks for; there is no {LOCK}"
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    return WRONG, f"{', '.join(differ[:3])}{more} differ from {by}; {_mended_by()}"


def _machine() -> tuple[str, str]:
    import psutil

    from headstart.base.device import accelerator_name, multiplies_bf16

    memory = psutil.virtual_memory()
    accelerator = accelerator_name() or "no GPU that torch can use"
    rounded = "with" if multiplies_bf16() else "without"
    return OK, (
        f"{cores()} cores {rounded} bfloat16, {accelerator}, {memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB "
        "of memory free"
    )


def _disk() -> tuple[str, str]:
    free = shutil.disk_usage(checkout()).free / 1e9
    if free < ENOUGH_DISK:
        return NOTE, f"{free:.1f} GB free; `dvc gc --workspace` deletes results that are not in use"
    return OK, f"{free:.0f} GB free"


def _git() -> tuple[str, str]:
    if shutil.which("git") is None:
        raise HeadstartError("git is not installed, and DVC needs it")
    if commit_here() is None:
        raise HeadstartError("no commit here; `git init`, `git add -A` and `git commit` first")
    changed = (ask_git("status", "--porcelain", "--untracked-files=all") or "").splitlines()
    new = [line[3:] for line in changed if line.startswith("??")]
    if count := len(changed) - len(new):
        told = many(count, "changed file is", "changed files are")
        return NOTE, f"{told} not committed; `headstart retrain` needs a clean checkout"
    if missing := [name for name in RESULT if name in new]:
        return NOTE, f"{' and '.join(missing)} not in git yet; `git add {' '.join(missing)}` and a commit keep the result"
    at = f"at {ask_git('rev-parse', '--short', 'HEAD')}"
    if new:
        return OK, f"{at}; not in git: {some(new)}"
    return OK, f"{at}, nothing to commit"


def pictures(params: Params) -> tuple[str, str]:
    source = source_of(params.data)
    if source.needs_network:
        return NOTE, f"{params.data.source} is not on this machine; the first run gets what it needs from there"
    if source.needs_unpacking:
        return NOTE, f"{params.data.source} is unpacked by the first run"
    listed = source.listing(params.data).pictures
    if not listed:
        raise HeadstartError(f"data.source {params.data.source!r} holds no files in class folders")
    pictures = corrected(listed, params.data)
    classes = classes_of(pictures)
    if is_multi_label(listed):
        check_classes(pictures, params.data, several=True)
    elif len(classes) < 2:
        raise HeadstartError(f"data.source {params.data.source!r} has {len(classes)} classes; at least two are needed")
    return OK, f"{len(pictures)} in {len(classes)} classes from {params.data.source}"


def _backbone(params: Params) -> tuple[str, str]:
    from headstart.models.backbones import architecture
    from headstart.models.weight_sources import at_hand

    weights_file(params.weights)
    if network_file(params.backbone):
        return OK, f"{params.backbone}, your own"
    libraries = {network: architecture(network).library for network, _ in params.members}
    if params.weights == "none":
        return OK, f"{params.backbone} with random weights"
    if params.weights != "default":
        return NOTE, f"{params.backbone}; the run will look for its weights {params.weights}"
    if not all(at_hand(network, library, params.weights_mirror) for network, library in libraries.items()):
        return NOTE, f"{params.backbone}; its weights are not on this machine, so the first run downloads them"
    return OK, f"{params.backbone}, whose weights are at hand"


def _result() -> tuple[str, str]:
    if not DATA.fetch.code.exists():
        return OK, "none yet; `dvc repro` makes one"
    if sentence := outdated(DATA, stages_of_the_result()):
        return NOTE, f"{sentence}; `dvc repro` makes it again"
    return OK, "made by the code and libraries that are here"


def _mlflow() -> tuple[str, str]:
    uri = store.uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return OK, f"the first run creates {uri}"
    with store.opened() as client:
        client.search_experiments(max_results=1)
    return OK, f"{uri} answers"


def _dvc() -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-m", "dvc", "config", "--list"], cwd=checkout(), capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["no reason given"]
        raise HeadstartError(f"dvc does not work here: {reason[0].removeprefix('ERROR: ')}")
    remotes = re.findall(r"^remote\.(.+?)\.url=", done.stdout, re.MULTILINE)
    if not remotes:
        return NOTE, "no remote, so results are on this machine only; `dvc remote add -d NAME FOLDER` adds one"
    return OK, f"results can be pushed to {', '.join(remotes)}"
