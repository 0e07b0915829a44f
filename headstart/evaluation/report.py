"""What came of it: metrics, predictions, figures and one self-contained page, from the stages' folders."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup

from headstart.base import files
from headstart.base.arrays import Ints
from headstart.base.artifacts import DataFolder, EvaluateFolder, FiguresFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.finetune import KEPT, FinetuneDetails
from headstart.base.artifacts.head import HeadDetails
from headstart.base.artifacts.members import first_of
from headstart.base.artifacts.metrics import Gain, Metrics, Name, WorstClass
from headstart.base.device import set_up
from headstart.base.files import replacing
from headstart.base.identity import made_by_other_code, recorded_libraries
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.base.terminal import say
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.batching import inference_batch
from headstart.evaluation import explain, figures, folds, heat, leaks, metrics, pages, subgroups, tables
from headstart.evaluation.intervals import numbered
from headstart.evaluation.metrics import ACCURACY, Metric, Scores, metrics_of
from headstart.evaluation.repeats import Logits, logits_of_repeats, measured_repeats
from headstart.evaluation.summary import arithmetic, headline, interval, of_heat, of_leaks, of_subgroup
from headstart.models.backbones import load_trunk
from headstart.models.classifier import Classifier, averaged
from headstart.models.heads import LinearHead
from headstart.models.task import Task
from headstart.models.trunk import members_of_trunk, plain
from headstart.training import finetuned, head_files
from headstart.training.feature_files import load_features
from headstart.training.linear_probe import within_one_standard_error

ALWAYS_REPORTED = ("val", "test")
ENSEMBLE_SHARES = (0.5, 0.25, 0.75)  # of the head; the simplest comes first
NO_CLASS = "(none)"  # in a confusion matrix of several labels: what was missed, or is not there
PAIRS_SHOWN = 24
MADE_BY = ("prepare", "backbone", "features", "head", "finetune", "evaluate")  # stages whose outputs the report is about


@dataclass(frozen=True)
class Candidates:
    """The classifiers to choose from, with what each says about validation and test."""

    classifiers: dict[Name, Classifier]
    scores: dict[Name, dict[str, Scores]]  # name → split → scores
    repeats: dict[Name, list[dict[str, Scores]]]  # the same of each of several trainings; empty where there was one
    head_share: float | None = None  # in the ensemble


@dataclass(frozen=True)
class ShownMistake:
    """A wrong answer as the page has it.

    Attributes:
        said: the answer; of several labels the one that is most wrong.
        label: the truth.
        seen, heat: addresses inside the page of the picture as the network saw it, and of that under its heat map.
    """

    said: str
    confidence: float
    label: str
    path: str
    seen: str
    heat: str | None


@dataclass(frozen=True)
class Shown:
    """What the page shows of the chosen classifier on test pictures.

    Attributes:
        metrics: the columns of the results.
        table: a row for each class.
        drawings: figures by name.
    """

    metrics: list[Metric]
    table: list[dict[str, Any]]
    drawings: dict[str, list[Markup]]
    mistakes: list[ShownMistake]


def evaluate(data: DataFolder, params: Params, device: torch.device, folder: EvaluateFolder) -> Metrics:
    """Choose on validation, measure on test, and write everything people look at into ``folder``.

    Args:
        data: the folder of the stages' folders.

    Returns:
        What metrics.json holds.
    """
    manifest, pixels = read_manifest(data.prepare), Pixels(data.prepare)
    pictures = folds.of_all_splits(data, manifest, device)
    parts = folds.folds_asked_for(params.evaluate.folds, pictures)  # before any work: it may be more than there can be
    candidates = _candidates(data, manifest, pixels, device)
    resamples, seed = params.evaluate.bootstrap, params.seed
    measured = {
        split: {name: metrics.measured(scores[split], resamples, seed) for name, scores in candidates.scores.items()}
        for split in ALWAYS_REPORTED
    }
    chosen = metrics.choose({name: scores["val"] for name, scores in candidates.scores.items()})
    gain, repeats = None, measured_repeats(data, candidates.repeats)
    if "finetune" in candidates.scores:
        gain = {
            split: Gain(
                **metrics.gain(
                    candidates.scores["head"][split],
                    candidates.scores["finetune"][split],
                    [repeats.chance("finetune", split)[ACCURACY.name]] if repeats else [],
                )
            )
            for split in ALWAYS_REPORTED
        }
    test = measured["test"] | {"chosen": measured["test"][chosen]}
    scores = candidates.scores[chosen]
    of_val, of_test = (int((manifest["split"] == split).sum()) for split in ALWAYS_REPORTED)
    audit = AuditReport.read(data.prepare.audit)
    learned, tested = pictures.features[:-of_test], pictures.features[-of_test:]
    classes = list(candidates.classifiers[chosen].classes)
    table = tables.per_class(scores["test"], classes)
    worst = table[0]  # there are test pictures, so it has some
    result = Metrics(
        chosen=chosen, val=measured["val"], test=test, gain=gain, repeats=repeats,
        head_share=candidates.head_share,
        thresholds=scores["val"].task.thresholds,
        worst_class=WorstClass(label=worst["class"], f1=worst["f1"], pictures=worst["pictures"]),
        folds=folds.estimate(pictures, parts, chosen, audit, params), shortcuts=audit.known_shortcuts() or None,
        leaks=leaks.find_leaks(manifest, learned, tested, scores["test"], resamples, seed),
        heat=heat.measure(candidates.classifiers[chosen], pixels, manifest, scores["test"], device),
        subgroups=subgroups.worst_subgroups(manifest, (learned[-of_val:], tested), scores["val"], scores["test"]),
    )  # fmt: skip
    drawings = _figures(data, folder.figures, result, scores["test"], classes)
    mistakes = _mistakes(candidates.classifiers[chosen], pixels, manifest, scores["test"], params.evaluate.mistakes, folder)
    with replacing(folder.predictions) as part:
        tables.predictions(manifest, scores, classes).to_parquet(part, index=False)
    files.write_rows(table, folder.figures.per_class)
    shown = Shown(metrics_of(scores["test"].task), table, drawings, mistakes)
    _write_page(data, params, result, shown, pixels, manifest, folder.report)
    result.write(folder.metrics)
    result.summary().write(folder.summary)
    return result


def _classifiers(data: DataFolder) -> dict[Name, Classifier]:
    head, final = head_files.load_start(data.head), head_files.load_head(data.head, refit=True)
    trunk, _ = load_trunk(data.backbone, data.fetch.network)
    tuned = finetuned.load_finetuned(data.finetune, plain(deepcopy(members_of_trunk(trunk)[0])), head)
    classifiers: dict[Name, Classifier] = {"head": Classifier(trunk, final).eval()}
    if tuned is not None:
        classifiers["finetune"] = tuned.eval()
    return classifiers


def _candidates(data: DataFolder, manifest: pd.DataFrame, pixels: Pixels, device: torch.device) -> Candidates:
    """The head's scores come from cached features; only the fine-tuned network is run on the test pictures."""
    classifiers = _classifiers(data)
    head, final = head_files.load_head(data.head), head_files.load_head(data.head, refit=True)
    labels, groups = {}, {}
    calibrated: dict[Name, Logits] = {"head": {}}  # name → split → (N, classes) logits
    for split, used in (("val", head), ("test", final)):
        features, numbers = load_features(data.features, split)
        labels[split] = numbers.numpy()
        groups[split] = numbered(manifest.loc[manifest["split"] == split, "group"].to_numpy(str))
        calibrated["head"][split] = used.logits(features).double() / used.temperature
    share, rows = None, np.flatnonzero(manifest["split"] == "test").tolist()
    if "finetune" in classifiers:
        model = classifiers["finetune"].to(device)
        batch = inference_batch(model, model.trunk.view, device)
        logits = []
        with progress("evaluate", len(rows)) as advance:
            for part in model.logits_of(pixels, rows, batch, device):
                logits.append(part)
                advance(len(part))
        found = {"val": finetuned.load_val_logits(data.finetune), "test": torch.cat(logits)}
        calibrated["finetune"] = {split: each.double() / model.temperature for split, each in found.items()}
        model.cpu()
        if isinstance(final.module, LinearHead):
            val = calibrated["head"]["val"], calibrated["finetune"]["val"], labels["val"]
            share = ensemble_share(*val, head.task, groups["val"])
            classifiers["ensemble"] = averaged([classifiers["head"], model], [share, 1 - share]).eval()
            calibrated["ensemble"] = {
                split: share * calibrated["head"][split] + (1 - share) * calibrated["finetune"][split]
                for split in ALWAYS_REPORTED
            }

    def scored(by: Logits) -> dict[str, Scores]:
        probabilities = {split: head.task.probabilities(each).numpy() for split, each in by.items()}
        task = head.task.with_thresholds(probabilities["val"], labels["val"])
        return {split: Scores(each, labels[split], task, groups[split]) for split, each in probabilities.items()}

    first, start = plain(members_of_trunk(classifiers["head"].trunk)[0]), head_files.load_start(data.head)
    repeats: dict[Name, list[dict[str, Scores]]] = {}
    for own in logits_of_repeats(data, first, start, pixels, rows, device):
        repeats.setdefault("finetune", []).append(scored(own))
        if share is not None:
            both = {split: share * calibrated["head"][split] + (1 - share) * own[split] for split in ALWAYS_REPORTED}
            repeats.setdefault("ensemble", []).append(scored(both))
    return Candidates(classifiers, {name: scored(by) for name, by in calibrated.items()}, repeats, share)


