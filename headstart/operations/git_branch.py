"""The git branch that a retraining is committed on.

Commits are made with git's plumbing commands and an index of their own: no hook and no editor runs, nothing that the user
has staged is committed, and a killed commit leaves nothing that blocks the next one.
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
from headstart.base.safe_text import shortened

RESULT = ("dvc.lock", "data/evaluate/metrics.json", "data/evaluate/summary.json")  # the files of a result that are in git


class Branch:
    """The branch that is checked out, or another by name.

    A commit on another branch is based on the commit that is checked out, so that dvc.lock stays with the code and
    parameters that it belongs to.
    """

    def __init__(self, name: str | None) -> None:
        """
        Raises:
            HeadstartError: this is not a git checkout with a commit, the name is not valid for a branch, no branch is
                checked out and none is named, or tracked files other than RESULT have uncommitted changes.
        """
        commit = commit_here()
        if commit is None:
            raise HeadstartError(f"{checkout()} has no git commit; `git init`, `git add -A` and `git commit` first")
        self.head = commit
        self.checked_out = ask_git("symbolic-ref", "--quiet", "--short", "HEAD")
        if name is not None and not ask_git("check-ref-format", "--branch", name):
            raise HeadstartError(f"retrain.branch {name!r} is not a name that git accepts for a branch")
        if name is None and self.checked_out is None:
            raise HeadstartError("git has no branch checked out; check one out, or name one as retrain.branch")
        self.name = str(name or self.checked_out)
        self.remote = ask_git("config", f"branch.{self.name}.remote") or "origin"
        self._remove_stale_locks()
        if changed := run_git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{f}" for f in RESULT)):
            files = ", ".join(sorted({line[2:].strip() for line in changed.splitlines()}))
            raise HeadstartError(f"{files} has uncommitted changes; commit or stash them first")

    @property
    def tip(self) -> str | None:
        """The branch's last commit; the remote's if the branch exists only there."""
        for namespace in ("heads", f"remotes/{self.remote}"):
            if commit := ask_git("rev-parse", "--quiet", "--verify", f"refs/{namespace}/{self.name}^{{commit}}"):
                return commit
        return None

    def restore_result(self) -> None:
        """Write the branch's result into the folder, unless the folder has a newer one.

        It has none if its files are those of the commit that is checked out, or if its dvc.lock is truncated: DVC writes
        that file in place.
        """
        for name in RESULT:
            file, here = checkout() / name, _blob(name)
            truncated = name == "dvc.lock" and here is not None and not _is_whole(file)
            if truncated or here == ask_git("rev-parse", "--quiet", "--verify", f"{self.head}:./{name}"):
                committed = ask_git("rev-parse", "--quiet", "--verify", f"{self.tip or self.head}:./{name}")
                if committed and committed != here:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(subprocess.check_output(["git", "cat-file", "blob", committed], cwd=checkout()))
                elif truncated and not committed:
                    file.unlink()

    def is_current(self) -> bool:
        """Whether the result in the folder is the one that is committed."""
        tip = self.tip
        return tip is not None and all(
            _blob(name) == ask_git("rev-parse", "--quiet", "--verify", f"{tip}:./{name}") for name in RESULT
        )

    def commit(self, message: str) -> str | None:
        """Commit the result and return the commit; None if the branch has this result already."""
        commit = None
        with self._writing():
            if not self.is_current():
                commit = self._commit(message)
            if self.name == self.checked_out:  # its index still holds the files of the commit before
                run_git("reset", "--quiet", "--", *self._files())
        return commit

    def _commit(self, message: str) -> str:
        index = state_folder("retrain") / "index"
        for stale in (index, index.with_suffix(".lock")):
            stale.unlink(missing_ok=True)
        variables = {"GIT_INDEX_FILE": str(index)}
        tip = self.tip
        # Not self.head for the branch that is checked out: somebody may have committed to it since the round began.
        run_git("read-tree", tip if tip and self.name == self.checked_out else self.head, **variables)
        run_git("update-index", "--add", "--", *self._files(), **variables)
        tree = run_git("write-tree", **variables)
        parents = [tip] if tip else [self.head]
        if tip and ask_git("merge-base", self.head, tip) != self.head:
            parents.append(self.head)
        options = [option for parent in parents for option in ("-p", parent)]
        commit = run_git("commit-tree", tree, *options, "-F", "-", stdin=message, **committer())
        before = ask_git("rev-parse", "--quiet", "--verify", f"refs/heads/{self.name}") or ""
        run_git("update-ref", "-m", "headstart retrain", f"refs/heads/{self.name}", commit, before)
        index.unlink()
        return commit

    def fetch(self) -> None:
        """Fast-forward a branch that is not checked out to what another checkout has pushed."""
        if self.name != self.checked_out:
            with suppress(HeadstartError):  # no such branch at the remote, or no answer: the push will say so
                run_git(
                    "fetch", "-q", self.remote, f"refs/heads/{self.name}:refs/heads/{self.name}", GIT_TERMINAL_PROMPT="0"
                )

    def push(self) -> None:
        """Push the branch if it exists here.

        Raises:
            HeadstartError: the remote rejects it or does not answer.
        """
        if not ask_git("rev-parse", "--quiet", "--verify", f"refs/heads/{self.name}"):
            return
        try:
            run_git(
                "push", "--quiet", self.remote, f"refs/heads/{self.name}:refs/heads/{self.name}", GIT_TERMINAL_PROMPT="0"
            )
        except HeadstartError as error:
            remedy = "`git pull --rebase`" if self.name == self.checked_out else f"`git branch -D {self.name}`"
            raise HeadstartError(
                f"{error}; the commit is on {self.name} here. If the remote is ahead, {remedy} and retrain again"
            ) from None

    @staticmethod
    def _files() -> list[str]:
        return [name for name in RESULT if (checkout() / name).exists()]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep a note while git writes: if git is killed, the note shows that the locks it leaves are this command's."""
        note = state_folder("retrain") / "git-at-work"
        note.touch()
        try:
            yield
        finally:
            note.unlink()

    def _remove_stale_locks(self) -> None:
        note = state_folder("retrain") / "git-at-work"
        if note.exists():
            for name in ("index", "HEAD", f"refs/heads/{self.name}"):
                (checkout() / run_git("rev-parse", "--git-path", f"{name}.lock")).unlink(missing_ok=True)
            note.unlink()


