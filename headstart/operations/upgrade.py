"""`headstart upgrade`: the pipeline files of a project, brought to those of the headstart that is installed.

What the project's user has changed in them is merged, as git merges: the files that headstart made are in the commit whose
message says MADE_BY. An upgrade makes the next such commit, and one that has it and the project as parents.
"""

from __future__ import annotations

import difflib
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from headstart import __version__
from headstart.base.errors import HeadstartError, some
from headstart.base.files import write_text
from headstart.base.params import Params
from headstart.base.paths import checkout, state_folder
from headstart.base.yaml_file import read_yaml
from headstart.operations.git_branch import ask_git, commit_here, committer, run_git
from headstart.operations.new_project import MADE_BY
from headstart.operations.params_upgrade import upgraded
from headstart.operations.project_files import PARAMS, USERS_OWN, installed, names_in


@dataclass(frozen=True)
class Change:
    """A file that an upgrade writes. ``before`` is None where it makes it, ``after`` where it removes it.

    Attributes:
        clashes: whether the user and headstart changed the same lines, which ``after`` then has one below the other.
    """

    name: str
    before: str | None
    after: str | None
    clashes: bool = False

    def diff(self) -> list[str]:
        old, new = (text.splitlines() if text else [] for text in (self.before, self.after))
        before, after = (self.name if text is not None else "/dev/null" for text in (self.before, self.after))
        return list(difflib.unified_diff(old, new, before, after, lineterm=""))


@dataclass
class Upgrade:
    """What is to be done.

    Attributes:
        notes: sentences about keys of params.yaml and about files that are left alone.
    """

    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        if not self.changes:
            return [f"this project's files are those of headstart {__version__}", *self.notes]
        return [line for change in self.changes for line in change.diff()] + self.notes

    def make(self) -> str:
        """Write and commit the changes; where some clash, they are left for the user to commit. What was done, in a
        sentence."""
        folder, names = checkout(), [change.name for change in self.changes]
        for change in self.changes:
            if change.after is None:
                (folder / change.name).unlink()
            else:
                write_text(folder / change.name, change.after)
        made = _as_installed()
        if clashing := [change.name for change in self.changes if change.clashes]:
            run_git("update-ref", "MERGE_HEAD", made)  # the user's commit then has it as a parent
            raise HeadstartError(
                f"you and headstart {__version__} have changed the same lines of {some(clashing)}; choose between those "
                f"that <<<<<<< and >>>>>>> mark, then `git add {' '.join(names)}` and `git commit`"
            )
        head = run_git("rev-parse", "HEAD")
        tree = _tree(names, folder, head)
        message = f"Pipeline files of headstart {__version__}\n"
        commit = run_git("commit-tree", tree, "-p", head, "-p", made, "-F", "-", stdin=message, **committer("headstart"))
        run_git("update-ref", "-m", "headstart upgrade", "HEAD", commit, head)
        run_git("reset", "--quiet", "--", *names)
        return f"{len(names)} files changed and committed as {commit[:10]}; `git revert -m 1 {commit[:10]}` takes it back"


def plan() -> Upgrade:
    """What an upgrade of the project in the current folder would do. Nothing is changed.

    Raises:
        HeadstartError: this is no project, or headstart's own checkout; or its files have changes that are not committed.
    """
    folder, place = checkout(), installed()
    if not ((folder / PARAMS).exists() and (folder / "dvc.yaml").exists()):
        raise HeadstartError(f"{folder} is no project: it has no {PARAMS} or no dvc.yaml; go to a project's folder")
    if folder == place.resolve():
        raise HeadstartError(f"{folder} is headstart's own checkout, which `git pull` upgrades")
    if commit_here() is None:
        raise HeadstartError(f"{folder} has no git commit, so an upgrade could not be taken back; commit it first")
    new, base = names_in(place), _base()
    made = (ask_git("ls-tree", "-r", "--name-only", "--full-tree", base) or "").splitlines() if base else []
    wanted = [name for name in dict.fromkeys([*new, *made]) if name not in USERS_OWN]
    _refuse_uncommitted([*wanted, PARAMS])
    found = Upgrade()
    if base is None:
        found.notes.append("no commit says which files headstart made, so what you changed in them is replaced")
    for name in wanted:
        _plan_file(found, name, place, base if name in made else None)
    read_yaml(folder / PARAMS)  # says what is wrong with it
    text = (folder / PARAMS).read_text(encoding="utf-8")
    params = upgraded(text, (place / PARAMS).read_text(encoding="utf-8"))
    if params.added or params.gone:
        found.changes.append(Change(PARAMS, text, params.text))
    for keys, what in (
        (params.added, "new in params.yaml"),
        (params.gone, "no longer in params.yaml"),
        (params.unwritten, "new, and at their defaults until you write them into params.yaml"),
    ):
        if keys:
            found.notes.append(f"{what}: {', '.join(keys)}")
    return found


