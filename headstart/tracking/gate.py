"""The gate: may the newest result take over? Champion and challenger answer the same pictures of today's test split, and
the rules of the section ``gate`` in params.yaml decide."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts import DATA, DataFolder
from headstart.base.artifacts.track import TrackedResult
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import write_json
from headstart.base.params import Gate, Params
from headstart.base.progress import progress
from headstart.data.manifest import class_names, read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation.intervals import bootstrap, paired_difference, percentile_interval, permutation_p_value
from headstart.evaluation.metrics import METRICS, Metric, Scores, measured, metrics_of
from headstart.evaluation.summary import interval
from headstart.inference.predictor import BATCH, Predictor, load_predictor
from headstart.models.task import MultiLabel, Task
from headstart.tracking.registry import LONGEST_WHY, ROLLED_BACK, Registry, Version
from headstart.tracking.result import result_digest
from headstart.tracking.store import opened

FOLDER = "gate"  # among a run's artifacts
TIMED = 5  # batches, at least
PERFECT_DRAWS = 1000
MOST_AT_ONCE = 1 << 24  # drawn numbers: 128 MB
LISTED = 3  # classes that a sentence names


@dataclass(frozen=True)
class Decision:
    """What came of it.

    Attributes:
        outcome: promoted, kept (the champion stays, as the other is not clearly better) or refused (a rule is broken).
        sentence: the outcome with the figures behind it.
        numbers: everything that was measured; empty where a person decided.
    """

    outcome: str
    sentence: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Champion or challenger, and its scores on the test pictures.

    Attributes:
        number: of its version.
        scores: with the classes of both sides and of the pictures, in one order; those that it does not know have the
            probability 0.
        known: numbers of the classes that it knows.
        seconds: per picture, resizing included and decoding not.
        arithmetic: what it was made on and with, in words; empty where that is not known.
    """

    number: int
    scores: Scores
    known: frozenset[int]
    seconds: float
    arithmetic: str = ""


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
    _metric(params.gate, task)
    learned: set[str] = set()
    if champion is not None:
        models.append(load_predictor(registry.download(champion, trust)))
        if models[1].model.task.kind != task.kind:
            sentence = (
                f"Version {version.number} is refused: it is {task.kind} and the champion, version {champion.number}, is "
                f"{models[1].model.task.kind}, so nothing can be compared; promote by hand."
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
    device = set_up(params.threads)
    predictions = _predictions(models, pixels, rows, device)
    versions = [version, *([champion] if champion is not None else [])]
    sides = [
        _side(of, model, probabilities, seconds, labels, names)
        for of, model, (probabilities, seconds) in zip(versions, models, predictions, strict=True)
    ]
    before = sides[1] if champion is not None else None
    return judge(before, sides[0], names, params.gate, params.evaluate.bootstrap, params.seed, left_out)


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


def _side(
    version: Version, model: Predictor, probabilities: Floats, seconds: float, labels: Ints, names: list[str]
) -> Side:
    columns = [names.index(name) for name in model.classes]
    wide = np.zeros((len(probabilities), len(names)))
    wide[:, columns] = probabilities
    task: Task = model.model.task
    if task.thresholds is not None:
        thresholds = dict(zip(columns, task.thresholds, strict=True))
        task = MultiLabel(tuple(thresholds.get(column, 0.5) for column in range(len(names))))
    scores = Scores(wide, labels, task)
    return Side(version.number, scores, frozenset(columns), seconds, version.arithmetic)


# --- the rules ----------------------------------------------------------------------------------------------------------


def judge(
    champion: Side | None,
    challenger: Side,
    names: list[str],
    rules: Gate,
    resamples: int,
    seed: int,
    left_out: int = 0,
) -> Decision:
    """Hold two sides that answered the same pictures against the rules.

    Args:
        champion: None where there is none yet.
        names: of the classes.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        left_out: test pictures that were not compared, as the champion has learned from them.
    """
    metric = _metric(rules, challenger.scores.task)
    after = measured(challenger.scores, resamples, seed)
    n = len(challenger.scores.labels)
    numbers: dict[str, Any] = {"pictures": n, "left_out": left_out, "metric": rules.metric}
    numbers["challenger"] = {"version": challenger.number, "seconds_per_picture": challenger.seconds, **after}
    if champion is None:
        sentence = (
            f"Version {challenger.number} is the first champion: there was none to compare it with. "
            f"{metric.heading} {interval(after, metric.name)} on {n} test pictures."
        )
        return Decision("promoted", sentence, numbers)
    before = measured(champion.scores, resamples, seed)
    numbers["champion"] = {"version": champion.number, "seconds_per_picture": champion.seconds, **before}
    numbers["gain"] = gain = _gain(champion, challenger, metric, resamples, seed)
    difference = paired_difference(champion.scores.correct, challenger.scores.correct)
    numbers["mcnemar"] = {
        "only_challenger_right": difference.gained,
        "only_champion_right": difference.lost,
        "p": difference.p_value(),
    }
    numbers["unknown_to_champion"] = [names[c] for c in _present(challenger.scores) if c not in champion.known]
    numbers["classes"] = _classes(champion.scores, challenger.scores, names, rules)
    numbers["ece_by_chance"] = _ece_by_chance(challenger.scores, seed)
    numbers["slowdown"] = challenger.seconds / champion.seconds
    if champion.arithmetic != challenger.arithmetic:
        numbers["arithmetic"] = {"champion": champion.arithmetic, "challenger": challenger.arithmetic}
    broken = _broken(numbers, rules)
    numbers["broken"] = broken
    compared = _compared(champion, challenger, numbers)
    if broken:
        sentence = f"Version {challenger.number} is refused: {'; '.join(broken)}. {compared}"
        return Decision("refused", sentence, numbers)
    if gain["value"] < 0 or gain["p"] > rules.max_p:
        doubt = f"version {challenger.number} is not clearly better (gate.max_p {rules.max_p:g})"
        sentence = f"Version {champion.number} stays: {doubt}. {compared}"
        return Decision("kept", sentence, numbers)
    sentence = f"Version {challenger.number} takes over from version {champion.number}: every rule holds. {compared}"
    return Decision("promoted", sentence, numbers)


def _metric(rules: Gate, task: Task) -> Metric:
    """The metric that the two are compared by.

    Raises:
        HeadstartError: there is no such metric of this task.
    """
    goals = {metric.name: metric for metric in metrics_of(task) if metric.is_goal}
    if rules.metric not in goals:
        raise HeadstartError(f"gate.metric {rules.metric} is none of {task.kind} pictures; allowed: {', '.join(goals)}")
    return goals[rules.metric]


def _gain(champion: Side, challenger: Side, metric: Metric, resamples: int, seed: int) -> dict[str, float]:
    """By how much the challenger is better, with its paired 95 % bootstrap interval: each resample is drawn once and both
    are measured on it. ``p`` is how often one that is no better looks as good: by a permutation test, of which McNemar's is
    the exact form for accuracy.

    A class that one of them does not know has an infinite log-loss: such a metric is taken over the pictures of the others,
    or, where pictures have several labels, over the other classes.
    """
    before, after = champion.scores, challenger.scores
    rows = np.arange(len(after.labels))
    if not metric.is_bounded:
        known = sorted(champion.known & challenger.known)
        if isinstance(after.task, MultiLabel):
            before, after = (_of_classes(scores, known) if known else scores for scores in (before, after))
        else:
            of_known = np.isin(after.labels, known)
            rows = rows[of_known] if of_known.any() else rows
    n, sign = len(after.labels), 1 if metric.higher_is_better else -1
    both = before.joined(after)  # the challenger's answer to picture i is in row n + i

    def gain(those_before: Ints, those_after: Ints) -> float:
        difference = sign * (metric.measure(both, those_after) - metric.measure(both, those_before))
        return round(difference, 12)  # sums of the same addends in another order are equal

    low, high = percentile_interval(bootstrap(lambda drawn: gain(rows[drawn], rows[drawn] + n), len(rows), seed, resamples))
    if metric.is_proportion:
        p = paired_difference(before.correct, after.correct).p_value("greater")
    else:
        p = permutation_p_value(lambda swap: gain(rows + n * swap, rows + n * ~swap), len(rows), seed)
    return {
        "value": gain(rows, rows + n),
        "low": float(low),
        "high": float(high),
        "p": p,
        "champion": metric.measure(before, rows),
        "challenger": metric.measure(after, rows),
        "pictures": len(rows),
    }


def _of_classes(scores: Scores, columns: list[int]) -> Scores:
    """Those of some of the classes, where pictures may have several."""
    thresholds = scores.task.thresholds
    task = MultiLabel(None if thresholds is None else tuple(thresholds[column] for column in columns))
    return Scores(scores.probabilities[:, columns], scores.labels[:, columns], task)


def _present(scores: Scores) -> list[int]:
    """Numbers of the classes that the pictures have."""
    several = isinstance(scores.task, MultiLabel)
    numbers: list[int] = (np.flatnonzero(scores.labels.any(0)) if several else np.unique(scores.labels)).tolist()
    return numbers


def _recalled(scores: Scores, number: int) -> Bools:
    """Of each picture that has the class: whether it was predicted."""
    recalled: Bools
    if isinstance(scores.task, MultiLabel):
        recalled = scores.predicted[scores.labels[:, number] == 1, number] == 1
    else:
        recalled = scores.correct[scores.labels == number]
    return recalled


def _classes(before: Scores, after: Scores, names: list[str], rules: Gate) -> list[dict[str, Any]]:
    """Recall of each class that has test pictures, the greatest loss first."""
    rows = []
    for number in _present(after):
        recalled = _recalled(after, number)
        rows.append(
            {
                "class": names[number],
                "pictures": len(recalled),
                "champion": float(_recalled(before, number).mean()),
                "challenger": float(recalled.mean()),
                "judged": len(recalled) >= rules.min_pictures,
            }
        )
    return sorted(rows, key=lambda row: (row["challenger"] - row["champion"], row["class"]))


def _ece_by_chance(scores: Scores, seed: int) -> float:
    """The calibration error that a perfectly calibrated classifier, as confident as this one, stays below in 95 of 100
    draws of as many pictures: of few pictures, even such a one shows some (Bröcker & Smith 2007, "Increasing the
    reliability of reliability diagrams")."""
    confidence, bins = scores.claims[0].ravel(), scores.confidence_bins.ravel()
    order = np.argsort(bins, kind="stable")
    first_of_bin = np.flatnonzero(np.diff(bins[order], prepend=-1))
    chance, at_once = np.random.default_rng(seed), max(1, MOST_AT_ONCE // len(confidence))
    errors: Floats = np.zeros(PERFECT_DRAWS)
    for start in range(0, PERFECT_DRAWS, at_once):
        part = errors[start : start + at_once]
        gaps = (confidence - (chance.random((len(part), len(confidence))) < confidence))[:, order]
        part += np.abs(np.add.reduceat(gaps, first_of_bin, axis=1)).sum(axis=1) / len(confidence)
    return float(np.percentile(errors, 95))


def _broken(numbers: dict[str, Any], rules: Gate) -> list[str]:
    """What speaks against the challenger: a clause for each rule that it breaks."""
    broken = []
    gain, ece = numbers["gain"], numbers["challenger"]["ece"]
    if gain["value"] < -rules.margin:
        broken.append(
            f"{METRICS[rules.metric].heading} is {-gain['value']:.3f} worse, more than gate.margin {rules.margin:g} allows"
        )
    lost = [row for row in numbers["classes"] if row["judged"] and _loss(row) > rules.class_margin]
    if lost:
        named = ", ".join(
            f"{row['class']!r} from {row['champion']:.2f} to {row['challenger']:.2f} on {row['pictures']} pictures"
            for row in lost[:LISTED]
        )
        more = f" and of {len(lost) - LISTED} more" if len(lost) > LISTED else ""
        broken.append(f"recall fell by more than gate.class_margin {rules.class_margin:g}: {named}{more}")
    if ece > max(rules.max_ece, numbers["ece_by_chance"]):
        broken.append(f"its calibration error is {ece:.3f}, above gate.max_ece {rules.max_ece:g}")
    if numbers["slowdown"] > rules.max_slowdown:
        broken.append(
            f"it takes {numbers['slowdown']:.2f} times as long per picture, above gate.max_slowdown {rules.max_slowdown:g}"
        )
    return broken


def _loss(row: dict[str, Any]) -> float:
    return round(float(row["champion"] - row["challenger"]), 12)


def _compared(champion: Side, challenger: Side, numbers: dict[str, Any]) -> str:
    gain, unknown = numbers["gain"], numbers["unknown_to_champion"]
    sentence = (
        f"{METRICS[numbers['metric']].heading} {gain['challenger']:.3f} (version {challenger.number}) against "
        f"{gain['champion']:.3f} (version {champion.number}) on the same {gain['pictures']} test pictures; better by "
        f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}), p {gain['p']:.2g}."
    )
    if unknown:
        more = ", ..." if len(unknown) > LISTED else ""
        sentence += f" Version {champion.number} does not know {', '.join(unknown[:LISTED])}{more}: wrong on all of them."
    if numbers["left_out"]:
        sentence += f" {numbers['left_out']} test pictures that it has learned from were left out."
    if "arithmetic" in numbers:
        there, here = (numbers["arithmetic"][side] or "not known" for side in ("champion", "challenger"))
        sentence += f" Their arithmetic differs, which alone can change a few answers: {there}; now {here}."
    return sentence
