"""A copy of the project in a folder of its own, to run the pipeline in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import yaml
from filelock import FileLock

from tests.once import made_once
from tests.stages import warm

PROJECT = Path(__file__).parents[2]
# Of this process, before a test has run code in it that sets variables for torch and cuBLAS, which a user's shell has not.
ENVIRONMENT = dict(os.environ)
# The slice of the default that the pipeline is run on: every stage at its smallest honest size.
SLICE = {
    "data": {"limit": 12},
    "threads": 1,
    "backbone": "tf_efficientnet_lite0",
    "view": {"size": 96},
    "split": {"val": 0.2, "test": 0.2},
    "finetune": {"epochs": 2, "unfreeze": "last", "size_ratio": 0.7, "batch_size": 16},
    "evaluate": {"bootstrap": 100, "mistakes": 2},
}

# What of it makes other projects as quick: the default has three networks, at 224 pixels and more.
SMALL = {name: SLICE[name] for name in ("threads", "backbone", "view", "evaluate")}


@dataclass(frozen=True)
class Clone:
    """A git clone of the project with a pipeline of its own. What it starts is forked from a warm process (warm.py); that
    of its ``cold`` self is as fresh as a user's."""

    warm: ClassVar[Path | None] = None  # the folder of the python that comes first on PATH

    folder: Path
    is_cold: bool = False
    is_measured: bool = False

    @property
    def cold(self) -> Clone:
        return replace(self, is_cold=True)

    @property
    def measured(self) -> Clone:
        """Whose stages take part in `pytest --cov`, which makes them a third slower."""
        return replace(self, is_measured=True)

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(**variables), capture_output=True, text=True, timeout=900
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in ENVIRONMENT.items() if not k.startswith(("MLFLOW_", "DVC_", "HEADSTART_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        if self.warm and not self.is_cold:
            path = f"{self.warm}{os.pathsep}{path}"
        ours = {"PATH": path, "PYTHONPATH": str(self.folder), "DVC_NO_ANALYTICS": "true"}
        return kept | ours | ({"COVERAGE_STAGES": "1"} if self.is_measured else {}) | variables

    def set(self, **sections: object) -> None:
        """Change params.yaml; nested sections are merged."""
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in sections.items():
            params[key] = params[key] | value if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self, message: str = "change") -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", message, "--allow-empty")

    def repro(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", "repro", *arguments, check=check, **variables)

    def stages_run(self, *arguments: str) -> list[str]:
        """The stages that `dvc repro` really runs, always-changed fetch left out."""
        output = self.repro(*arguments).stdout
        ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
        return [stage for stage in ran if stage != "fetch"]

    def killed_when(self, ready: Callable[[], bool], *command: str) -> None:
        """Run until ``ready``, then kill -9 it and all that it started, and take away the locks that DVC leaves behind."""
        self.left_killed_when(ready, *command)
        for left in (self.folder / ".dvc/tmp").glob("*lock*"):
            left.unlink()

    def left_killed_when(self, ready: Callable[[], bool], *command: str) -> None:
        """Run until ``ready``, then kill -9 it and all that it started; what that leaves behind stays."""
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        try:
            while not ready():
                assert process.poll() is None, f"{' '.join(command)} ended before it was to be killed"
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            kill_group(process)

    def run_without_dvc(self, *stages: str) -> None:
        """Stage scripts, by default all of them in the pipeline's order."""
        for stage in stages or yaml.safe_load(self.read("dvc.yaml"))["stages"]:
            self.run("python", f"stages/{stage}.py")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    """kill -9 it and all of its process group, and wait until none of them lives."""
    os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
    while any(process.info["status"] != psutil.STATUS_ZOMBIE for process in members(leader.pid)):
        time.sleep(0.001)


def members(group: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group:
                yield process


def new_clone(folder: Path, **params: object) -> Clone:
    clone = Clone(folder)
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if (PROJECT / name).is_file() and not name.startswith(("tests/", "docs/", "bench/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    clone.run("git", "init", "-q", "-b", "main")
    clone.set(**params)
    clone.commit("a project of one's own")
    return clone


@pytest.fixture(scope="session")
def warm_starts(shared_folder: Path, pytestconfig: pytest.Config) -> None:
    """Lets clones start their stages from a warm process."""
    if warm.SUPPORTED:
        with FileLock(shared_folder / "warm.lock"):
            variables = Clone(shared_folder).environment()
            del variables["PYTHONPATH"]
            if pytestconfig.pluginmanager.hasplugin("_cov"):  # pytest --cov
                variables["COVERAGE_FILE"] = str(PROJECT / ".coverage")
            Clone.warm = warm.environment(shared_folder / "warm", variables)


@pytest.fixture(scope="session")
def finished(shared_folder: Path, warm_starts: None) -> Clone:
    """The slice, run once for all of xdist's workers. Tests look at it and do not change it."""

    def make(folder: Path) -> None:
        clone = new_clone(folder, **SLICE)
        clone.measured.repro("--force")
        clone.commit("a result")

    return Clone(made_once(shared_folder / "finished", make))


@pytest.fixture
def copy_of(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished slice that a test may change."""
    target = tmp_path / "copy"
    shutil.copytree(finished.folder, target, symlinks=True)
    return Clone(target)


@pytest.fixture
def project(tmp_path: Path, warm_starts: None, empty_store: Path, finished: Clone) -> Callable[..., Clone]:
    """Makes a clone that has run nothing yet. It has what takes seconds to make: an MLflow database, and what the code says
    about itself; those of ``finished`` are made by stages."""

    def make(**params: object) -> Clone:
        folder = tmp_path / "project"
        shutil.copytree(finished.folder / ".headstart/identity", folder / ".headstart/identity")
        shutil.copy(empty_store, folder)
        return new_clone(folder, **params)

    return make