def check_params() -> None:
    """
    Raises:
        HeadstartError: a value in params.yaml is not allowed any more.
    """
    Params.load(checkout() / PARAMS)


def _base() -> str | None:
    """The last commit whose pipeline files are as headstart made them."""
    return ask_git("log", "-1", "--topo-order", "--format=%H", f"--grep=^{MADE_BY}")


def _refuse_uncommitted(names: list[str]) -> None:
    status = run_git("status", "--porcelain", "--untracked-files=all", "--", *names)
    if status:
        changed = sorted(line[2:].strip() for line in status.splitlines())
        raise HeadstartError(f"{some(changed)}: changed and not committed; commit or undo that first")


def _plan_file(found: Upgrade, name: str, place: Path, base: str | None) -> None:
    file, new = checkout() / name, place / name
    yours = file.read_text(encoding="utf-8") if file.exists() else None
    theirs = new.read_text(encoding="utf-8") if new.exists() else None
    before = run_git("cat-file", "blob", f"{base}:{name}") + "\n" if base else None
    if yours == theirs:
        return
    if theirs is None and yours != before:
        found.notes.append(f"{name} is no longer a file of headstart's; you changed it, so it stays")
    elif theirs is None or yours is None or before is None or yours == before:
        found.changes.append(Change(name, yours, theirs))
    else:
        merged, clashes = _merged(yours, before, theirs)
        if merged != yours:
            found.changes.append(Change(name, yours, merged, clashes))


def _merged(yours: str, before: str, theirs: str) -> tuple[str, bool]:
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("yours", "before", "theirs")]
        for file, text in zip(files, (yours, before, theirs), strict=True):
            file.write_text(text, encoding="utf-8", newline="\n")
        labels = ("yours", "before", f"headstart {__version__}")
        options = [option for label in labels for option in ("-L", label)]
        done = subprocess.run(
            ["git", "merge-file", "--stdout", "--quiet", *options, *map(str, files)], capture_output=True, check=False
        )
    if done.returncode > 127:
        raise HeadstartError(f"git merge-file failed: {' '.join(done.stderr.decode(errors='replace').split())[:200]}")
    return done.stdout.decode(), done.returncode > 0


def _as_installed() -> str:
    """A commit of the files as headstart has them, after the last such commit."""
    place, base = installed(), _base()
    tree = _tree([name for name in names_in(place) if name not in USERS_OWN], place)
    parents = ["-p", base] if base else []
    message = f"As headstart {__version__} has them\n\n{MADE_BY} {__version__}\n"
    return run_git("commit-tree", tree, *parents, "-F", "-", stdin=message, **committer("headstart"))


def _tree(names: list[str], folder: Path, start: str | None = None) -> str:
    """A tree of git's with ``names`` as they are in ``folder``, and whatever else ``start`` has. The user's index is left
    alone."""
    index = state_folder("upgrade") / "index"
    index.unlink(missing_ok=True)
    own = {"GIT_INDEX_FILE": str(index)}
    elsewhere: list[str] = []
    if start:
        run_git("read-tree", start, **own)
    else:
        elsewhere = [f"--git-dir={checkout() / run_git('rev-parse', '--git-dir')}", f"--work-tree={folder}"]
    run_git(*elsewhere, "update-index", "--add", "--remove", "--", *names, cwd=folder, **own)
    tree = run_git("write-tree", **own)
    index.unlink()
    return tree
