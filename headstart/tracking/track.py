"""track: one MLflow run per result, complete even where every stage came from the cache.

A result is known by the digest of what it was made from, kept as the tag ``headstart.result``. ``finetune`` opens the run
to stream its curve, ``track`` finds it by that tag and completes it; a result that is complete is not logged again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from statistics import stdev
from typing import Any

from headstart.base.artifacts import DataFolder, ModelFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.classifier import ClassifierDetails
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.head import HeadDetails
from headstart.base.artifacts.metrics import Metrics
from headstart.base.artifacts.track import TrackedResult
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.safe_text import masked
from headstart.base.terminal import say
from headstart.base.threads import cores
from headstart.evaluation.metrics import ACCURACY
from headstart.evaluation.summary import headline
from headstart.inference.provenance import check_whole, digest_of_model
from headstart.tracking import model_card
from headstart.tracking.registry import Registry
from headstart.tracking.result import flattened, params_of_the_result, result_digest, stages_of_the_result
from headstart.tracking.runs import COMPLETE, ResultRun, as_text, revision
from headstart.tracking.store import GONE, MODEL, short, twice, unless, uri

READABLE = (".csv", ".html", ".json", ".parquet", ".png")


class Tracker(ResultRun):
    """Completes the run of a result from the stages' files."""

    def log_result(self, data: DataFolder) -> None:
        """Log everything from the stages' files and mark the run complete."""
        from mlflow.entities import Metric, Param

        client, run = self.client, self.run_id
        twice(client.log_batch, run, params=[Param(key, value) for key, value in comparable(self.params).items()])
        numbers = stage_metrics(data)
        client.log_batch(run, metrics=[Metric(key, value, 0, 0) for key, value in numbers.items()])
        self.live().catch_up(data)
        measured = Metrics.read(data.evaluate.metrics)
        results = {
            "chosen": measured.chosen,
            **made_on(data),
            "mlflow.note.content": headline(measured),
        }
        self._tag(_host(self.params.threads) | results)
        self._log_dataset(data)
        self._log_files(data)
        self._log_images(data.evaluate.figures)
        card = self._card(data)
        client.log_text(run, card, model_card.FILE)
        if self.params.tracking.model:
            self._log_model(data.package.model, numbers)
        self.register(data, card)
        client.set_terminated(run)
        self._tag({COMPLETE: "true"})  # last: what has it is not looked at again

    def _tag(self, tags: dict[str, str]) -> None:
        """As a batch, which MLflow tries again where another checkout that logs the same result has set one just now."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def is_whole(self, data: DataFolder) -> bool:
        """Whether a run that was completed still has its files, and its model: they may have been deleted since."""
        wanted = [*self._files(data), (Path(model_card.FILE), None)]
        listed = {place: self.client.list_artifacts(self.run_id, place) for place in dict.fromkeys(p for _, p in wanted)}
        there = {(PurePosixPath(file.path).name, place) for place, files in listed.items() for file in files}
        if not {(path.name, place) for path, place in wanted} <= there:
            return False
        model = self._logged_model()
        return not self.params.tracking.model or (model is not None and self._has_files(model))

    def _log_files(self, data: DataFolder) -> None:
        for path, place in self._files(data):
            self.client.log_artifact(self.run_id, str(path), place)

    def _files(self, data: DataFolder) -> Iterator[tuple[Path, str | None]]:
        """What people can read of every stage's files, and its folder in the run: those of evaluate at the top, others in a
        folder named after theirs. The package is logged as a model."""
        for stage in stages_of_the_result():
            folder = data / stage
            for path in sorted(folder.rglob("*")) if stage != "package" else []:
                if path.suffix in READABLE and path != data.prepare.pixels_index:
                    place = path.parent.relative_to(folder if stage == "evaluate" else data).as_posix()
                    yield path, None if place == "." else place

    def _log_images(self, folder: Path) -> None:
        """The figures a second time, as MLflow's logged images: its charts put those of several runs side by side, files
        among the artifacts they do not. What a run that was killed here has logged is not logged again."""
        from PIL import Image

        logged = {Path(file.path).name.split("+")[0] for file in self.client.list_artifacts(self.run_id, "images")}
        for path in sorted(folder.glob("*.png")):
            if f"figures~{path.stem}" not in logged:  # MLflow writes a key's slashes so
                with Image.open(path) as figure:
                    self.client.log_image(self.run_id, figure, key=f"figures/{path.stem}", step=0)

    def register(self, data: DataFolder, card: str | None = None) -> None:
        """See to it that the result has its version in the registry, unless it is to have none or has no model.

        Args:
            card: the model card; None: one that was made long ago is registered, if it is not yet.
        """
        model = self._logged_model()
        if self.params.registered_model is None or model is None:
            return
        registry = Registry(self.params)
        if card is None and (version := registry.by_result(self.digest)) and not registry.is_lost(version):
            return
        tags = {MODEL: digest_of_model(data.package.model)} | self._lineage(data)
        registry.register(self.run_id, self.digest, model, card or self._card(data), tags)

    def _card(self, data: DataFolder) -> str:
        return model_card.card(data, self.params, {"MLflow run": self.run_id} | self._lineage(data))

    def _lineage(self, data: DataFolder) -> dict[str, str]:
        return model_card.lineage(data, self.digest) | revision()

    def _logged_model(self) -> str | None:
        """The id of the run's model, which is linked to the run once it is whole; None where it was deleted."""
        outputs = self.client.get_run(self.run_id).outputs
        model = outputs.model_outputs[-1].model_id if outputs and outputs.model_outputs else None
        return model if model and unless(GONE, self.client.get_logged_model, model) else None

    def _has_files(self, model: str) -> bool:
        return bool(unless(GONE, self.client.list_logged_model_artifacts, model))

    def _log_dataset(self, data: DataFolder) -> None:
        import mlflow
        import pandas as pd
        from mlflow.entities import Dataset, DatasetInput, InputTag

        manifest = pd.read_parquet(data.prepare.manifest)
        source = masked(self.params.data.source)
        digest = hashlib.sha256(data.prepare.manifest.read_bytes()).hexdigest()[:16]
        columns = manifest[["path", "label", "split", "sha256"]]  # MLflow takes no lists, such as the column labels
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*source can be interpreted in multiple ways")
            dataset = mlflow.data.from_pandas(
                columns, source=source, name=source.rsplit("/", 1)[-1], targets="label", digest=digest
            )
        inputs = [DatasetInput(Dataset(**dataset.to_dict()), [InputTag("mlflow.data.context", "training")])]
        twice(self.client.log_inputs, self.run_id, datasets=inputs)

    def _log_model(self, folder: ModelFolder, numbers: dict[str, float]) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        if model_id := self._logged_model():
            if not self._has_files(model_id):
                self.client.log_model_artifacts(model_id, str(folder))
            return
        details = ClassifierDetails.read(folder.classifier.details)
        kept = {"backbone": details.backbone, "chosen": details.chosen, "classes": str(len(details.classes))}
        model = self.client.create_logged_model(
            self.experiment_id, "model", source_run_id=self.run_id, model_type="classifier", params=kept
        )
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if self._logged_model():  # another checkout has logged the same result meanwhile
            self.client.delete_logged_model(model.model_id)
            return
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, 0)])
        shown = f"test/chosen/{ACCURACY.name}"
        self.client.log_metric(self.run_id, shown, numbers[shown], model_id=model.model_id)


