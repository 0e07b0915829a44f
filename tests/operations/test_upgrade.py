"""`headstart upgrade`: from a project that another version made, with what its user has changed since."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import cli
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.yaml_file import read_yaml
from headstart.operations import new_project, upgrade
from headstart.operations.params_upgrade import _blocks, upgraded
from headstart.operations.project_files import PARAMS, USERS_OWN, names_in
from tests.operations.test_new_project import git
from tests.test_house import PROJECT

SHIPPED = (PROJECT / PARAMS).read_text(encoding="utf-8")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text, old
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def older(folder: Path) -> Path:
    """The files of a version that had a stage more and another less, and other keys."""
    for name in names_in(PROJECT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, folder / name)
    (folder / "stages/guess.py").write_text('"""Guess."""\n')
    (folder / "stages/shortcuts.py").unlink()
    edit(folder / "dvc.yaml", "  fetch:        # what to learn from\n", "  fetch:        # where from\n")
    edit(folder / ".gitignore", "/site/\n", "")
    edit(folder / PARAMS, "  label_separator:", "  luck: 7     # is needed\n  label_separator:")
    edit(folder / PARAMS, "  repeats: 1 ", "  # repeats: 1 ")
    return folder


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "mine")


@pytest.fixture
def project(here: Path, without_dvc: None, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    """A project of the older version, and the current folder."""
    with monkeypatch.context() as patch:
        place = older(here / "older")
        patch.setattr(new_project, "installed", lambda: place)
        new_project.init("birds", "emoji")
    monkeypatch.chdir(here / "birds")
    return here / "birds"


def test_it_gets_the_files_of_the_installed_version_and_keeps_the_users_settings(project: Path) -> None:
    edit(project / PARAMS, "seed: 0", "seed: 3   # my lucky one")
    commit(project)
    found = upgrade.plan()
    shown = "\n".join(found.lines())
    assert "-  fetch:        # where from" in shown
    assert "+  fetch:        # what to learn from" in shown
    assert "no longer in params.yaml: data.luck: 7" in shown
    assert "new in params.yaml: finetune.repeats" in shown
    assert git(project, "status", "--porcelain") == ""  # nothing is done yet

    said = found.make()
    assert "committed as" in said
    for name in set(names_in(PROJECT)) - {*USERS_OWN}:
        assert (project / name).read_bytes() == (PROJECT / name).read_bytes(), name
    assert not (project / "stages/guess.py").exists()
    text = (project / PARAMS).read_text()
    assert "seed: 3   # my lucky one" in text
    assert next(line for line in SHIPPED.splitlines() if line.startswith("  repeats:")) in text.splitlines()
    assert Params.load(project / PARAMS).seed == 3
    assert git(project, "status", "--porcelain") == ""
    assert upgrade.plan().changes == []  # and again there is nothing to do


def test_what_the_user_changed_in_pipeline_files_is_merged_now_and_the_next_time(project: Path) -> None:
    with (project / ".gitignore").open("a") as file:
        file.write("/pictures/\n")
    edit(project / "dvc.yaml", "\nplots:", "\n  mine:\n    cmd: echo mine > mine\n    outs: [mine]\n\nplots:")
    (project / "stages/mine.py").write_text('"""Mine."""\n')
    commit(project)
    upgrade.plan().make()
    assert "/pictures/" in (project / ".gitignore").read_text()
    assert "/site/" in (project / ".gitignore").read_text()
    assert "mine" in yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert "# what to learn from" in (project / "dvc.yaml").read_text()
    assert (project / "stages/mine.py").exists()
    assert upgrade.plan().changes == []


def test_lines_that_both_have_changed_are_left_to_the_user_and_asked_about_once(project: Path) -> None:
    edit(project / "dvc.yaml", "# where from", "# out of my pictures")
    commit(project)
    with pytest.raises(HeadstartError, match=r"the same lines of dvc\.yaml"):
        upgrade.plan().make()
    text = (project / "dvc.yaml").read_text()
    mine, theirs = text.index("out of my pictures"), text.index("# what to learn from")
    assert text.index("<<<<<<< yours") < mine < theirs < text.index(">>>>>>> headstart")
    lines = [line for line in text.splitlines() if not line.startswith(("<<<<", "====", ">>>>"))]
    (project / "dvc.yaml").write_text("\n".join(line for line in lines if "what to learn" not in line) + "\n")
    commit(project)
    assert len(git(project, "log", "-1", "--format=%P").split()) == 2
    assert upgrade.plan().changes == []


def test_uncommitted_changes_of_these_files_are_refused_and_others_are_left_alone(project: Path) -> None:
    (project / "notes.txt").write_text("x")
    git(project, "add", "notes.txt")
    edit(project / "studies/dvc.yaml", "# Branches", "# Twigs")
    with pytest.raises(HeadstartError, match=r"studies/dvc\.yaml: changed and not committed"):
        upgrade.plan()
    git(project, "checkout", "-q", "studies/dvc.yaml")
    upgrade.plan().make()
    assert git(project, "status", "--porcelain") == "A  notes.txt"


def test_a_file_that_is_gone_but_was_changed_stays_and_is_named(project: Path) -> None:
    (project / "stages/guess.py").write_text('"""Guess better."""\n')
    commit(project)
    found = upgrade.plan()
    assert any("stages/guess.py is no longer a file of headstart's" in note for note in found.notes)
    found.make()
    assert (project / "stages/guess.py").exists()


def test_a_project_whose_history_does_not_say_what_headstart_made_is_told_that_changes_are_replaced(project: Path) -> None:
    shutil.rmtree(project / ".git")
    git(project, "init", "-q")
    edit(project / "dvc.yaml", "# where from", "# out of my pictures")
    commit(project)
    found = upgrade.plan()
    assert any("what you changed in them is replaced" in note for note in found.notes)
    found.make()
    assert (project / "dvc.yaml").read_bytes() == (PROJECT / "dvc.yaml").read_bytes()
    assert upgrade.plan().changes == []


@pytest.mark.usefixtures("project")
def test_the_command_shows_the_changes_and_makes_them_only_where_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, code, says in (([], 1, "nothing was changed"), (["--yes"], 0, "committed as"), ([], 0, "are those of")):
        monkeypatch.setattr(sys, "argv", ["headstart", "upgrade", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert (ended.value.code or 0, says in told.out + told.err) == (code, True)
        assert ("+  fetch:        # what to learn from" in told.out) == (says != "are those of")


def test_a_project_that_was_moved_into_a_larger_repository_is_upgraded_there(project: Path) -> None:
    shutil.rmtree(project / ".git")
    git(project.parent, "init", "-q")
    commit(project.parent)
    upgrade.plan().make()
    assert git(project.parent, "status", "--porcelain") == ""
    assert upgrade.plan().changes == []


def test_a_params_yaml_that_cannot_be_read_is_a_sentence(project: Path) -> None:
    (project / PARAMS).write_text("data: [")
    commit(project)
    with pytest.raises(HeadstartError, match="is not valid YAML"):
        upgrade.plan()


@pytest.mark.usefixtures("here")
def test_elsewhere_than_in_a_project_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadstartError, match="is no project"):
        upgrade.plan()
    monkeypatch.chdir(PROJECT)
    with pytest.raises(HeadstartError, match="git pull"):
        upgrade.plan()


@pytest.mark.usefixtures("without_dvc")
def test_from_the_pipeline_files_of_the_commit_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["dvc.yaml", PARAMS, "stages", "studies", ".gitignore", ".dvcignore", "data/.gitignore", ".dvc"]
    shaped = ["dvc.yaml", "stages", "studies"]
    commits = git(PROJECT, "log", "--format=%H", "--", *shaped).split()
    before = next(
        (commit for commit in commits if git(PROJECT, "diff", "--name-only", commit, "HEAD", "--", *shaped)), None
    )
    if before is None:
        pytest.skip("the history of this checkout does not go back to a change of these files")
    (here / "older").mkdir()
    packed = subprocess.run(["git", "archive", before, *files], cwd=PROJECT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", here / "older"], input=packed, check=True)
    with monkeypatch.context() as patch:
        patch.setattr(new_project, "installed", lambda: here / "older")
        new_project.init("birds")
    monkeypatch.chdir(here / "birds")
    found = upgrade.plan()
    assert found.changes
    was = read_yaml(Path(PARAMS))
    found.make()
    assert upgrade.plan().changes == []
    assert Params.load()
    assert is_kept(was, read_yaml(Path(PARAMS)))


def is_kept(was: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether every value is as it was, but for keys that are gone."""
    pairs = [(value, now[key]) for key, value in was.items() if key in now]
    return all(is_kept(a, b) if isinstance(a, dict) and isinstance(b, dict) else a == b for a, b in pairs)


