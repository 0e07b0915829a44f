"""After a checkout was moved or copied, all in its MLflow store is found beside it, and nothing is written elsewhere."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.utils.file_utils import local_file_uri_to_path

from headstart.base.files import write_json
from headstart.tracking import store

FILE = "note.json"


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch, experiment: str = "headstart") -> str:
    """A run with an artifact, a model and a version of it, logged from a checkout at ``folder``."""
    monkeypatch.chdir(folder)
    with store.opened() as client:
        run: str = client.create_run(store.experiment_id(client, experiment)).info.run_id
        write_json(folder / FILE, {"run": run})
        client.log_artifact(run, str(folder / FILE))
        model = client.create_logged_model(client.get_run(run).info.experiment_id, "model", source_run_id=run)
        client.log_model_artifacts(model.model_id, str(folder / "model"))
        if experiment == "headstart" and not client.search_registered_models():
            client.create_registered_model("headstart")
            client.create_model_version("headstart", model.artifact_location, run)
    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    folder = tmp_path / "birds"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "MLmodel").write_text("a model")
    return folder


def places_of(run: str) -> set[Path]:
    """The folders that MLflow names for a run, the experiment, the model and its version."""
    with store.opened() as client:
        info = client.get_run(run).info
        version = client.search_model_versions("name='headstart'")[0]
        model = client.search_logged_models([info.experiment_id])[0]
        addresses = [
            info.artifact_uri, client.get_experiment(info.experiment_id).artifact_location, model.artifact_location,
            version.source, client.get_model_version_download_uri("headstart", version.version),
        ]  # fmt: skip
    return {path_of(address) for address in addresses}


def path_of(address: str) -> Path:
    return Path(local_file_uri_to_path(address))


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_store_is_found_beside_its_checkout(
    way: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(checkout, monkeypatch)
    there = tmp_path / "elsewhere" / "birds"
    there.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    before = files_in(checkout)
    shutil.move(checkout, there) if way == "moved" else shutil.copytree(checkout, there)

    another = run_in(there, monkeypatch)
    assert "MLflow's artifacts were entered in" in capsys.readouterr().err
    for each in (run, another):
        assert all(place.is_relative_to(there / "mlartifacts") for place in places_of(each))
        with store.opened() as client:
            assert [file.path for file in client.list_artifacts(each)] == [FILE]
    if way == "moved":
        assert not checkout.exists()
    else:
        assert files_in(checkout) == before
        monkeypatch.chdir(checkout)
        assert all(place.is_relative_to(checkout / "mlartifacts") for place in places_of(run))


def test_artifacts_of_another_checkout_that_uses_the_store_stay_where_they_are(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in(checkout, monkeypatch)
    other = tmp_path / "other"
    shutil.copytree(checkout / "model", other / "model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout / 'mlflow.db'}")
    theirs = run_in(other, monkeypatch, "theirs")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(checkout)
    store._reach.cache_clear()
    with store.opened() as client:
        assert path_of(client.get_run(theirs).info.artifact_uri).is_relative_to(other)
    assert "were entered" not in capsys.readouterr().err


def test_a_database_of_something_else_is_left_alone(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    with sqlite3.connect("mlflow.db") as database:
        database.execute("CREATE TABLE experiments (artifact_location TEXT)")
    store._reach(store.uri())