def ensemble_share(
    head: torch.Tensor, finetuned: torch.Tensor, labels: Ints, task: Task, groups: Ints | None = None
) -> float:
    """The head's share in an ensemble with the fine-tuned network: half, unless validation is clearly for another.

    Args:
        head: (N, classes) calibrated logits of the validation pictures.
        finetuned: likewise.
    """
    mixed = [(share * head + (1 - share) * finetuned).numpy() for share in ENSEMBLE_SHARES]
    return ENSEMBLE_SHARES[within_one_standard_error([task.losses(logits, labels) for logits in mixed], groups)]


def _figures(
    data: DataFolder, folder: FiguresFolder, result: Metrics, test: Scores, classes: list[str]
) -> dict[str, list[Markup]]:
    """The figures as files, and by name as they are in the page."""
    head = HeadDetails.read(data.head.details)
    true, predicted = tables.answers(test)
    names = [*classes, NO_CLASS] if (np.concatenate([true, predicted]) == len(classes)).any() else classes
    rows = tables.reliability(test)
    files.write_rows(rows, folder.reliability_table)
    drawings = {
        "confusion": figures.confusion(true, predicted, names, folder.confusion),
        "reliability": figures.reliability(rows, result.test["chosen"]["ece"], folder.reliability),
        "sweep": figures.sweep(head.sweep, folder.sweep),
    }
    pairs = [{"true": names[t], "predicted": names[p]} for t, p in zip(true, predicted, strict=True)]
    files.write_rows(pairs, folder.confusion_table)
    if "finetune" in result.val:
        curve = pd.read_csv(data.finetune.curve)
        level = result.val["head"]
        drawings["curve"] = figures.learning_curve(curve, level["log_loss"], level["accuracy"], folder.curve)
    return drawings