def commit_here() -> str | None:
    """The commit that is checked out; None where there is none.

    Raises:
        HeadstartError: git does not want to look, as where the folder is somebody else's: why, in its own words.
    """
    try:
        run_git("rev-parse", "--git-dir", LC_ALL="C")
    except HeadstartError as error:
        if "not a git repository" not in str(error):
            raise
    return ask_git("rev-parse", "--verify", "HEAD^{commit}")


def _is_whole(lock: Path) -> bool:
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values()
        entries = [entry for stage in stages for kind in ("deps", "outs") for entry in stage.get(kind, [])]
        return all(stage["cmd"] for stage in stages) and all(
            entry["path"] and None not in entry.values() for entry in entries
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False


def _blob(name: str) -> str | None:
    """Git's digest of a file here; None if it does not exist."""
    return run_git("hash-object", "--", name) if (checkout() / name).exists() else None


def committer(name: str = "headstart retrain") -> dict[str, str]:
    """Environment variables that name a committer, unless git is configured with one: under cron and in CI it often is
    not."""
    if ask_git("config", "user.email") or "GIT_COMMITTER_EMAIL" in os.environ:
        return {}
    fields = {"NAME": name, "EMAIL": "headstart@localhost"}
    return {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER") for field, value in fields.items()}


def ask_git(*arguments: str) -> str | None:
    """What git prints; None if it prints nothing or fails."""
    try:
        return run_git(*arguments) or None
    except HeadstartError:
        return None


def run_git(*arguments: str, stdin: str = "", cwd: str | Path | None = None, **variables: str) -> str:
    """What git prints, run in ``cwd``, by default the checkout, with ``variables`` added to the environment.

    Raises:
        HeadstartError: git failed or is not installed.
    """
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd or checkout(), env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"} | variables,
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise HeadstartError("git is not installed") from None
    if done.returncode != 0:
        raise HeadstartError(f"git {arguments[0]} failed: {shortened(done.stderr, 300) or done.returncode}")
    return done.stdout.rstrip("\n")
