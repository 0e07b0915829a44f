"""Runs in MLflow: that of a result, found or created by its digest, and the curve of a training while it runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.paths import checkout
from headstart.base.safe_text import masked
from headstart.base.terminal import say
from headstart.tracking.store import RESULT, answering, experiment_id, opened, tagged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
from headstart.tracking.result import result_digest

COMPLETE = "headstart.complete"

EXPERIMENT = "dvc.experiment"

LIVE = "finetune/"


class ResultRun:
    """The run of one result in the user's MLflow store."""

    def __init__(self, params: Params, digest: str) -> None:
        """Find the run by its result, or create it.

        Raises:
            HeadstartError: the store does not answer.
        """
        self.params, self.digest = params, digest
        with opened() as client:
            self.client = client
            self.experiment_id = experiment_id(client, params.experiment)
            found = self._runs()
            self.was_deleted = not found and self._restore()
            found = found or self._runs()
            self.complete = any(run.data.tags.get(COMPLETE) for run in found)
            self.run_id: str = found[0].info.run_id if found else self._create()

    def _runs(self) -> list[Run]:
        runs = tagged(self.client, self.experiment_id, RESULT, self.digest)
        return sorted(runs, key=lambda run: (COMPLETE not in run.data.tags, run.info.start_time))

    def _restore(self) -> bool:
        """Take the run of this result out of MLflow's bin, if it is there: it is wanted again."""
        for run in tagged(self.client, self.experiment_id, RESULT, self.digest, deleted=True)[:1]:
            self.client.restore_run(run.info.run_id)
            return True
        return False

    def _create(self) -> str:
        experiment = os.environ.get("DVC_EXP_NAME")
        name = experiment or f"{self.params.backbone} {trained(self.params)} {self.digest[:7]}"
        tags = {RESULT: self.digest, "mlflow.source.name": "dvc repro", "mlflow.source.type": "PROJECT"} | revision()
        tags |= filters(self.params) | {"trained": trained(self.params)} | ({EXPERIMENT: experiment} if experiment else {})
        run_id: str = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        return run_id

    def live(self) -> Live:
        return Live(self.client, self.run_id)


class Live:
    """finetune's curve, epoch by epoch. Epochs that the run already has are not sent again. Of several repeats of the
    training the first has the names that a single one has, and the others have their numbers in theirs."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.seen: dict[str, set[int]] = {}  # by what stands before the names of metrics

    def __call__(self, row: dict[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        step, repeat, now = int(row["epoch"]), int(row.get("repeat", 1)), get_current_time_millis()
        prefix = LIVE if repeat == 1 else f"{LIVE}repeat-{repeat}/"
        if prefix not in self.seen:
            self.seen[prefix] = {m.step for m in self.client.get_metric_history(self.run_id, f"{prefix}val_log_loss")}
        if step in self.seen[prefix]:
            return
        values = {key: float(value) for key, value in row.items() if key not in ("epoch", "repeat")}
        self.client.log_batch(self.run_id, metrics=[Metric(f"{prefix}{key}", v, now, step) for key, v in values.items()])
        self.seen[prefix].add(step)

    def catch_up(self, data: DataFolder) -> None:
        """Send the epochs of a curve that came from the cache."""
        import pandas as pd

        for row in pd.read_csv(data.finetune.curve).to_dict("records"):
            self({str(key): float(value) for key, value in row.items()})


def live(data: DataFolder, params: Params) -> Callable[[dict[str, float]], None]:
    """To be called with the rows of the curve. Training does not wait for a store that does not answer, or no longer: then
    there is a word to the user, once, and ``track`` sends what is missing."""
    curve: list[Live] = []

    def send(row: dict[str, float]) -> None:
        for one in curve:
            one(row)

    def tried(step: Callable[[], object]) -> None:
        try:
            with answering():
                step()
        except HeadstartError as error:
            curve.clear()
            say(f"the curve is not shown live: {error}")

    tried(lambda: curve.append(ResultRun(params, result_digest(data)).live()))
    return lambda row: tried(lambda: send(row))


def trained(params: Params) -> str:
    """What is trained, in a word: head, last, half or all; scratch where the network starts from random weights."""
    if not params.finetune_is_on:
        return "head"
    return "scratch" if params.weights == "none" else params.finetune.unfreeze


def filters(params: Params) -> dict[str, str]:
    """Tags that people look for runs by, from the first moment on: tags.backbone = 'resnet18'."""
    return {"backbone": params.backbone, "source": masked(params.data.source)}


def revision() -> dict[str, str]:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout(), capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": found.stdout.strip()} if found.returncode == 0 else {}


def as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