def _mistakes(
    model: Classifier, pixels: Pixels, manifest: pd.DataFrame, test: Scores, count: int, folder: EvaluateFolder
) -> list[ShownMistake]:
    found = tables.worst_mistakes(test, count)
    rows = np.flatnonzero(manifest["split"] == "test")[[mistake.position for mistake in found]]
    stored = [pixels[int(row)] for row in rows]
    heat = explain.heat_maps(model, stored, [mistake.shown for mistake in found]) if stored else None
    views = [model.trunk.view.first(picture) for picture in stored]
    shown = [
        ShownMistake(
            said=model.classes[mistake.shown], confidence=mistake.confidence, label=manifest["label"].iloc[row],
            path=manifest["path"].iloc[row], seen=pages.thumbnail(view),
            heat=None if heat is None else pages.thumbnail(pages.with_heat(view, heat[number])),
        )
        for number, (mistake, row, view) in enumerate(zip(found, rows, views, strict=True))
    ]  # fmt: skip
    words = [
        figures.drawable(list(texts)) for texts in zip(*((one.said, one.label, one.path) for one in shown), strict=True)
    ]
    captions = [
        f"{said[:20]} {one.confidence:.2f}\nis {label[:20] or NO_CLASS}\n{path[-figures.NAME_SHOWN :]}"
        for one, said, label, path in zip(shown, *words, strict=True)
    ]
    figures.mistakes(views, heat, captions, folder.figures.mistakes)
    return shown


def _write_page(
    data: DataFolder,
    params: Params,
    result: Metrics,
    shown: Shown,
    pixels: Pixels,
    manifest: pd.DataFrame,
    path: Path,
) -> None:
    rows = {name: row for row, name in enumerate(manifest["path"])}
    page = pages.template(
        "report.html.j2",
        interval=interval,
        of_subgroup=of_subgroup,
        thumbnail=lambda name: pages.thumbnail(pixels[rows[name]]),
    )
    tuned, audit = FinetuneDetails.read(data.finetune.details), AuditReport.read(data.prepare.audit)
    pages.write(
        path,
        page,
        params=params,
        result=result,
        headline=headline(result),
        leaks=of_leaks(result.leaks, result.test["chosen"]) if result.leaks else "",
        pairs=result.leaks.pairs[:PAIRS_SHOWN] if result.leaks else [],
        heat=of_heat(result.heat) if result.heat else "",
        metrics=shown.metrics,
        table=shown.table,
        drawings=shown.drawings,
        mistakes=shown.mistakes,
        most_classes_shown=figures.MOST_CLASSES_SHOWN,
        sheet=pages.embedded(data.prepare.sheet.read_bytes()),
        audit=audit,
        copies=sum(entry.reason.endswith("which is in test") for entry in audit.dropped),
        card=Card.read(data.backbone.card),
        first=Card.read(first_of(data.backbone).card),
        head=(head := HeadDetails.read(data.head.details)),
        averaged=sum(row.weight > 0 for row in head.sweep) > 1,
        tuned=tuned,
        kept=KEPT,
        arithmetic=arithmetic(FeaturesDetails.read(data.features.details), tuned),
        libraries=recorded_libraries(data, MADE_BY),
        other_code=made_by_other_code(data, MADE_BY),
    )


def run(params: Params, data: DataFolder) -> None:
    """The stage evaluate: let validation choose, report on the test split once, draw everything."""
    result = evaluate(data, params, set_up(params.threads), data.evaluate)
    say(headline(result), f"The whole story: {data.evaluate.report}")
