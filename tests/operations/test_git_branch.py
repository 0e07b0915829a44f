"""Commits of a result: by real git, in a checkout of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from headstart.base.errors import HeadstartError
from headstart.operations.git_branch import RESULT, Branch

LOCK = (
    "schema: '2.0'\nstages:\n  fetch:\n    cmd: python stages/fetch.py\n    outs:\n    - path: data/fetch\n      md5: {}\n"
)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def result(number: int) -> None:
    Path("data/evaluate").mkdir(parents=True, exist_ok=True)
    for name in ("metrics", "summary"):
        Path(f"data/evaluate/{name}.json").write_text(f"{number}\n")
    Path("dvc.lock").write_text(LOCK.format(number))


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without a result, with git knowing nobody, as under cron."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("DVC_ROOT", "GIT_COMMITTER_EMAIL", "GIT_AUTHOR_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q", "-b", "main")
    Path(".gitignore").write_text(".headstart/\n")
    Path("params.yaml").write_text("seed: 0\n")
    git("add", "-A")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "begin")
    return folder


def test_a_result_is_committed_once_and_leaves_a_clean_checkout() -> None:
    result(1)
    branch = Branch(None)
    assert not branch.is_current()
    made = branch.commit("Retrained\n\nWhy.\n")
    assert made == git("rev-parse", "main")
    assert git("status", "--porcelain") == ""
    assert git("log", "-1", "--format=%B%an") == "Retrained\n\nWhy.\nheadstart retrain"
    assert Branch(None).is_current()
    assert Branch(None).commit("again") is None
    assert git("rev-list", "--count", "main") == "2"


def test_what_the_user_has_staged_or_not_added_stays_out_of_it() -> None:
    result(1)
    branch = Branch(None)
    Path("notes.txt").write_text("mine\n")
    git("add", "notes.txt")
    Path("more.txt").write_text("mine too\n")
    branch.commit("Retrained")
    assert set(git("show", "--name-only", "--format=", "HEAD").split()) == set(RESULT)
    assert git("status", "--porcelain").splitlines() == ["A  notes.txt", "?? more.txt"]


def test_what_was_committed_while_the_round_ran_stays() -> None:
    branch = Branch(None)
    Path("README.md").write_text("new\n")
    git("add", "README.md")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "meanwhile")
    result(1)
    branch.commit("Retrained")
    assert git("show", "--name-only", "--format=", "main").split() == sorted(RESULT)
    assert git("show", "main:README.md") == "new"
    assert git("status", "--porcelain") == ""


def test_no_hook_has_a_part_in_it(checkout: Path) -> None:
    hook = checkout / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    result(1)
    assert Branch(None).commit("Retrained")


def test_changes_that_are_not_committed_are_named_and_refused() -> None:
    Path("params.yaml").write_text("seed: 1\n")
    with pytest.raises(HeadstartError, match=r"^params.yaml has uncommitted changes; commit or"):
        Branch(None)


def test_a_result_that_a_killed_round_left_is_no_such_change() -> None:
    result(1)
    Branch(None).commit("Retrained")
    result(2)
    assert not Branch(None).is_current()


def test_without_a_branch_one_has_to_be_named() -> None:
    git("checkout", "-q", "--detach")
    with pytest.raises(HeadstartError, match="no branch checked out; check one out, or name one as"):
        Branch(None)
    assert Branch("retrained").name == "retrained"
    with pytest.raises(HeadstartError, match="'a b' is not a name that git accepts for a branch"):
        Branch("a b")


def test_a_folder_without_git_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HeadstartError, match="has no git commit; `git init`"):
        Branch(None)


def test_another_branch_carries_the_project_of_the_one_checked_out() -> None:
    result(1)
    Branch("retrained").commit("Retrained")
    assert git("rev-parse", "main") == git("rev-parse", "retrained~1")
    assert git("symbolic-ref", "--short", "HEAD") == "main"
    Path("params.yaml").write_text("seed: 1\n")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "another seed")
    result(2)
    Branch("retrained").commit("Retrained")
    assert git("show", "retrained:params.yaml") == "seed: 1"
    assert git("show", "retrained:data/evaluate/metrics.json") == "2"
    assert git("merge-base", "main", "retrained") == git("rev-parse", "main")


def test_another_branch_goes_on_from_its_own_result() -> None:
    result(1)
    Branch("retrained").commit("Retrained")
    Path("dvc.lock").unlink()
    Path("data/evaluate/metrics.json").unlink()
    branch = Branch("retrained")
    branch.restore_result()
    assert branch.is_current()
    result(2)
    branch.restore_result()  # a result that is under way is left alone
    assert Path("dvc.lock").read_text() == LOCK.format(2)


@pytest.mark.parametrize("left", [0, 3, 20, 39, 75, 84, 106])
def test_a_lock_that_was_cut_short_is_taken_from_the_branch(left: int) -> None:
    result(1)
    Branch(None).commit("Retrained")
    whole = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(whole[:left])
    Branch(None).restore_result()
    assert Path("dvc.lock").read_text() == whole


def test_a_lock_that_was_cut_short_before_any_was_committed_is_removed() -> None:
    Path("dvc.lock").write_text("schema: '2.0'\nsta")
    Branch(None).restore_result()
    assert not Path("dvc.lock").exists()


def test_locks_of_a_git_that_was_killed_are_removed_and_those_of_others_are_not(checkout: Path) -> None:
    locks = [checkout / ".git" / f"{name}.lock" for name in ("index", "HEAD", "refs/heads/main")]
    for lock in locks:
        lock.touch()
    note = checkout / ".headstart/retrain/git-at-work"
    note.parent.mkdir(parents=True)
    note.touch()
    result(1)
    assert Branch(None).commit("Retrained")
    assert not any(lock.exists() for lock in locks)
    assert not note.exists()
    locks[0].touch()
    result(2)
    with pytest.raises(HeadstartError, match=r"git reset failed: .*index.lock"):
        Branch(None).commit("Retrained")
    assert locks[0].exists()


def test_a_commit_is_pushed_and_a_remote_that_is_ahead_is_said(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    git("remote", "add", "origin", str(tmp_path / "remote.git"))
    result(1)
    branch = Branch(None)
    branch.commit("Retrained")
    branch.push()
    assert git("ls-remote", "origin", "refs/heads/main").split()[0] == git("rev-parse", "main")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--amend", "-m", "another history")
    with pytest.raises(HeadstartError, match="If the remote is ahead, `git pull --rebase` and retrain again"):
        branch.push()


def test_a_branch_that_is_only_at_the_remote_is_carried_on(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    git("remote", "add", "origin", str(tmp_path / "remote.git"))
    result(1)
    branch = Branch("retrained")
    branch.commit("Retrained")
    branch.push()
    git("fetch", "-q", "origin")
    git("branch", "-qD", "retrained")
    fresh = Branch("retrained")
    assert fresh.is_current()
    result(2)
    fresh.commit("Retrained")
    fresh.push()
    assert git("ls-remote", "origin", "refs/heads/retrained").split()[0] == git("rev-parse", "retrained")


def test_a_named_branch_that_lags_behind_the_remote_catches_up(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    git("remote", "add", "origin", str(tmp_path / "remote.git"))
    result(1)
    branch = Branch("retrained")
    branch.fetch()  # the remote has nothing yet
    branch.commit("Retrained")
    branch.push()
    behind = git("rev-parse", "retrained")
    result(2)
    branch.commit("Retrained elsewhere")
    branch.push()
    git("update-ref", "refs/heads/retrained", behind)
    result(3)
    branch.fetch()
    branch.commit("Retrained")
    branch.push()
    assert git("rev-list", "--count", f"{behind}..retrained") == "2"
