"""drift: do new pictures differ from those that the champion was made from, and what does the champion make of them?

Everything is found in the frozen features that the pipeline has anyway. Test pictures are counted and compared like all
others, since none of it chooses anything; they are not among the pictures that are shown, as in ``labels``: whoever mends
the test labels that a classifier stumbles over makes its report better than it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.files import write_json
from headstart.base.params import Params
from headstart.base.paths import users_path
from headstart.data.manifest import read_manifest
from headstart.data.splits import SPLITS
from headstart.evaluation.intervals import DIGITS, Estimate, mean, proportion, rounded, unpaired_difference
from headstart.monitoring import drift_report
from headstart.monitoring.two_sample import (
    AT_LEAST,
    LEVEL,
    Known,
    TwoSample,
    one_of_each,
    sample_of,
    two_sample,
)

if TYPE_CHECKING:
    import torch

    from headstart.data.packed import Pixels
    from headstart.monitoring.incoming import Incoming

FOLDER = "drift"
REFERENCE = 5000  # old pictures that distances are measured from
ASKED = 500  # new and old pictures that the champion is asked about


@dataclass(frozen=True)
class Drift:
    """What is new about new pictures.

    Attributes:
        real: whether the labelled new pictures, or the incoming ones, differ from the old ones.
        sentence: all of it in words.
        numbers: what drift.json holds: ``real``, ``sentence``, and ``new`` and ``incoming`` where there are any.
    """

    real: bool
    sentence: str
    numbers: dict[str, Any]


def of_new_pictures(data: Path, params: Params, known: set[str], champion: Path | None) -> Drift | None:
    """Compare the pictures of data/prepare that the champion has not learned from, and those in ``drift.incoming``, with
    the others, and write data/drift. None where there are neither.

    Args:
        data: the folder of the stages' folders.
        known: SHA-256 of the pictures that the champion was made from; none where there is no champion, and then nothing
            labelled is new.
        champion: the folder of its model; None for the one that was packaged last.

    Raises:
        HeadstartError: a folder that should be there is not.
    """
    from headstart.base.device import set_up
    from headstart.data.packed import Pixels
    from headstart.monitoring.active_learning import export
    from headstart.monitoring.incoming import look_at

    manifest = read_manifest(data / "prepare")
    new = ~manifest["sha256"].isin(known).to_numpy() if known else np.zeros(len(manifest), bool)
    if not new.any() and params.drift.incoming is None:
        return None
    device, pixels = set_up(params.threads), Pixels(data / "prepare")
    features = _features(manifest, data / "features")
    numbers: dict[str, Any] = {}
    if new.any():
        answers = _answers(champion, manifest, pixels, new, device, params.seed) if champion else None
        numbers["new"] = compare(manifest, features, new, answers, params.seed)
    incoming = None
    if params.drift.incoming is not None:
        model = champion or data / "package" / "model"
        incoming = look_at(users_path(params.drift.incoming), data, manifest, params, model, device)
    if incoming is not None:
        groups = manifest["group"].to_numpy(str)
        numbers["incoming"] = compare_incoming(incoming, features, groups, params.drift.export, params.seed)
        numbers["incoming"]["to_label"] = export(incoming, numbers["incoming"]["to_label"], data / FOLDER)
    if not numbers:
        return None
    judged = [part[name] for part in numbers.values() for name in ("test", "strange")]
    real = any(found is not None and found["differ"] for found in judged)
    found: dict[str, Any] = {"real": real, "sentence": drift_report.sentence(numbers)} | numbers
    drift_report.write_page(found, manifest, pixels, incoming, data / FOLDER / drift_report.PAGE)
    write_json(data / FOLDER / drift_report.FOUND, found)
    return Drift(real, found["sentence"], found)


def _features(manifest: pd.DataFrame, folder: Path) -> Floats:
    """(N, D) in the manifest's order."""
    from headstart.training.feature_files import load_features

    parts = {split: load_features(folder, split)[0].numpy() for split in SPLITS}
    features = np.empty((len(manifest), parts["train"].shape[1]), np.float32)
    for split, part in parts.items():
        features[(manifest["split"] == split).to_numpy()] = part
    return features


