"""The model card: what a result is for, what it was made from, how good it is and where it is weak (Mitchell et al. 2019,
"Model Cards for Model Reporting"), from the stages' files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.classifier import ClassifierDetails, FamiliarityDetails
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.finetune import KEPT, FinetuneDetails
from headstart.base.artifacts.members import first_of
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.identity import made_by_other_code, recorded_libraries
from headstart.base.measurements import Measurements
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.safe_text import masked
from headstart.base.threads import cores
from headstart.data.splits import SPLITS
from headstart.evaluation.metrics import METRICS
from headstart.evaluation.pages import TEMPLATES, finalize
from headstart.evaluation.summary import NAMES, arithmetic, at_edge, in_folds, of_leaks, of_shortcuts, of_subgroup
from headstart.tracking.result import stages_of_the_result
from headstart.tracking.store import ARITHMETIC, RESULT

LONGEST_DESCRIPTION = 5000  # characters that MLflow's tables take; PostgreSQL refuses more

FILE, TEMPLATE = "MODEL_CARD.md", "model_card.md.j2"
WEAKEST = 8  # classes and confusions shown
# Licences of the pictures that a name stands for.
PICTURES = {"emoji": "Twemoji graphics, © Twitter, Inc. and other contributors, CC-BY 4.0"}
UNKNOWN_PICTURES = "not known to headstart: whoever brought the pictures knows"


def lineage(data: DataFolder, result: str, lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """Where a result comes from, as tags: its digest, its pictures', DVC's digests of what the stages wrote, and the
    arithmetic behind it."""
    manifest = hashlib.sha256(data.prepare.manifest.read_bytes()).hexdigest()
    made_on = arithmetic(FeaturesDetails.read(data.features.details), FinetuneDetails.read(data.finetune.details))
    outputs = json.dumps(_outputs(lock))
    return {RESULT: result, ARITHMETIC: made_on, "headstart.data": manifest, "headstart.dvc": outputs}


def _outputs(lock: Path) -> dict[str, str]:
    """path: md5 of the outputs that DVC has on record; track is running when it asks, and its own are the last result's."""
    if not lock.exists():
        return {}
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for name, stage in stages.items() if name != "track" for out in stage.get("outs", [])}


def card(data: DataFolder, params: Params, lineage: dict[str, str]) -> str:
    """The card of the result that the stages' folders hold, in Markdown.

    Args:
        lineage: shown as it is, a line for each.
    """
    result, audit = Metrics.read(data.evaluate.metrics), AuditReport.read(data.prepare.audit)
    packaged = ClassifierDetails.read(data.package.model.classifier.details)
    classes = pd.read_csv(data.evaluate.figures.per_class, keep_default_na=False, dtype={"class": str})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # it is Markdown: what people named themselves goes through the filter `plain`
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": plain, "masked": masked}
    return environment.get_template(TEMPLATE).render(
        params=params,
        chosen=result.chosen,
        task=packaged.task,
        familiarity=FamiliarityDetails.read_if_made(data.package.model.classifier.familiarity),
        thresholds=zip(packaged.classes, packaged.thresholds or (), strict=False),
        test=result.test["chosen"],
        folds=in_folds(result.folds) if result.folds else "",
        leaks=of_leaks(result.leaks, result.test["chosen"]) if result.leaks else "",
        edge=at_edge(result.heat) if result.heat else "",
        subgroups=[of_subgroup(one) for one in result.subgroups.found] if result.subgroups else [],
        shortcuts=of_shortcuts(result.shortcuts) if result.shortcuts else "",
        metrics=[metric for metric in METRICS.values() if metric.name in result.test["chosen"]],
        audit=audit,
        counts={part: sum(counts[part] for counts in audit.classes.values()) for part in SPLITS},
        reasons=Counter(_kind(entry.reason) for entry in audit.dropped).most_common(WEAKEST),
        pictures=PICTURES.get(params.data.source, UNKNOWN_PICTURES),
        backbone=_networks(data, result.chosen),
        first=Card.read(first_of(data.backbone).card).name,
        names=NAMES,
        kept=KEPT,
        tuned=FinetuneDetails.read(data.finetune.details),
        classes=sorted(audit.classes),
        weak=classes[classes["pictures"] > 0].head(WEAKEST).to_dict("records"),
        confused=_confused(data.evaluate.figures.confusion_table),
        confusion=lambda true, predicted: _in_words(true, predicted, packaged.classes),
        megabytes=data.package.model.classifier.weights.stat().st_size / 1e6,
        images_per_s=images_per_s(data, params.threads),
        lineage=lineage,
        libraries=recorded_libraries(data, stages_of_the_result()),
        other_code=made_by_other_code(data, stages_of_the_result()),
    )


