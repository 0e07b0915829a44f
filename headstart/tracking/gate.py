"""The gate: may the newest result take over? Champion and challenger answer the same pictures of today's test split, and
the rules of the section ``gate`` in params.yaml decide."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts import DATA, DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.metrics import Chance
from headstart.base.artifacts.track import TrackedResult
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import write_json
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.base.sections import AUTO
from headstart.data.manifest import class_names, read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation.intervals import numbered
from headstart.evaluation.metrics import Scores
from headstart.inference.predictor import BATCH, Predictor, load_predictor
from headstart.models.task import MultiLabel, Task
from headstart.tracking.judge import LISTED, NO_CHANCE, Decision, Side, judge, metric_of
from headstart.tracking.registry import LONGEST_WHY, ROLLED_BACK, Registry, Version
from headstart.tracking.result import result_digest
from headstart.tracking.store import opened

FOLDER = "gate"  # among a run's artifacts
FORMER = "headstart"  # what the one registered model of all sources was once called
TIMED = 5  # batches, at least


def run(data: DataFolder, params: Params, trust: bool = False) -> Decision:
    """Decide on the result that the stages' folders hold, and act on it: the champion's alias is moved, or is not.

    The decision goes to data/gate/decision.json, to the run in MLflow and to the version in the registry, there last. One
    that is there already is handed back and not taken again.

    Args:
        trust: as for ``Registry.download``, of the champion.

    Raises:
        HeadstartError: the result is not whole or not registered, or the store does not answer.
    """
    registry = Registry(params)
    version = _registered(registry, data, params)
    file = data.gate.decision
    decision = _taken(registry, version)
    if decision is None:
        decision = _compare(registry, version, data, params, trust)
        write_json(file, asdict(decision))
        _log(version, decision, file)
        if decision.outcome == "promoted":
            registry.promote(version, decision.sentence[:LONGEST_WHY])
        else:
            registry.decide(version, decision.outcome, decision.sentence)
    else:
        write_json(file, asdict(decision))
        if version.outcome is None:  # of a champion by MLflow's own alias: it is told once, not every month
            registry.decide(version, decision.outcome, decision.sentence)
    return decision


def _registered(registry: Registry, data: DataFolder, params: Params) -> Version:
    result = TrackedResult.read(data.track.details).result
    if result != result_digest(data):
        raise HeadstartError(
            f"{data} is not of one result: code, parameters or pictures have changed since it was tracked; run `dvc repro`"
        )
    version = registry.by_result(result)
    if version is None:
        why = "`headstart track` registers it" if params.tracking.model else "tracking.model is false, so it has no model"
        raise HeadstartError(f"result {result[:7]} is not registered as a version of {registry.name}: {why}")
    if registry.is_lost(version):
        raise HeadstartError(
            f"the run or the files of version {version.number} of {registry.name} were deleted in MLflow; run "
            "`headstart track`, which logs them again"
        )
    return version


def _taken(registry: Registry, version: Version) -> Decision | None:
    """The decision that the registry has on the version already; None where there is none."""
    champion = registry.champion()
    if version.outcome is None:
        if champion is None or champion.number != version.number:
            return None
        return Decision("promoted", f"Version {version.number} is the champion; it was made so in MLflow.", {})
    if version.outcome == ROLLED_BACK:
        back = f"Version {version.number} was rolled back: {version.decision}"
        return Decision("refused", f"{back} (`headstart promote {version.number} --why ...` takes it again.)", {})
    with registry.artifact(version, f"{FOLDER}/{DATA.gate.decision.name}") as file:
        logged = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    if logged.get("outcome") == version.outcome:
        return Decision(**logged)
    return Decision(version.outcome, f"Version {version.number} was {version.outcome} by hand: {version.decision}", {})


def _log(version: Version, decision: Decision, file: Path) -> None:
    """The decision with the challenger's run: tags, metrics, and the file with everything."""
    from mlflow.entities import Metric, RunTag

    numbers = decision.numbers
    metrics = {f"gate/gain/{key}": value for key, value in numbers.get("gain", {}).items()}
    for side in ("champion", "challenger"):
        metrics |= {f"gate/{side}/{key}": value for key, value in numbers.get(side, {}).items() if key != "version"}
    if "slowdown" in numbers:
        metrics |= {"gate/slowdown": numbers["slowdown"], "gate/mcnemar_p": numbers["mcnemar"]["p"]}
    tags = [RunTag("gate", decision.outcome), RunTag("gate.sentence", decision.sentence[:5000])]
    with opened() as client:
        client.log_batch(version.run_id, [Metric(key, float(value), 0, 0) for key, value in metrics.items()], [], tags)
        client.log_artifact(version.run_id, str(file), FOLDER)


# --- the predictions of both --------------------------------------------------------------------------------------------