def track(data: DataFolder, params: Params) -> str:
    """Log the result that the stages' folders hold, once, and write its digest into data/track.

    Returns:
        A sentence for the user.
    """
    check_whole(data.package.model)
    digest = result_digest(data)
    tracker = Tracker(params, digest)
    if tracker.complete and tracker.is_whole(data):
        tracker.register(data)  # one that was logged before there was a registry
        already = "was deleted in MLflow and is back" if tracker.was_deleted else "is already in MLflow"
        sentence = f"result {digest[:7]} {already} (run {tracker.run_id}); nothing logged twice"
    else:
        try:
            tracker.log_result(data)
        except HeadstartError:
            raise
        except Exception as error:
            raise HeadstartError(
                f"MLflow at {uri()} did not take the result: {short(error)}; run it again to go on"
            ) from None
        sentence = f"logged result {digest[:7]} to MLflow as run {tracker.run_id}; look at it with `headstart ui`"
    TrackedResult(result=digest, experiment=params.experiment).write(data.track.details)
    return sentence


def comparable(params: Params) -> dict[str, str]:
    """The parameters that make a result, so that MLflow can lay them side by side: {"finetune.lr": "0.001"}.

    A parameter that is a number in one run and a word in another is no axis of a plot. So what is null is left out, and a
    list of one number is that number.
    """
    return {key: masked(as_text(value)) for key, value in params_of_the_result(params).items() if value is not None}


