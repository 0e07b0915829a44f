"""The git branch that a retraining is committed on.

Commits are made by git's plumbing in an index of their own: no hook and no editor has a part in it, nothing that the user
has staged goes along, and what a killed one leaves behind stands in nobody's way.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from headstart.base.errors import HeadstartError
from headstart.base.paths import checkout, state_folder

RESULT = ("dvc.lock", "data/evaluate/metrics.json")  # what of a result is in git


class Branch:
    """The branch that is checked out, or another by name; with the latter goes the state that is checked out, so that the
    lock stands beside the code and parameters that it belongs to."""

    def __init__(self, name: str | None) -> None:
        """
        Raises:
            HeadstartError: this is no git checkout with a commit in it, the name is none for a branch, no branch is checked
                out and none is named, or tracked files other than RESULT have uncommitted changes.
        """
        try:
            self.head = _git("rev-parse", "--verify", "HEAD^{commit}")
        except HeadstartError:
            raise HeadstartError(
                f"{checkout()} has no git commit; `git init`, `git add -A` and `git commit` first"
            ) from None
        self.checked_out = asked("symbolic-ref", "--quiet", "--short", "HEAD")
        if name is not None and not asked("check-ref-format", "--branch", name):
            raise HeadstartError(f"retrain.branch {name!r} is not a name that git takes for a branch")
        if name is None and self.checked_out is None:
            raise HeadstartError("git has no branch checked out; check one out, or name one as retrain.branch")
        self.name = str(name or self.checked_out)
        self.remote = asked("config", f"branch.{self.name}.remote") or "origin"
        self._remove_what_a_killed_git_left()
        if changed := _git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{f}" for f in RESULT)):
            files = ", ".join(sorted({line[2:].strip() for line in changed.splitlines()}))
            raise HeadstartError(f"{files} has changes that are not committed; commit or stash them first")

    @property
    def tip(self) -> str | None:
        """The branch's last commit; the remote's, where the branch is only there."""
        for place in ("heads", f"remotes/{self.remote}"):
            if found := asked("rev-parse", "--quiet", "--verify", f"refs/{place}/{self.name}^{{commit}}"):
                return found
        return None

    def take_up(self) -> None:
        """Put the branch's result into the folder where that still has the checked-out commit's, or a dvc.lock that is cut
        short: DVC writes it in place."""
        for name in RESULT:
            file, here = checkout() / name, _digest(name)
            cut_short = name == "dvc.lock" and here is not None and not _is_whole(file)
            if cut_short or here == asked("rev-parse", "--quiet", "--verify", f"{self.head}:./{name}"):
                kept = asked("rev-parse", "--quiet", "--verify", f"{self.tip or self.head}:./{name}")
                if kept and kept != here:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(subprocess.check_output(["git", "cat-file", "blob", kept], cwd=checkout()))
                elif cut_short and not kept:
                    file.unlink()

    def is_current(self) -> bool:
        """Whether the result in the folder is the one that is committed."""
        tip = self.tip
        return tip is not None and all(
            _digest(name) == asked("rev-parse", "--quiet", "--verify", f"{tip}:./{name}") for name in RESULT
        )

    def commit(self, message: str) -> str | None:
        """Commit the result, unless the branch has it: the commit, or None."""
        made = None
        with self._writing():
            if not self.is_current():
                made = self._commit(message)
            if self.name == self.checked_out:  # its index still has what was there before
                _git("reset", "--quiet", "--", *self._files())
        return made

    def _commit(self, message: str) -> str:
        index = state_folder("retrain") / "index"
        for left in (index, index.with_suffix(".lock")):
            left.unlink(missing_ok=True)
        own = {"GIT_INDEX_FILE": str(index)}
        tip = self.tip
        # Somebody may have committed to the branch that is checked out since the round began.
        _git("read-tree", tip if tip and self.name == self.checked_out else self.head, **own)
        _git("update-index", "--add", "--", *self._files(), **own)
        tree = _git("write-tree", **own)
        parents = [tip] if tip else [self.head]
        if tip and asked("merge-base", self.head, tip) != self.head:
            parents.append(self.head)
        made = _git(
            "commit-tree", tree, *(part for p in parents for part in ("-p", p)), "-F", "-", said=message, **_identity()
        )
        here = asked("rev-parse", "--quiet", "--verify", f"refs/heads/{self.name}") or ""
        _git("update-ref", "-m", "headstart retrain", f"refs/heads/{self.name}", made, here)
        index.unlink()
        return made

    def fetch(self) -> None:
        """Take over what another checkout has pushed to a branch that is not checked out, where this one only lags."""
        if self.name != self.checked_out:
            with suppress(HeadstartError):  # a remote that has no such branch, or does not answer: the push will tell
                _git("fetch", "-q", self.remote, f"refs/heads/{self.name}:refs/heads/{self.name}", GIT_TERMINAL_PROMPT="0")

    def push(self) -> None:
        """Push the branch, where there is one here and not at the remote alone.

        Raises:
            HeadstartError: the remote does not take it.
        """
        if not asked("rev-parse", "--quiet", "--verify", f"refs/heads/{self.name}"):
            return
        try:
            _git("push", "--quiet", self.remote, f"refs/heads/{self.name}:refs/heads/{self.name}", GIT_TERMINAL_PROMPT="0")
        except HeadstartError as error:
            behind = "`git pull --rebase`" if self.name == self.checked_out else f"`git branch -D {self.name}`"
            raise HeadstartError(
                f"{error}; the commit is on {self.name} here. If the remote is ahead, {behind} and retrain again"
            ) from None

    @staticmethod
    def _files() -> list[str]:
        return [name for name in RESULT if (checkout() / name).exists()]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A git that is killed leaves its locks; a note says that they were this command's and no one else's."""
        note = state_folder("retrain") / "git-at-work"
        note.touch()
        try:
            yield
        finally:
            note.unlink()

    def _remove_what_a_killed_git_left(self) -> None:
        note = state_folder("retrain") / "git-at-work"
        if note.exists():
            for name in ("index", "HEAD", f"refs/heads/{self.name}"):
                (checkout() / _git("rev-parse", "--git-path", f"{name}.lock")).unlink(missing_ok=True)
            note.unlink()


def _is_whole(lock: Path) -> bool:
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values()
        entries = [entry for stage in stages for kind in ("deps", "outs") for entry in stage.get(kind, [])]
        return all(stage["cmd"] for stage in stages) and all(
            entry["path"] and None not in entry.values() for entry in entries
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False


def _digest(name: str) -> str | None:
    """What git calls the content of a file here; None where there is none."""
    return _git("hash-object", "--", name) if (checkout() / name).exists() else None


def _identity() -> dict[str, str]:
    """Who commits, where git has not been told: under cron and in CI it often has not."""
    if asked("config", "user.email") or "GIT_COMMITTER_EMAIL" in os.environ:
        return {}
    known = {"NAME": "headstart retrain", "EMAIL": "headstart@localhost"}
    return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in known.items()}


def asked(*arguments: str) -> str | None:
    """What git answers; None where it says no."""
    try:
        return _git(*arguments) or None
    except HeadstartError:
        return None


def _git(*arguments: str, said: str = "", **variables: str) -> str:
    """
    Raises:
        HeadstartError: git failed, or is not there.
    """
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout(), env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"} | variables, input=said,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise HeadstartError("git is not installed") from None
    if done.returncode != 0:
        raise HeadstartError(f"git {arguments[0]} failed: {' '.join(done.stderr.split())[:300] or done.returncode}")
    return done.stdout.rstrip("\n")
