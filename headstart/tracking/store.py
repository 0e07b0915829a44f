"""The user's MLflow store: where it is, a client for it, and its errors as one sentence."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headstart.base.errors import HeadstartError
from headstart.base.paths import checkout, state_folder
from headstart.tracking import saved_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARITHMETIC = "headstart.arithmetic"  # tag of a version: the kind of processor, threads and engines

MODEL = "headstart.model"  # tag of a version: the digest of all files of the model

RESULT = "headstart.result"  # tag of a run and of a version: the digest of what the result was made from


def uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{checkout() / 'mlflow.db'}"


def shown_uri() -> str:
    """The address as it may be printed: a database's password is left out."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", uri())


def artifacts() -> str | None:
    """Artifacts of a database stand in the checkout; a server decides for itself.

    MLflow's own default is the working folder, which with ``dvc exp run --temp`` is thrown away.
    """
    return None if uri().startswith(("http", "databricks", "file")) else (checkout() / "mlartifacts").as_uri()


@contextmanager
def opened() -> Iterator[MlflowClient]:
    """A client, with its errors as one sentence. Locked, as two workers creating the same database at once fail."""
    from filelock import FileLock

    with answering(), FileLock(state_folder("locks") / "mlflow.lock"):
        from mlflow import MlflowClient

        yield MlflowClient(uri())


@contextmanager
def answering() -> Iterator[None]:
    """What goes wrong between here and the store, as one sentence.

    Raises:
        HeadstartError: the store does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A new database needs no two lines about it, and a database that is away no traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:  # connection, database and REST errors
        raise HeadstartError(
            f"MLflow at {shown_uri()} does not answer ({short(error)}); start it, or unset MLFLOW_TRACKING_URI to use "
            "the checkout's own store"
        ) from None


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
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def tagged(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[Run]:
    runs: list[Run] = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'")
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


def short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