def stage_metrics(data: DataFolder) -> dict[str, float]:
    """Every number the stages report, under names that group in the UI: test/chosen/accuracy, val/chosen/accuracy."""
    audit = AuditReport.read(data.prepare.audit)
    head = HeadDetails.read(data.head.details)
    tuned = FinetuneDetails.read(data.finetune.details)
    card = Card.read(data.backbone.card)
    measured = Metrics.read(data.evaluate.metrics)
    chosen = {"val": {"chosen": measured.val[measured.chosen]}, "test": {"chosen": measured.test[measured.chosen]}}
    numbers: dict[str, float] = {  # a run's page has them in this order
        key.replace(".", "/"): value
        for key, value in [*_numbers(chosen), *_numbers(measured.model_dump(exclude={"head_share", "repeats"}))]
    }
    numbers |= {"prepare/kept": audit.kept, "prepare/dropped": len(audit.dropped), "prepare/leaks": audit.leaks}
    numbers |= {"head/C": head.C, "head/temperature": head.refit_temperature}
    numbers |= {f"backbone/{key}": getattr(card, key) for key in ("parameters", "gmacs", "features")}
    if measured.head_share is not None:
        numbers["ensemble/head_share"] = measured.head_share
    for name, by_split in (measured.repeats.each if measured.repeats else {}).items():
        numbers |= {f"repeats/{name}/{key}_std": stdev(found) for key, found in by_split["test"].items()}
    if tuned.ran:
        names = ("best_epoch", "epochs", "temperature", "trained_share", "size")
        numbers |= {f"finetune/{key}": getattr(tuned, key) for key in names}
    return {key: float(value) for key, value in numbers.items()}


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in flattened(values).items():
        if isinstance(value, int | float):
            yield key, value


def made_on(data: DataFolder) -> dict[str, str]:
    """Tags: engine, kind of processor and threads of the features, and of fine-tuning where there was any."""
    features, tuned = FeaturesDetails.read(data.features.details), FinetuneDetails.read(data.finetune.details)
    tags = {key: str(getattr(features, key)) for key in ("engine", "processor", "threads")}
    if tuned.ran:
        tags["training.engine"] = tuned.frozen_part.engine
        tags |= {f"training.{key}": str(getattr(tuned, key)) for key in ("processor", "threads")}
    return tags


def _host(threads: int | None) -> dict[str, str]:
    device = "cpu"
    if shutil.which("nvidia-smi") or sys.platform == "darwin":  # torch takes seconds to import
        from headstart.base.device import accelerator_name

        device = accelerator_name() or "cpu"
    return {
        "host.machine": platform.machine(),
        "host.device": device,
        "host.threads": str(threads or cores()),
        "host.python": platform.python_version(),
        "host.torch": importlib.metadata.version("torch"),
    }


def run(params: Params, data: DataFolder) -> None:
    """The stage track: log this result to MLflow, once."""
    say(track(data, params))
