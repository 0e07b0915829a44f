"""The runs of one tuning in the user's MLflow store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headstart.base.artifacts.tune import Knobs, Trial, Tuning
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.terminal import say
from headstart.tracking.store import experiment_id, opened, tagged

if TYPE_CHECKING:
    from mlflow import MlflowClient
from headstart.tracking.runs import COMPLETE, Live, as_text, filters, revision

STUDY, TRIAL = "headstart.study", "headstart.trial"


class StudyRuns:
    """The runs of one tuning in the user's MLflow store: a parent, and below it one run per trial. Each is known by a tag,
    so that a tuning that goes on finds those it has.

    Nothing waits for the store, and nothing is lost where it does not answer: a word to the user, it is left alone until
    the tuning is over, and ``finish``, of this run or the next, sends what it has not got.
    """

    def __init__(self, params: Params, study: str) -> None:
        self.params, self.study = params, study
        self.answers = True

    def live(self, number: int, knobs: Knobs) -> Callable[[dict[str, float]], None]:
        """To be called with the rows of the curve of the trial with that number while it trains."""
        live: list[Live] = []
        if self.answers:
            with self._or_a_word(), opened() as client:
                live = [Live(client, self._trial(client, number, knobs))]

        def send(row: dict[str, float]) -> None:
            for one in live if self.answers else []:
                with self._or_a_word(), opened():
                    one(row)

        return send

    def log(self, trial: Trial, curve: list[dict[str, float]]) -> None:
        """See to it that a trial that is over is in the store, whole: its knobs, curve, final metrics and state."""
        if self.answers:
            with self._or_a_word(), opened() as client:
                self._log(client, trial, curve)

    def finish(self, tuning: Tuning, curves: dict[int, list[dict[str, float]]]) -> None:
        """See to it that all trials are in the store, and the outcome on the parent: what tune.json says in one sentence is
        its description.

        Args:
            curves: by the number of the trial.
        """
        with self._or_a_word(), opened() as client:
            for trial in tuning.trials:
                self._log(client, trial, curves[trial.trial])
            run_id = self._parent(client)
            client.set_tag(run_id, "mlflow.note.content", tuning.sentence)
            whole = [t.val_log_loss for t in tuning.trials if t.state == "complete" and t.val_log_loss is not None]
            if whole:
                client.log_metric(run_id, "val_log_loss", min(whole), step=len(tuning.trials))
            client.set_terminated(run_id)

    @contextmanager
    def _or_a_word(self) -> Iterator[None]:
        try:
            yield
        except HeadstartError as error:
            self.answers = False
            say(f"headstart: the trials are not shown in MLflow for now: {error}")

    def _log(self, client: MlflowClient, trial: Trial, curve: list[dict[str, float]]) -> None:
        from mlflow.entities import Metric

        run = client.get_run(self._trial(client, trial.trial, trial.knobs))
        if COMPLETE in run.data.tags:
            return
        live = Live(client, run.info.run_id)
        for row in curve:
            live(row)
        numbers = {"val_log_loss": trial.val_log_loss, "val_accuracy": trial.val_accuracy, "minutes": trial.minutes}
        metrics = [Metric(key, float(value), 0, 0) for key, value in numbers.items() if value is not None]
        client.log_batch(run.info.run_id, metrics=metrics)
        client.set_terminated(run.info.run_id, _STATUS[trial.state])
        for key, value in {"state": trial.state, "note": trial.note, COMPLETE: "true"}.items():
            if value:
                client.set_tag(run.info.run_id, key, value)

    def _parent(self, client: MlflowClient) -> str:
        from mlflow.entities import Param

        name = f"tune {self.params.backbone} {self.study[:7]}"
        run_id = self._found_or_created(client, STUDY, self.study, name)
        space = {f"tune.space.{key}": as_text(values) for key, values in self.params.tune.space.items()}
        client.log_batch(run_id, params=[Param(key, value) for key, value in space.items()])
        return run_id

    def _trial(self, client: MlflowClient, number: int, knobs: Knobs) -> str:
        from mlflow.entities import Param

        tags = {"mlflow.parentRunId": self._parent(client)}
        digest = hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:20]
        run_id = self._found_or_created(client, TRIAL, f"{self.study}/{digest}", f"trial {number}", tags)
        params = [Param(f"finetune.{key}", str(value)) for key, value in knobs.items()]
        client.log_batch(run_id, params=params)
        return run_id

    def _found_or_created(
        self, client: MlflowClient, tag: str, value: str, name: str, tags: dict[str, str] | None = None
    ) -> str:
        experiment = experiment_id(client, self.params.experiment)
        for run in tagged(client, experiment, tag, value):
            return str(run.info.run_id)
        source = {"mlflow.source.name": "dvc repro studies/dvc.yaml:tune", "mlflow.source.type": "PROJECT"} | revision()
        every = {tag: value} | source | filters(self.params)
        created = client.create_run(experiment, run_name=name, tags=every | (tags or {}))
        return str(created.info.run_id)


_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}  # as MLflow has it