def _compare(registry: Registry, version: Version, data: DataFolder, params: Params, trust: bool) -> Decision:
    champion = registry.champion()
    models = [load_predictor(data.package.model)]
    task: Task = models[0].model.task
    metric_of(params.gate, task)
    learned: set[str] = set()
    if champion is not None:
        models.append(load_predictor(registry.download(champion, trust)))
        if models[1].model.task.kind != task.kind:
            sentence = (
                f"Version {version.number} is refused: it is {task.kind} and the champion, version {champion.number}, is "
                f"{models[1].model.task.kind}, so nothing can be compared; promote by hand."
            )
            return Decision("refused", sentence, {})
        new, gone = (_named(set(a.classes) - set(b.classes)) for a, b in (models, models[::-1]))
        if new and gone:  # where classes only came, or only went, they answer the same question
            sentence = (
                f"Version {version.number} is refused: version {champion.number} of {registry.name} has other classes "
                f"({gone}; not {new}), so nothing can be compared. For other pictures set another registry.model (auto: "
                "one for each data.source); if classes were renamed, promote by hand."
            )
            return Decision("refused", sentence, {})
        learned = registry.learned(champion)
    manifest, pixels = read_manifest(data.prepare), Pixels(data.prepare)
    on_test = manifest["split"] == "test"
    fair = on_test & ~manifest["sha256"].isin(learned)  # what the champion has learned from tells nothing
    left_out = int(on_test.sum() - fair.sum())
    rows = np.flatnonzero(fair)
    if not len(rows):
        assert champion is not None
        sentence = (
            f"Version {version.number} is refused: version {champion.number} has learned from every picture of today's "
            "test split, so nothing can be compared; see what has changed in the split, or promote by hand."
        )
        return Decision("refused", sentence, {"pictures": 0, "left_out": left_out})
    names = sorted({*class_names(manifest), *(name for model in models for name in model.classes)})
    labels = task.labels_of(manifest.iloc[rows], names)
    groups = numbered(manifest["group"].to_numpy(str)[rows])
    device = set_up(params.threads)
    predictions = _predictions(models, pixels, rows, device)
    versions = [version, *([champion] if champion is not None else [])]
    sides = [
        Side(
            number=of.number,
            scores=_scores(model, probabilities, labels, groups, names),
            known=frozenset(map(names.index, model.classes)),
            seconds=seconds,
            arithmetic=of.arithmetic,
            training=_training(model, params.gate.metric),
        )
        for of, model, (probabilities, seconds) in zip(versions, models, predictions, strict=True)
    ]
    before = sides[1] if champion is not None else None
    audit = AuditReport.read_if_made(data.prepare.audit)
    shortcuts = audit.known_shortcuts() if audit else []
    reason = params.gate.accept_shortcut
    decision = judge(
        before, sides[0], names, params.gate, params.evaluate.bootstrap, params.seed, left_out, [] if reason else shortcuts
    )
    if reason and shortcuts:
        decision = _with(decision, f"A shortcut is known and accepted: {reason.rstrip('.')}.")
    return _with(decision, _former_champion(params)) if champion is None else decision


def _with(decision: Decision, more: str) -> Decision:
    return replace(decision, sentence=f"{decision.sentence} {more}") if more else decision


def _named(classes: set[str]) -> str:
    return ", ".join(sorted(classes)[:LISTED]) + (", ..." if len(classes) > LISTED else "")


def _former_champion(params: Params) -> str:
    """A sentence on a champion from the time when the results of all sources were versions of one model."""
    if params.registry.model != AUTO:
        return ""
    former = Registry(params.model_copy(update={"registry": params.registry.model_copy(update={"model": FORMER})}))
    champion = former.champion()
    if champion is None:
        return ""
    return (
        f"Version {champion.number} of {FORMER} stays as it is, and was not compared: each data.source has a model of its "
        f"own now. To go on with that one, set registry.model: {FORMER}."
    )


def _predictions(models: list[Predictor], pixels: Pixels, rows: Ints, device: torch.device) -> list[tuple[Floats, float]]:
    """Of each model: (N, its classes) calibrated probabilities of the pictures ``rows``, and seconds per picture.

    The models take turns, batch by batch, so that whatever else the machine does meets all of them; the quickest batch of
    each is its time, as what disturbs can only make a batch slower.
    """
    size = min(BATCH, len(rows))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    again = [chunks[0]] * (TIMED - sum(len(chunk) == size for chunk in chunks))
    batches: list[list[Floats]] = [[] for _ in models]
    quickest = [float("inf")] * len(models)
    for predictor in models:
        predictor.model.to(device)
    with progress("gate", len(rows)) as advance:
        for turn, chunk in enumerate(chunks + again):
            pictures = [pixels[int(row)] for row in chunk]
            for number, predictor in enumerate(models):
                model, start = predictor.model, time.perf_counter()
                with torch.inference_mode():
                    batch = model.probabilities(model(model.trunk.view.batch(pictures).to(device)).double()).cpu().numpy()
                if len(chunk) == size:
                    quickest[number] = min(quickest[number], (time.perf_counter() - start) / size)
                if turn < len(chunks):
                    batches[number].append(batch)
            advance(len(chunk) if turn < len(chunks) else 0)
    return [(np.concatenate(parts), seconds) for parts, seconds in zip(batches, quickest, strict=True)]


def _training(model: Predictor, metric: str) -> Chance | None:
    """What another training would change of a metric; None where that is not known, as it was trained once."""
    if model.details.chosen == "head":
        return NO_CHANCE
    return model.details.training.get(metric) if model.details.training else None


def _scores(model: Predictor, probabilities: Floats, labels: Ints, groups: Ints | None, names: list[str]) -> Scores:
    """With the classes ``names``; those that the model does not know have the probability 0."""
    columns = [names.index(name) for name in model.classes]
    wide = np.zeros((len(probabilities), len(names)))
    wide[:, columns] = probabilities
    task: Task = model.model.task
    if task.thresholds is not None:
        thresholds = dict(zip(columns, task.thresholds, strict=True))
        task = MultiLabel(tuple(thresholds.get(column, 0.5) for column in range(len(names))))
    return Scores(wide, labels, task, groups)


# --- the rules ----------------------------------------------------------------------------------------------------------