# --- labelled pictures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What the champion says of ``rows`` of the manifest: (N,) guesses and their probabilities. Of old pictures these are
    test pictures, which it did not learn from either."""

    rows: Ints
    guesses: list[str]
    confidence: Floats
    classes: tuple[str, ...]


def _answers(
    champion: Path, manifest: pd.DataFrame, pixels: Pixels, new: Bools, device: torch.device, seed: int
) -> Answers:
    import torch

    from headstart.base.progress import progress
    from headstart.engines.batching import inference_batch
    from headstart.inference.predictor import load_predictor

    model = load_predictor(champion).model.to(device)
    rng = np.random.default_rng(seed)
    old_test = ~new & (manifest["split"] == "test").to_numpy()
    rows = np.concatenate([sample_of(np.flatnonzero(side), ASKED, rng) for side in (new, old_test)])
    batch, logits = inference_batch(model, model.trunk.view, device), []
    with progress("champion", len(rows)) as advance:
        for part in model.logits_of(pixels, rows.tolist(), batch, device):
            logits.append(part)
            advance(len(part))
    probabilities = model.probabilities(torch.cat(logits)).double().numpy()
    guesses = [model.task.answer(row, model.classes)[0] for row in probabilities]
    return Answers(rows, guesses, model.task.confidence(probabilities), model.classes)


def compare(manifest: pd.DataFrame, features: Floats, new: Bools, answers: Answers | None, seed: int) -> dict[str, Any]:
    """What drift.json says of labelled pictures, those that are ``new`` against the others.

    Args:
        manifest: of N pictures.
        features: (N, D).
        new: (N,).
    """
    groups, labels = manifest["group"].to_numpy(str), manifest["label"].to_numpy(str)
    rng = np.random.default_rng(seed)
    old = np.flatnonzero(~new)
    halves = np.zeros(len(old), bool)
    halves[rng.choice(len(old), min(int(new.sum()), len(old) // 2), replace=False)] = True
    return {
        "pictures": int(new.sum()),
        "old": len(old),
        "test": _told(two_sample(features, new, groups, seed)),
        "test_within_classes": _told(two_sample(features, new, groups, seed, labels)),
        "test_of_old_halves": _told(two_sample(features[old], halves, groups[old], seed)),
        "classes": _classes(labels, new),
        "strange": _strange(manifest, features, new, rng),
        "champion": None if answers is None else _champion(manifest, new, answers, rng),
    }


def _told(test: TwoSample | None) -> dict[str, Any] | None:
    return None if test is None else rounded(asdict(test)) | {"differ": test.differ}


def _rounded(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else rounded(estimate._asdict())


def _classes(labels: Any, new: Bools) -> list[dict[str, Any]]:
    """Of each class how many pictures are new and old, the most new ones first."""
    fresh, before = Counter(labels[new].tolist()), Counter(labels[~new].tolist())
    rows = [{"label": name, "new": fresh[name], "old": before[name]} for name in sorted({*fresh, *before})]
    return sorted(rows, key=lambda row: -row["new"])


def _reference(features: Floats, groups: Any, rng: np.random.Generator) -> Known | None:
    """A measure of what is usual, from (N, D) features of old pictures; None where they are too few."""
    rows = sample_of(one_of_each(groups, rng), REFERENCE, rng)
    return Known.of(features[rows]) if len(rows) > AT_LEAST else None


def _strange(manifest: pd.DataFrame, features: Floats, new: Bools, rng: np.random.Generator) -> dict[str, Any] | None:
    known = _reference(features[~new], manifest["group"].to_numpy(str)[~new], rng)
    if known is None:
        return None
    rows = manifest[new]
    distances = known.distances(features[new])
    beyond = distances > known.limit
    shown = beyond & (rows["split"] != "test").to_numpy()
    named = zip(rows["path"][shown], rows["label"][shown], distances[shown].tolist(), strict=True)
    pictures = [
        {"path": path, "label": label, "distance": round(far, DIGITS)}
        for path, label, far in sorted(named, key=lambda row: -row[2])
    ]
    groups = rows["group"].to_numpy(str)
    return _kinds(beyond, groups, known) | {"pictures": pictures}


def _kinds(beyond: Bools, groups: NDArray[np.str_], known: Known) -> dict[str, Any]:
    """The share of pictures that are new in kind, and whether chance explains so many; one of a group counts."""
    p = known.surprise(len(np.unique(groups)), len(np.unique(groups[beyond])))
    return proportion(beyond) | {"p": round(p, DIGITS), "differ": p < LEVEL}


def _champion(manifest: pd.DataFrame, new: Bools, answers: Answers, rng: np.random.Generator) -> dict[str, Any]:
    """Its confidence and how often it contradicts the label, on new and on old pictures; and which new ones."""
    rows = manifest.iloc[answers.rows].assign(guess=answers.guesses, probability=answers.confidence)
    fresh = new[answers.rows]
    wrong = (rows["guess"] != rows["label"]).to_numpy()
    found: dict[str, Any] = {
        "asked": {"new": int(fresh.sum()), "old": int((~fresh).sum())},
        "unknown_classes": sorted(set(rows["label"]) - set(answers.classes)),
    }
    for name, values in (("confidence", answers.confidence), ("disagreement", wrong.astype(float))):
        estimates = unpaired_difference(values[fresh], values[~fresh], rng)
        found[name] = dict(zip(("new", "old", "difference"), map(_rounded, estimates), strict=True))
    shown = rows[fresh & wrong & (rows["split"] != "test").to_numpy()]
    shown = shown.assign(probability=shown["probability"].round(DIGITS))
    shown = shown.sort_values("probability", ascending=False, kind="stable")
    found["contradicted"] = shown[["path", "label", "guess", "probability"]].to_dict("records")
    return found


# --- pictures without labels ------------------------------------------------------------------------------------------


def compare_incoming(incoming: Incoming, old: Floats, old_groups: Any, at_most: int, seed: int) -> dict[str, Any]:
    """What drift.json says of pictures without labels.

    Args:
        old: (N, D) features of the labelled pictures.
        old_groups: (N,).
        at_most: so many pictures are named as worth labelling, where the incoming ones differ from the labelled ones.
    """
    from headstart.monitoring.active_learning import described, worth_labelling

    rng = np.random.default_rng(seed)
    new = np.arange(len(incoming.paths) + len(old)) < len(incoming.paths)
    groups = np.concatenate([[f"incoming {group}" for group in incoming.groups], [f"old {group}" for group in old_groups]])
    test = two_sample(np.concatenate([incoming.features, old]), new, groups, seed)
    known = _reference(old, old_groups, rng)
    strange, to_label = None, []
    if known is not None:
        distances = known.distances(incoming.features)
        beyond = distances > known.limit
        order = [int(row) for row in np.argsort(-distances, kind="stable") if beyond[row]]
        pictures = [{"path": incoming.paths[row], "distance": round(float(distances[row]), DIGITS)} for row in order]
        strange = _kinds(beyond, np.array(incoming.groups, str), known) | {"pictures": pictures}
        if (test is not None and test.differ) or strange["differ"]:
            rows = worth_labelling(incoming.features, incoming.probabilities, known.features, at_most)
            to_label = described(incoming, rows, known)
    confidence = incoming.task.confidence(incoming.probabilities)
    guesses = Counter(incoming.task.answer(row, incoming.classes)[0] for row in incoming.probabilities)
    return {
        "pictures": len(incoming.paths),
        "found": incoming.found,
        "unusable": incoming.unusable,
        "old": len(old),
        "test": _told(test),
        "confidence": _rounded(mean(confidence, rng)),
        "guesses": dict(guesses.most_common()),
        "strange": strange,
        "to_label": to_label,
    }
