"""`headstart retrain`, month after month, with a real registry, real remotes, and rounds that are killed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from headstart.base.sections import Data
from headstart.data.sources import locate
from tests.stages.conftest import ENVIRONMENT, SMALL, Clone

pytestmark = [pytest.mark.slow]

CLASSES = ("Flags", "Food & Drink", "Smileys & Emotion")
SETTINGS = SMALL | {
    "split": {"val": 0.2, "test": 0.35},
    "finetune": {"unfreeze": "none"},
    "evaluate": {"bootstrap": 100, "mistakes": 0, "folds": None},
    "features": {"engine": "torch"},
    # Few pictures, and other programs run beside the tests.
    "gate": {"margin": 0.05, "class_margin": 0.25, "max_ece": 0.4, "max_slowdown": 5.0},
}


class Pictures:
    """A folder of classes that new emoji arrive in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listing = locate(Data(source="emoji"))
        self.coming = {
            label: iter(sorted(listing.root / p.path for p in listing.pictures if p.label == label)) for label in CLASSES
        }

    def arrive(self, number: int, label: str, into: str | None = None) -> list[Path]:
        """So many more of a class, in its folder or by mistake in another's."""
        target = self.folder / (into or label)
        target.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(next(self.coming[label]), target)) for _ in range(number)]


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    arriving = Pictures(tmp_path / "pictures")
    for label in CLASSES:
        arriving.arrive(32, label)
    return arriving


@pytest.fixture
def client_of() -> Callable[[Clone], mlflow.MlflowClient]:
    return lambda clone: mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")


def a_round(clone: Clone, expected: int, *options: str, **variables: str) -> dict[str, Any]:
    """A `headstart retrain` that must end with this code; its summary."""
    done = clone.run("headstart", "retrain", "--json", *options, check=False, **variables)
    assert done.returncode == expected, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    if expected != 75:
        assert json.loads(clone.read(".headstart/retrain/last.json")) == summary
    return summary


def assert_nothing_is_lost_or_double(clone: Clone, client: mlflow.MlflowClient, results: int) -> None:
    """One complete run and one version per result, the aliases on versions that are there, and a clean checkout."""
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "headstart-pictures"]
    runs = client.search_runs([experiment])
    assert len(runs) == len({run.data.tags["headstart.result"] for run in runs}) == results
    assert all(run.data.tags["headstart.complete"] == "true" and run.info.status == "FINISHED" for run in runs)
    versions = client.search_model_versions("name = 'headstart-pictures'")
    assert {version.run_id for version in versions} == {run.info.run_id for run in runs}
    assert len(versions) == results
    newest = max(int(version.version) for version in versions)
    assert int(client.get_model_version_by_alias("headstart-pictures", "challenger").version) == newest
    assert clone.run("git", "status", "--porcelain", "--untracked-files=no").stdout == ""
    clone.run("git", "fsck", "--strict")


def champion_of(client: mlflow.MlflowClient) -> int:
    return int(client.get_model_version_by_alias("headstart-pictures", "champion").version)


def test_a_short_year(
    pictures: Pictures, project: Callable[..., Clone], client_of: Callable[[Clone], mlflow.MlflowClient], tmp_path: Path
) -> None:
    clone = project(data={"source": str(pictures.folder)}, retrain={"remote": "storage"}, **SETTINGS)
    clone.run("dvc", "remote", "add", "storage", str(tmp_path / "storage"))
    clone.commit("a remote")
    client = client_of(clone)

    first = a_round(clone, 0)
    assert (first["outcome"], first["version"], first["drift"]) == ("promoted", 1, None)
    assert champion_of(client) == 1
    assert first["commit"] == clone.run("git", "rev-parse", "main").stdout.strip()
    assert "Retrained: version 1 promoted" in clone.run("git", "log", "-1", "--format=%B").stdout
    assert "are in sync" in clone.run("dvc", "status", "--cloud", "--remote", "storage", "dvc.yaml").stdout

    nothing_new = a_round(clone, 10)
    assert (nothing_new["outcome"], nothing_new["commit"]) == ("skipped", None)
    assert_nothing_is_lost_or_double(clone, client, results=1)

    flags, food, smileys = CLASSES
    for label in (flags, food):
        pictures.arrive(60, label, into=smileys)
    mislabelled = a_round(clone, 12)
    assert champion_of(client) == 1
    assert mislabelled["drift"] is not None
    assert mislabelled["commit"]
    assert_nothing_is_lost_or_double(clone, client, results=2)


