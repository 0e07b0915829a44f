"""What `headstart doctor` finds, of real folders, repositories, databases and ports on which nobody listens."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from headstart import cli
from headstart.base.errors import HeadstartError
from headstart.operations import doctor
from headstart.operations.git_branch import Branch
from tests.inference.test_predictor import plain, png
from tests.test_house import PROJECT


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a commit and DVC, learning from four pictures, with no database yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for label in ("red", "green"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        (tmp_path / "pictures" / label / "1.png").write_bytes(png(plain(label)))
    (tmp_path / "params.yaml").write_text("data: {source: pictures}\n")
    (tmp_path / ".gitignore").write_text("pictures\n.headstart\n")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path


def found(about: str) -> tuple[str, str]:
    """State and sentence of one finding; what comes after it is not looked at."""
    return next((finding.state, finding.sentence) for finding in doctor.examine() if finding.about == about)


def test_all_is_well_in_a_proper_checkout_and_nothing_is_made_by_looking(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["headstart", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code in (0, None), out
    assert "ok    pictures: 2 in 2 classes from pictures" in out
    assert "ok    backbone: tf_efficientnet_lite0+" in out
    assert "/squeeze, whose weights are at hand" in out
    assert "note  dvc: no remote" in out
    assert not (here / "mlflow.db").exists()


def test_packages_other_than_the_lock_has_are_wrong_and_named(here: Path) -> None:
    (here / "requirements.lock").write_text(
        f"numpy=={version('numpy')} \\\n    --hash=sha256:00\nscipy==0.0.1 \\\n    --hash=sha256:00\n"
        "not-a-package==1.0 ; sys_platform == 'nowhere' \\\n    --hash=sha256:00\nnor-this==1.0\n    # via scipy==3\n"
    )
    state, sentence = found("packages")
    assert state == doctor.WRONG
    assert f"scipy ({version('scipy')} instead of 0.0.1)" in sentence
    assert "nor-this (none instead of 1.0)" in sentence
    assert "numpy" not in sentence
    assert "not-a-package" not in sentence
    assert sentence.endswith("run `pip install -r requirements.lock`")
    (here / "Makefile").touch()
    assert found("packages")[1].endswith("run `make setup`")


@pytest.mark.usefixtures("here")
def test_without_a_lock_packages_are_those_that_headstart_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("packages") == (doctor.OK, "as headstart 0.1.0 asks for; there is no requirements.lock")
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=1", "pillow<2", "nowhere ; extra == 'dev'"])
    state, sentence = found("packages")
    assert (state, sentence.split(" (")[0]) == (doctor.WRONG, "pillow")
    assert sentence.endswith("install headstart again, with pip")


def test_the_environment_of_these_tests_is_that_of_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert doctor._packages() == (doctor.OK, "as requirements.lock has them")


@pytest.mark.parametrize(
    ("params", "about", "state", "says"),
    [
        ("bakbone: resnet18", "params.yaml", doctor.WRONG, "did you mean 'backbone'"),
        ("data: {source: nowhere}", "pictures", doctor.WRONG, "nowhere"),
        ("data: {source: empty}", "pictures", doctor.WRONG, "no files in class folders"),
        ("data: {source: pictures, exclude: gone.csv}", "pictures", doctor.WRONG, "gone.csv"),
        ("data: {source: one}", "pictures", doctor.WRONG, "1 classes; at least two"),
        ("data: {source: several.csv}", "pictures", doctor.OK, "3 in 2 classes from several.csv"),
        ("{data: {source: several.csv, label_separator: '|'}}", "pictures", doctor.WRONG, "the class 'a;b' holds ';'"),
        ("data: {source: same.csv}", "pictures", doctor.WRONG, "there is nothing to tell apart"),
        ("data: {source: pictures.zip}", "pictures", doctor.NOTE, "is unpacked by the first run"),
        ("data: {source: gone.zip}", "pictures", doctor.WRONG, "gone.zip"),
        ("{data: {source: pictures}, backbone: resnet18, weights: mine.pth}", "backbone", doctor.WRONG, "no such file"),
        ("{data: {source: pictures}, backbone: 'my_net.py:small'}", "backbone", doctor.WRONG, "my_net.py is not there"),
        ("data: {source: hymenoptera}", "pictures", doctor.NOTE, "is not on this machine"),
        ("{data: {source: pictures}, backbone: resnet19}", "backbone", doctor.WRONG, "did you mean"),
        ("{data: {source: pictures}, backbone: densenet161}", "backbone", doctor.NOTE, "the first run downloads them"),
        ("{data: {source: pictures}, backbone: resnet18, weights: none}", "backbone", doctor.OK, "random weights"),
    ],
)
def test_what_params_ask_for_is_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch, params: str, about: str, state: str, says: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "no-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "no-cache"))
    (here / "empty").mkdir()
    shutil.copytree(next((here / "pictures").iterdir()), here / "one/class")
    shutil.make_archive(str(here / "pictures"), "zip", here / "pictures")
    first, second = sorted(p.relative_to(here) for p in (here / "pictures").rglob("*.*"))[:2]
    (here / "several.csv").write_text(f"path,labels\n{first},a;b\n{second},b\nsame.csv,\n")
    (here / "same.csv").write_text(f"path,labels\n{first},a;b\n{second},a;b\n")
    (here / "params.yaml").write_text(params)
    outcome, sentence = found(about)
    assert outcome == state
    assert says in sentence
    assert not (here / ".headstart/downloads").exists()
    assert found("git")[0] == doctor.NOTE  # params.yaml is not as committed


def test_a_store_that_does_not_answer_and_a_folder_that_is_no_checkout_are_wrong(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert found("mlflow")[0] == doctor.WRONG
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here))
    monkeypatch.setattr(sys, "argv", ["headstart", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert "wrong git: no commit here" in out
    assert "wrong params.yaml:" in out
    assert "Traceback" not in out


def test_a_result_that_is_not_in_git_is_not_nothing_to_commit(here: Path) -> None:
    assert found("git")[1].endswith(", nothing to commit")
    (here / "notes.txt").write_text("mine")
    assert found("git")[0] == doctor.OK
    assert found("git")[1].endswith("; not in git: notes.txt")
    (here / "dvc.lock").write_text("stages: {}")
    (here / "data/evaluate").mkdir(parents=True)
    (here / "data/evaluate/metrics.json").write_text("{}")
    assert found("git") == (
        doctor.NOTE,
        "dvc.lock and data/evaluate/metrics.json not in git yet; `git add dvc.lock data/evaluate/metrics.json` and a "
        "commit keep the result",
    )
    (here / "params.yaml").write_text("data: {source: pictures}\nseed: 1\n")
    assert found("git") == (doctor.NOTE, "1 changed file is not committed; `headstart retrain` needs a clean checkout")


@pytest.mark.usefixtures("here")
def test_a_checkout_that_is_somebody_elses_is_said_in_gits_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own; to own a folder that is not ours takes root
    state, sentence = found("git")
    assert state == doctor.WRONG
    assert "detected dubious ownership in repository at" in sentence
    assert "git config --global --add safe.directory" in sentence
    assert "git init" not in sentence
    with pytest.raises(HeadstartError, match="dubious ownership"):
        Branch(None)


def test_a_remote_is_named(here: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "shelf", "shelf"], cwd=here, check=True)
    assert found("dvc") == (doctor.OK, "results can be pushed to shelf")
