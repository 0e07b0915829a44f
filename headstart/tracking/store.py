"""The user's MLflow store: where it is, a client for it, and its errors as one sentence."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from headstart.base.errors import HeadstartError
from headstart.base.paths import checkout, state_folder, users_path
from headstart.base.safe_text import shortened
from headstart.tracking import moved_store, saved_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WAIT = 5  # seconds for a store to take a connection

GONE = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code

ARITHMETIC = "headstart.arithmetic"  # tag of a version: the kind of processor, threads and engines

MODEL = "headstart.model"  # tag of a version: the digest of all files of the model

RESULT = "headstart.result"  # tag of a run and of a version: the digest of what the result was made from


def uri() -> str:
    """The store's address; a relative path starts in the user's checkout, also from DVC's temporary folders."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = given.removeprefix("sqlite:///")
    if file != given and not file.startswith(("/", ":memory:", "file:")) and file:
        here = str(checkout())
        # MLflow makes the folder of the path as it stands, and opens the path that it says as an address. Where these are
        # not the same, a path from here is: below the checkout there are only folders of DVC's.
        return f"sqlite:///{here if quote(here) == here else os.path.relpath(here)}/{file}"
    if ":" not in given.removeprefix("file:") and given != "databricks" and not given.startswith("file:/"):
        return users_path(unquote(given.removeprefix("file:"))).as_uri()  # MLflow decodes what is no address, too
    return given


def artifacts() -> str | None:
    """Artifacts of a database stand in the checkout; a server decides for itself.

    MLflow's own default is the working folder, which with ``dvc exp run --temp`` is thrown away.
    """
    return (checkout() / "mlartifacts").as_uri() if _is_database(uri()) else None


@contextmanager
def opened() -> Iterator[MlflowClient]:
    """A client, with its errors as one sentence. Locked, as two workers creating the same database at once fail."""
    from filelock import FileLock

    with answering(), FileLock(state_folder("locks") / "mlflow.lock"):
        from mlflow import MlflowClient

        _reach(uri())
        yield MlflowClient(uri())


@contextmanager
def answering() -> Iterator[None]:
    """What goes wrong between here and the store, as one sentence.

    Raises:
        HeadstartError: the store does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(WAIT))  # PostgreSQL's own variable
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A new database needs no two lines about it, and a database that is away no traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:  # connection, database and REST errors
        if "MLFLOW_TRACKING_URI" in os.environ:
            mend = "start it, or unset MLFLOW_TRACKING_URI to use the checkout's own store"
        else:
            mend = "mend the file, or move it away and log the result anew with `headstart track`"
        raise HeadstartError(f"MLflow at {uri()} does not answer ({short(error)}); {mend}") from None


@cache
def _reach(address: str) -> None:
    """Ask once whether anybody is there: MLflow asks up to ten times, which takes minutes without a word."""
    if address.startswith("http"):
        import requests

        with suppress(requests.exceptions.SSLError):  # somebody is there
            requests.get(f"{address.rstrip('/')}/health", timeout=(WAIT, 4 * WAIT), stream=True).close()
    elif _is_database(address):
        from sqlalchemy import create_engine, inspect, make_url

        file = make_url(address).database if address.startswith("sqlite") else None
        if file is None or Path(file).is_file():
            engine = create_engine(address, connect_args={} if file is None else {"timeout": 60})  # others may write
            tables = inspect(engine).get_table_names()
            if file and Path(file).resolve().is_relative_to(checkout()) and (folder := artifacts()):
                moved_store.follow(engine, tables, folder)
            engine.dispose()


def _is_database(address: str) -> bool:
    return address.startswith(("sqlite", "postgresql", "mysql", "mssql"))


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of the experiment, which is created where there is none, and given what its page lacks to compare results."""
    found = client.get_experiment_by_name(name)
    if found is None:
        created = unless("RESOURCE_ALREADY_EXISTS", client.create_experiment, name, artifacts(), saved_view.tags())
        return str(created) if created is not None else experiment_id(client, name)  # another checkout made it just now
    if found.lifecycle_stage == "deleted":
        raise HeadstartError(
            f"the MLflow experiment {name!r} is deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or name another as tracking.experiment"
        )
    for key, value in saved_view.tags().items():
        if key not in found.tags or saved_view.is_old(key, found.tags[key]):
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def tagged(client: MlflowClient, experiment_id: str, tag: str, value: str, deleted: bool = False) -> list[Run]:
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    runs: list[Run] = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", view)
    return runs


def unless(code: str, ask: Callable[..., Any], *arguments: Any) -> Any:
    """What MLflow answers; None where its answer is the error ``code``."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*arguments)
    except MlflowException as error:
        if error.error_code != code:
            raise
        return None


def twice(ask: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What MLflow answers; after an error it is asked once more. Another checkout may have entered the same at the moment
    between its looking and its writing: when it looks again, it finds that."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*arguments, **named)
    except MlflowException:
        return ask(*arguments, **named)


def short(error: Exception) -> str:
    return shortened(str(error), 200)


@contextmanager
def downloaded(source: str, beside: Path | None = None) -> Iterator[Path]:
    """What MLflow keeps at ``source``, in a folder of its own that goes away again unless it was moved.

    Args:
        beside: the folder on whose disk it is wanted.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=beside, ignore_cleanup_errors=True) as scratch:
        with answering():
            from mlflow.artifacts import download_artifacts

            found = Path(download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=uri()))
        yield found