def test_of_two_at_once_one_works_and_the_other_leaves_with_its_code(copy_of: Clone) -> None:
    copy_of.set(gate={"max_slowdown": 5.0})
    copy_of.commit()
    first, second = (
        subprocess.Popen(
            ["headstart", "retrain", "--json"], cwd=copy_of.folder, env=copy_of.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    )  # fmt: skip
    said = {process.pid: process.communicate(timeout=900) for process in (first, second)}
    assert sorted((first.returncode, second.returncode)) == [0, 75], said
    left, worked = sorted((first, second), key=lambda process: -process.returncode)
    assert f"another retrain is running here: process {worked.pid} on {socket.gethostname()}, since " in said[left.pid][1]
    assert json.loads(said[left.pid][0])["outcome"] == "busy"


def test_killed_anywhere_the_next_one_carries_on(
    pictures: Pictures, project: Callable[..., Clone], client_of: Callable[[Clone], mlflow.MlflowClient]
) -> None:
    clone = project(data={"source": str(pictures.folder)}, **SETTINGS)
    data, state = clone.folder / "data", clone.folder / ".headstart/retrain"
    clone.left_killed_when(lambda: (data / "head").exists(), "headstart", "retrain")  # in a stage
    clone.left_killed_when(lambda: (data / "package").exists(), "headstart", "retrain")
    clone.left_killed_when(lambda: (state / "open.json").exists(), "headstart", "retrain")  # before the gate
    # While the decision is being taken, or just after.
    clone.left_killed_when(lambda: (data / "gate/decision.json").exists(), "headstart", "retrain")
    summary = a_round(clone, 0)
    assert (summary["outcome"], summary["version"]) == ("promoted", 1)
    assert not (state / "open.json").exists()
    client = client_of(clone)
    assert champion_of(client) == 1
    assert_nothing_is_lost_or_double(clone, client, results=1)
    assert a_round(clone, 10)["commit"] is None


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server with an empty bucket "months"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"ACCESS_KEY_ID": "moto", "SECRET_ACCESS_KEY": "moto", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setitem(ENVIRONMENT, f"AWS_{name}", value)
    server = subprocess.Popen(
        [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        import s3fs

        deadline = time.monotonic() + 60
        while True:
            try:
                s3fs.S3FileSystem(endpoint_url=address, skip_instance_cache=True).mkdir("months")
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def test_a_fresh_clone_goes_on_from_what_s3_and_git_have(copy_of: Clone, s3: str, tmp_path: Path) -> None:
    copy_of.run("dvc", "remote", "add", "storage", "s3://months/cache")
    copy_of.run("dvc", "remote", "modify", "storage", "endpointurl", s3)
    copy_of.set(retrain={"remote": "storage", "branch": "retrained", "push": True}, gate={"max_slowdown": 5.0})
    copy_of.commit("a remote")
    bare = tmp_path / "bare.git"
    copy_of.run("git", "clone", "-q", "--bare", str(copy_of.folder), str(bare))
    copy_of.run("git", "remote", "add", "origin", str(bare))
    copy_of.run("git", "rm", "-q", "--cached", "dvc.lock")  # as where no round has been committed yet
    copy_of.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "no lock")
    copy_of.run("git", "push", "-q", "origin", "main")
    pushed = a_round(copy_of, 0)
    assert pushed["branch"] == "retrained"

    fresh = Clone(tmp_path / "fresh")
    copy_of.run("git", "clone", "-q", str(bare), str(fresh.folder))
    assert not (fresh.folder / "dvc.lock").exists()
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{copy_of.folder / 'mlflow.db'}"}  # as a server that both know
    done = fresh.run("headstart", "retrain", check=False, **store)
    assert done.returncode == 10, done.stdout + done.stderr
    ran = [line for line in done.stderr.splitlines() if line.startswith("Running stage")]
    assert ran == ["Running stage 'fetch':"]
    assert fresh.run("git", "status", "--porcelain", "--untracked-files=no").stdout == ""


def test_a_server_that_is_gone_fails_the_round_with_one_sentence(copy_of: Clone) -> None:
    copy_of.run("dvc", "remote", "add", "storage", "s3://months/cache")
    copy_of.run("dvc", "remote", "modify", "storage", "endpointurl", "http://127.0.0.1:9")
    copy_of.set(retrain={"remote": "storage"})
    copy_of.commit("a remote")
    keys = {"AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto", "AWS_MAX_ATTEMPTS": "1"}
    summary = a_round(copy_of, 1, **keys)
    assert summary["sentence"].startswith("`dvc pull` failed: ")
