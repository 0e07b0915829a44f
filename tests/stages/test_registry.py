"""Results of the pipeline in the registry, and many who write at once, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.stages.conftest import Clone
from tests.stages.test_pipeline import digests

pytestmark = [pytest.mark.slow]

DEBIANS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
WRITERS = 4


def client_of(clone: Clone) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")


def aliases_of(client: mlflow.MlflowClient) -> dict[str, int]:
    return {alias: int(number) for alias, number in client.get_registered_model("headstart-emoji").aliases.items()}


def test_a_result_is_a_version_with_its_lineage_and_its_card(finished: Clone) -> None:
    client = client_of(finished)
    assert aliases_of(client) == {"challenger": 1}
    (version,) = client.search_model_versions("name='headstart-emoji'")
    result = json.loads(finished.read("data/track/track.json"))["result"]
    assert version.tags["headstart.result"] == client.get_run(version.run_id).data.tags["headstart.result"] == result
    manifest = (finished.folder / "data/prepare/manifest.parquet").read_bytes()
    assert version.tags["headstart.data"] == hashlib.sha256(manifest).hexdigest()
    assert len(version.tags["mlflow.source.git.commit"]) == 40
    outputs = json.loads(version.tags["headstart.dvc"])
    assert all(f"md5: {outputs[name]}" in finished.read("dvc.lock") for name in ("data/prepare", "data/package"))
    card = Path(client.download_artifacts(version.run_id, "MODEL_CARD.md")).read_text(encoding="utf-8")
    assert version.description == card
    test = json.loads(finished.read("data/evaluate/metrics.json"))["test"]["chosen"]
    audit = json.loads(finished.read("data/prepare/audit.json"))
    gmacs = json.loads(finished.read("data/backbone/card.json"))["gmacs"]
    for said in (
        f"| accuracy | {test['accuracy']:.3f} | {test['accuracy_low']:.3f}–{test['accuracy_high']:.3f} |",
        f"| calibration error | {test['ece']:.3f} |",
        f"{audit['kept']} kept",
        "Licence of the pictures: Twemoji graphics",
        "Licence: Apache-2.0",
        f"{gmacs:.2f} GMACs a picture at 96 pixels",
        result,
    ):
        assert said in card
    for row in finished.read("data/evaluate/figures/per_class.csv").splitlines()[1:4]:
        assert row.split(",")[0] in card


def test_results_pass_the_gate_are_promoted_and_rolled_back_from_the_command_line(copy_of: Clone) -> None:
    client = client_of(copy_of)
    assert "first champion" in copy_of.measured.run("headstart", "gate").stdout
    assert aliases_of(client) == {"challenger": 1, "champion": 1}
    assert copy_of.run("git", "status", "--porcelain").stdout == ""
    # Another result with the same model. So little was learned of so few pictures that it is badly calibrated.
    copy_of.set(evaluate={"mistakes": 3}, gate={"max_p": 1.0, "max_ece": 1.0, "max_slowdown": 100.0})
    assert set(copy_of.stages_run()) == {"evaluate", "track"}
    assert aliases_of(client) == {"challenger": 2, "champion": 1}
    sentence = copy_of.measured.run("headstart", "gate").stdout
    decision = json.loads(copy_of.read("data/gate/decision.json"))
    assert decision["sentence"] in sentence
    assert decision["numbers"]["gain"]["value"] == 0
    measured = json.loads(copy_of.read("data/evaluate/metrics.json"))["test"]["chosen"]["accuracy"]
    assert decision["numbers"]["challenger"]["accuracy"] == pytest.approx(measured, abs=0.02)
    (kept,) = (copy_of.folder / ".headstart/models").iterdir()
    assert digests(kept) == digests(copy_of.folder / "data/package/model")
    assert decision["outcome"] == "promoted"
    assert aliases_of(client)["champion"] == 2
    again = copy_of.run("headstart", "promote", "2", "--why", "again", check=False)
    assert again.stderr == "headstart: version 2 of headstart-emoji is the champion already\n"
    assert (
        copy_of.measured.run("headstart", "rollback", "--why", "a try").stdout
        == "version 1 of headstart-emoji is the champion again\n"
    )
    assert aliases_of(client) == {"challenger": 2, "champion": 1}
    assert "was rolled back: a try" in copy_of.run("headstart", "gate").stdout
    assert aliases_of(client)["champion"] == 1


def test_a_result_that_was_tracked_before_there_was_a_registry_is_registered_later(copy_of: Clone) -> None:
    client = client_of(copy_of)
    client.delete_registered_model("headstart-emoji")
    assert "nothing logged twice" in copy_of.run("headstart", "track").stdout
    assert aliases_of(client) == {"challenger": 1}
    copy_of.run("headstart", "track")
    assert len(client.search_model_versions("name='headstart-emoji'")) == 1


# --- many who write at once ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server on a data folder of its own: the address of an empty database."""
    if not DEBIANS:
        pytest.skip("no PostgreSQL server (looked for /usr/lib/postgresql/*/bin; Debian's package is postgresql)")
    pytest.importorskip("psycopg2")
    root = Path(tempfile.mkdtemp(prefix="postgresql-"))  # not below pytest's folders, which are closed to other users
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prefix: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(root, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    user = "postgres" if prefix else getpass.getuser()

    def run(name: str, *arguments: str) -> None:
        subprocess.run([*prefix, str(DEBIANS[-1] / name), *arguments], check=True, cwd=root, stdout=subprocess.DEVNULL)

    data = ("-D", str(root / "data"))
    try:
        run("initdb", *data, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync")
        settings = f"-p {port} -k {root} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", *data, "-w", "-l", str(root / "log"), "-o", settings, "start")
        try:
            yield f"postgresql+psycopg2://{user}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", *data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def shared(request: pytest.FixtureRequest, tmp_path: Path, empty_store: Path) -> str:
    """The address of a store that is in use, for several to write to."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'shared.db')}"
    address: str = request.getfixturevalue("postgresql")
    mlflow.MlflowClient(address).search_experiments()
    return address


def registered(address: str) -> tuple[list[Any], list[Any]]:
    """Every run of the experiment, and every version."""
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("headstart-emoji").experiment_id
    return list(client.search_runs([experiment])), list(client.search_model_versions("name='headstart-emoji'"))


def whole(run: Any) -> None:
    assert run.data.tags["headstart.complete"] == "true"
    assert run.info.status == "FINISHED"
    assert "test/chosen/accuracy" in run.data.metrics
    assert run.data.params["backbone"] == "tf_efficientnet_lite0"
    assert len(run.outputs.model_outputs) == 1


@pytest.mark.parametrize("shared", ["sqlite"], indirect=True)  # the queue's four writers below have PostgreSQL
def test_four_checkouts_that_track_at_once_all_end_whole(finished: Clone, tmp_path: Path, shared: str) -> None:
    clones = []
    for number in range(WRITERS):
        folder = tmp_path / f"checkout-{number}"
        left_out = shutil.ignore_patterns(".dvc", "mlartifacts", "mlflow.db", ".headstart")
        shutil.copytree(finished.folder, folder, ignore=left_out)
        clones.append(Clone(folder))

    def track_at_once() -> None:
        running = [
            subprocess.Popen(
                ["headstart", "track"], cwd=clone.folder, env=clone.environment(MLFLOW_TRACKING_URI=shared),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for clone in clones
        ]  # fmt: skip
        for process in running:
            said = process.communicate(timeout=600)[0]
            assert process.returncode == 0, said
            assert "Traceback" not in said

    for number, clone in enumerate(clones):
        clone.set(evaluate={"mistakes": 20 + number})  # a part of the digest: four results
    track_at_once()
    runs, versions = registered(shared)
    results = {run.data.tags["headstart.result"] for run in runs}
    assert len(runs) == len(versions) == len(results) == WRITERS
    assert {version.tags["headstart.result"] for version in versions} == results
    assert sorted(int(version.version) for version in versions) == list(range(1, WRITERS + 1))
    for clone in clones:
        clone.set(evaluate={"mistakes": 30})  # the same result in all
    track_at_once()
    runs, versions = registered(shared)
    for run in runs:
        whole(run)
    digests = [version.tags["headstart.result"] for version in versions]
    assert len(digests) == len(set(digests)) == WRITERS + 1


@pytest.fixture
def workers(copy_of: Clone) -> Iterator[None]:
    """Ends what is left of a queue's workers. The filesystem broker's ``get`` may read a message that another worker has
    not written yet; what that breaks in the worker is its own end (celery/kombu issue 1551)."""
    yield
    for file in (copy_of.folder / ".dvc/tmp/exps/celery").glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("shared", ["postgresql" if DEBIANS else "sqlite"], indirect=True)
def test_four_workers_of_a_queue_all_end_whole(copy_of: Clone, shared: str) -> None:
    copy_of.commit()
    names = [f"queued-{number}" for number in range(WRITERS)]
    for number, name in enumerate(names):
        copy_of.run("dvc", "exp", "run", "--queue", "-n", name, "-S", f"evaluate.mistakes={3 + number}")
    # Its output is not captured: the workers keep it open for as long as they live.
    subprocess.run(
        ["dvc", "queue", "start", "-j", str(WRITERS)], cwd=copy_of.folder, check=True, timeout=300,
        env=copy_of.environment(MLFLOW_TRACKING_URI=shared), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    client = mlflow.MlflowClient(shared)
    while len(client.search_model_versions("name='headstart-emoji'")) < WRITERS and time.monotonic() < deadline - 300:
        time.sleep(0.5)  # to ask DVC instead takes two seconds of a core
    while True:
        done = copy_of.run("dvc", "queue", "status", check=False)  # it may read an unfinished message too
        status = done.stdout
        if done.returncode == 0 and "Running" not in status and "Queued" not in status:
            break
        assert time.monotonic() < deadline, f"{status}\n{done.stderr}"
        time.sleep(2)
    copy_of.run("dvc", "queue", "stop", check=False)
    logs = [copy_of.run("dvc", "queue", "logs", name, check=False).stdout for name in names]
    assert "Failed" not in status, "\n".join(logs)
    runs, versions = registered(shared)
    assert sorted(run.info.run_name for run in runs) == names
    assert len({run.data.tags["headstart.result"] for run in runs}) == len(versions) == WRITERS
    for run in runs:
        whole(run)
        assert run.info.artifact_uri.startswith((copy_of.folder / "mlartifacts").as_uri())
        assert {"MODEL_CARD.md", "prepare"} <= {a.path for a in mlflow.MlflowClient(shared).list_artifacts(run.info.run_id)}