# --- params.yaml ------------------------------------------------------------------------------------------------------

KEYS = list(_blocks(SHIPPED.splitlines()))


@settings(max_examples=10)
@given(st.sets(st.sampled_from(KEYS), min_size=1, max_size=6))
def test_keys_that_were_taken_out_come_back_where_they_stood_with_their_comments(missing: set[str]) -> None:
    lines = SHIPPED.splitlines()
    for key in sorted(missing):
        blocks = _blocks(lines)
        siblings = [one for one in blocks if one.rpartition(".")[0] == key.rpartition(".")[0]]
        if key in blocks and len(siblings) > 1 and not key.startswith("tune.space."):  # whose keys are the user's
            del lines[blocks[key].start : blocks[key].stop]
    assert upgraded("\n".join(lines), SHIPPED).text == SHIPPED


def test_a_file_that_has_all_keys_stays_to_the_byte() -> None:
    found = upgraded(SHIPPED, SHIPPED)
    assert (found.text, found.added, found.gone, found.unwritten) == (SHIPPED, (), (), ())


def test_what_yaml_dump_wrote_and_sections_in_one_line_are_understood() -> None:
    values = yaml.safe_load(SHIPPED)
    del values["seed"], values["why"], values["finetune"]["ema"]
    text = yaml.safe_dump(values, sort_keys=False, indent=4)
    found = upgraded(text, SHIPPED)
    assert set(found.added) == {"seed", "why", "finetune.ema"}
    assert yaml.safe_load(found.text) == yaml.safe_load(SHIPPED)
    found = upgraded("data: {source: here}\nseed: 1\n", SHIPPED)
    assert "data.label_separator" in found.unwritten
    assert Params.model_validate(yaml.safe_load(found.text)).data.source == "here"


def test_the_users_own_keys_of_a_value_are_neither_new_nor_gone() -> None:
    text = SHIPPED.replace("    head_lr: [0.0001, 0.005]\n", "    weight_decay: [0.01, 0.1]\n", 1)
    assert upgraded(text, SHIPPED).text == text
