"""What tests of several modules stand on."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest

from headstart.base import errors
from tests.two_nodes import cluster_of_two, two_nodes  # noqa: F401 - fixtures

# A shell ignores Ctrl-C for what it starts in the background, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first: then no worker begins one when the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def commands_leave_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is run in this process raises SystemExit when it is done, and does not end pytest."""
    monkeypatch.setattr(errors, "leave", sys.exit)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to make one takes seconds."""
    import mlflow

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def checkout_with_store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as a checkout that has an MLflow store of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path
