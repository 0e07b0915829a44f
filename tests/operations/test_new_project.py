"""`headstart init`, in this process: what it makes, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.data.sources import locate
from headstart.operations import doctor
from headstart.operations.new_project import init
from headstart.operations.project_files import PARAMS, names_in
from tests.inference.test_predictor import plain, png
from tests.test_house import PROJECT


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def put_pictures(folder: Path) -> Path:
    for label in ("red", "green"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.png").write_bytes(png(plain(label)))
    return folder


def test_a_project_has_the_repository_s_files_git_dvc_and_a_commit(here: Path) -> None:
    lines = init("birds")
    assert lines[-1].strip() == "cd birds && dvc repro"
    assert names_in(here / "birds") == names_in(PROJECT)
    for name in names_in(PROJECT):
        assert (here / "birds" / name).read_bytes() == (PROJECT / name).read_bytes(), name
    assert git(here / "birds", "status", "--porcelain") == ""
    assert git(here / "birds", "log", "--format=%an %s") == "headstart A project of headstart 0.1.0"
    asked = [sys.executable, "-m", "dvc", "status", "--quiet"]  # 1: there is something to do
    assert subprocess.run(asked, cwd=here / "birds", capture_output=True).returncode == 1


@pytest.mark.usefixtures("without_dvc")
@pytest.mark.parametrize("given", ["my pictures/birds", "./my pictures/../my pictures/birds", "{here}/my pictures/birds"])
def test_a_source_seen_from_here_is_the_same_one_seen_from_the_project(
    here: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    put_pictures(here / "my pictures/birds")
    lines = init("birds", given.format(here=here))
    assert "2 in 2 classes" in lines[0]
    monkeypatch.chdir(here / "birds")
    assert (
        locate(Params.load().data).pictures
        == locate(Params().data.model_copy(update={"source": str(here / "my pictures/birds")})).pictures
    )
    assert comments((here / "birds" / PARAMS).read_text()) == comments((PROJECT / PARAMS).read_text())


def comments(text: str) -> list[str]:
    return [line.partition("# ")[2] for line in text.splitlines()]


@pytest.mark.usefixtures("without_dvc")
@pytest.mark.parametrize("name", ["emoji", "hymenoptera", "torchvision:Flowers102", "s3://bucket/birds"])
def test_a_name_or_an_address_stays_as_it_is_also_beside_a_folder_called_so(here: Path, name: str) -> None:
    (here / "emoji").mkdir()
    init("project", name)
    assert Params.load(here / "project" / PARAMS).data.source == name


def occupied(here: Path) -> None:
    put_pictures(here / "birds")


def a_file(here: Path) -> None:
    (here / "birds").write_text("")


def in_git(here: Path) -> None:
    git(here, "init", "-q")


def in_dvc(here: Path) -> None:
    (here / ".dvc").mkdir()


@pytest.mark.parametrize(
    ("name", "source", "prepare", "says"),
    [
        ("birds", None, occupied, "is there already and not empty"),
        ("birds", None, a_file, "is a file"),
        ("birds", None, in_git, "is a git repository"),
        ("birds", None, in_dvc, "is a DVC project"),
        ("some/birds", None, None, "is not the name of a folder"),
        ("..", None, None, "is not the name of a folder"),
        ("", None, None, "is not the name of a folder"),
        ("birds", "nowhere", None, "data.source 'nowhere' is unknown"),
        ("birds", "emojy", None, "did you mean 'emoji'"),
        ("birds", "", None, "data.source"),
        ("birds", "empty", lambda here: (here / "empty").mkdir(), "no files in class folders"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_and_leaves_nothing(
    here: Path, name: str, source: str | None, prepare: Callable[[Path], object] | None, says: str
) -> None:
    if prepare:
        prepare(here)
    before = sorted(here.rglob("*"))
    with pytest.raises(HeadstartError, match=says):
        init(name, source)
    assert sorted(here.rglob("*")) == before


def test_without_git_it_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(HeadstartError, match="git is not installed"):
        init("birds")


def test_what_fails_on_the_way_leaves_an_empty_folder_as_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "birds").mkdir()
    monkeypatch.setattr(sys, "executable", sys.executable + "-gone")
    with pytest.raises(OSError, match="gone"):
        init("birds")
    assert list((here / "birds").iterdir()) == []


@pytest.mark.usefixtures("without_dvc")
def test_a_python_that_is_another_environment_s_is_told_with_what_to_do(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.other_python() is None
    other = here / "bin/python"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\necho /other\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:/usr/bin:/bin")
    assert "activate" in init("birds")[1]
    finding = next(one for one in doctor.examine() if one.about == "python")
    assert finding.state == doctor.WRONG
    assert finding.sentence.startswith("stages would run in /other")