def _networks(data: DataFolder, chosen: Name) -> Card:
    """What a picture passes through: all networks, or the one that was fine-tuned, or that one beside the others."""
    together, first = Card.read(data.backbone.card), Card.read(first_of(data.backbone).card)
    if chosen == "head":
        return together
    networks = FinetuneDetails.read(data.finetune.details).networks
    before = together if chosen == "ensemble" else None
    more = {
        key: networks * getattr(first, key) + (getattr(before, key) if before else 0) for key in ("parameters", "gmacs")
    }
    return (before or first).model_copy(update=more)


def _kind(reason: str) -> str:
    """A reason without the file that it names."""
    return reason.partition(" of ")[0].partition(":")[0]


def _confused(file: Path) -> list[tuple[str, str, int]]:
    """(true, predicted, pictures) of the most frequent confusions on test."""
    pairs = pd.read_csv(file, keep_default_na=False, dtype=str)
    wrong = pairs[pairs["true"] != pairs["predicted"]]
    counted = Counter(zip(wrong["true"], wrong["predicted"], strict=True))
    return [
        (true, predicted, count)
        for (true, predicted), count in sorted(counted.items(), key=lambda c: (-c[1], c[0]))[:WEAKEST]
    ]


def _in_words(true: str, predicted: str, classes: list[str]) -> str:
    """A confusion; of several labels one of the two is no class, where a class was missed or is not on the picture."""
    if predicted not in classes:
        return f"{plain(true)} missed"
    return f"{plain(true)} taken for {plain(predicted)}" if true in classes else f"{plain(predicted)} seen in vain"


def images_per_s(data: DataFolder, threads: int | None) -> float:
    """Pictures a second that the packaged model answers on this machine, those of data/prepare, one batch at a time.

    A network is measured once on a machine, since it is as fast with any head; who finds it known need not wait for torch.
    """
    folder = data.package.model.classifier
    details = ClassifierDetails.read(folder.details)
    tuned = details.tuned.model_dump() if details.tuned else None
    what = (
        details.backbone,
        details.preprocessing.model_dump(),
        tuned,
        details.networks,
        len(details.classes),
        folder.network.read_text("utf-8"),
    )
    where = platform.node(), threads or cores(), importlib.metadata.version("torch"), importlib.metadata.version("timm")
    measured = Measurements(state_folder("speed") / "classifiers.json")
    return float(measured.known_or(measured.key(what, where), lambda: _images_per_s(data, threads)))


def _images_per_s(data: DataFolder, threads: int | None) -> float:
    import numpy as np
    import torch

    from headstart.base.device import set_up
    from headstart.base.measurements import seconds
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.inference.predictor import load_predictor

    set_up(threads)
    pixels = Pixels(data.prepare)
    rows = np.flatnonzero(read_manifest(data.prepare)["split"] == "test")[:8]
    model = load_predictor(data.package.model).model
    pictures = [pixels[int(row)] for row in rows]

    def answer() -> Any:
        with torch.inference_mode():
            return model(model.trunk.view.batch(pictures))

    return len(rows) / seconds(answer)


def plain(name: object) -> str:
    """Text as a cell of a Markdown table that shows it as it is."""
    text = " ".join(masked(str(name)).split())  # before the signs of an address are taken apart
    for sign in "\\|<>*_`[]#":
        text = text.replace(sign, f"\\{sign}")
    return text


def description(card: str) -> str:
    """As much of a model card as fits into the description of a version, in whole lines."""
    if len(card) <= LONGEST_DESCRIPTION:
        return card
    rest = "\n\n(The whole card is MODEL_CARD.md of the run.)\n"
    return card[: card.rindex("\n", 0, LONGEST_DESCRIPTION - len(rest))] + rest
