"""drift: do new pictures differ from those that the champion was made from, and what does the champion predict for them?

Everything is computed from the frozen features that the pipeline has anyway. Test pictures are counted and compared like
all others, since nothing is chosen by it. But they are never shown, as in ``labels``: correcting just the test labels that
a classifier gets wrong would make its report too good.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.drift import (
    Asked,
    ChampionAnswers,
    ClassCount,
    Contradicted,
    Difference,
    Drift,
    IncomingPictures,
    NewInKind,
    NewPictures,
    Separability,
    Strangeness,
)
from headstart.base.artifacts.json_file import Interval
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.paths import users_path
from headstart.data.manifest import is_multi_label, one_row_per_label, read_manifest
from headstart.data.splits import SPLITS
from headstart.evaluation.intervals import DIGITS, Estimate, mean, numbered, proportion, rounded, unpaired_difference
from headstart.models.task import LABEL_SEPARATOR, task_of
from headstart.monitoring import drift_report
from headstart.monitoring.two_sample import (
    MIN_PICTURES,
    SIGNIFICANCE,
    NoveltyDetector,
    one_per_group,
    subsample,
    two_sample,
)

if TYPE_CHECKING:
    import torch

    from headstart.data.packed import Pixels
    from headstart.monitoring.incoming import Incoming

MAX_REFERENCE = 5000  # old pictures that distances are measured from
MAX_PREDICTED = 500  # new pictures, and old ones, that the champion predicts


def detect_drift(data: DataFolder, params: Params, known: set[str], champion: Path | None) -> Drift | None:
    """Compare the pictures of data/prepare that the champion was not made from, and those in ``drift.incoming``, with the
    other pictures of data/prepare, and write data/drift. None if there are neither.

    Args:
        data: the folder of the stages' folders.
        known: SHA-256 of the pictures that the champion was made from. Empty if there is no champion; then no labelled
            picture is new.
        champion: the folder of its model; None for the model that was packaged last.

    Raises:
        HeadstartError: a folder is missing.
    """
    from headstart.base.device import set_up
    from headstart.data.packed import Pixels
    from headstart.monitoring.active_learning import export
    from headstart.monitoring.incoming import read_incoming

    manifest = read_manifest(data.prepare)
    new = ~manifest["sha256"].isin(known).to_numpy() if known else np.zeros(len(manifest), bool)
    if not new.any() and params.drift.incoming is None:
        return None
    device, pixels = set_up(params.threads), Pixels(data.prepare)
    features = _features(manifest, data.features)
    labelled, unlabelled, incoming = None, None, None
    if new.any():
        predictions = _predict(champion, manifest, pixels, new, device, params.seed) if champion else None
        labelled = compare(manifest, features, new, predictions, params.seed)
    if params.drift.incoming is not None:
        model = champion or data.package.model
        incoming = read_incoming(users_path(params.drift.incoming), data, manifest, params, model, device)
    if incoming is not None:
        groups = manifest["group"].to_numpy(str)
        unlabelled = compare_incoming(incoming, features, groups, params.drift.export, params.seed)
        to_label = export(incoming, unlabelled.to_label, data.drift.to_label)
        unlabelled = unlabelled.model_copy(update={"to_label": to_label})
    if labelled is None and unlabelled is None:
        return None
    drift = conclude(labelled, unlabelled)
    drift_report.write_page(drift, manifest, pixels, incoming, data.drift.page)
    drift.write(data.drift.details)
    return drift


def drift_from_champion(data: DataFolder, params: Params, trust: bool) -> Drift | None:
    """``detect_drift`` against what the registry's champion was made from; where there is none, of unlabelled pictures.

    Args:
        trust: whether to run the code in a champion that was not made here.

    Raises:
        HeadstartError: there is no champion, and ``drift.incoming`` names no pictures.
    """
    from headstart.tracking.registry import Registry

    registry = Registry(params) if params.registered_model else None
    champion = registry.champion() if registry else None
    if registry and champion:
        return detect_drift(data, params, registry.pictures(champion), registry.download(champion, trust))
    if params.drift.incoming is None:
        raise HeadstartError("there is no champion to compare new pictures with; name a folder of pictures without labels")
    return detect_drift(data, params, set(), None)


def conclude(new: NewPictures | None, incoming: IncomingPictures | None) -> Drift:
    tests = [test for part in (new, incoming) if part for test in (part.test, part.strange)]
    real = any(test is not None and test.differ for test in tests)
    return Drift(real=real, sentence=drift_report.sentence(new, incoming), new=new, incoming=incoming)


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
class ChampionPredictions:
    """The champion's predictions for new pictures, and for old test pictures, from which it has not learned either.

    Attributes:
        rows: (N,) of the manifest.
        labels: N predicted labels; of several labels their names, joined.
        confidence: (N,) their probabilities.
        classes: that the champion knows.
    """

    rows: Ints
    labels: list[str]
    confidence: Floats
    classes: tuple[str, ...]


def _predict(
    champion: Path, manifest: pd.DataFrame, pixels: Pixels, new: Bools, device: torch.device, seed: int
) -> ChampionPredictions | None:
    """None if the champion's task is another than the pictures': it can neither be right nor wrong about them."""
    import torch

    from headstart.base.progress import progress
    from headstart.engines.batching import inference_batch
    from headstart.inference.predictor import load_predictor

    model = load_predictor(champion).model.to(device)
    if model.task.kind != task_of(manifest).kind:
        return None
    rng = np.random.default_rng(seed)
    old_test = ~new & (manifest["split"] == "test").to_numpy()
    rows = np.concatenate([subsample(np.flatnonzero(side), MAX_PREDICTED, rng) for side in (new, old_test)])
    batch, logits = inference_batch(model, model.trunk.view, device), []
    with progress("champion", len(rows)) as advance:
        for part in model.logits_of(pixels, rows.tolist(), batch, device):
            logits.append(part)
            advance(len(part))
    probabilities = model.probabilities(torch.cat(logits)).double().numpy()
    labels = [model.task.answer(row, model.classes)[0] for row in probabilities]
    return ChampionPredictions(rows, labels, model.task.confidence(probabilities), model.classes)


def compare(
    manifest: pd.DataFrame, features: Floats, new: Bools, predictions: ChampionPredictions | None, seed: int
) -> NewPictures:
    """What drift.json says about labelled pictures: those that are ``new`` against the others.

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
    return NewPictures(
        pictures=int(new.sum()),
        old=len(old),
        test=_separability(two_sample(features, new, groups, seed)),
        test_within_classes=_separability(two_sample(features, new, groups, seed, labels)),
        test_of_old_halves=_separability(two_sample(features[old], halves, groups[old], seed)),
        classes=_classes(manifest, new),
        strange=_strange(manifest, features, new, rng),
        champion=None if predictions is None else _champion(manifest, new, predictions, rng),
    )


def _separability(test: Separability | None) -> Separability | None:
    return None if test is None else Separability(**rounded(test.model_dump()))


def _rounded(estimate: Estimate) -> Interval:
    value, low, high = (round(number, DIGITS) for number in estimate)
    return Interval(value=value, low=low, high=high)


def _classes(manifest: pd.DataFrame, new: Bools) -> list[ClassCount]:
    """How many pictures of each class are new and old, the class with most new ones first."""
    counts, old_counts = (Counter(one_row_per_label(manifest[side])["label"].tolist()) for side in (new, ~new))
    rows = [ClassCount(label=name, new=counts[name], old=old_counts[name]) for name in sorted({*counts, *old_counts})]
    return sorted(rows, key=lambda row: -row.new)


def _novelty(features: Floats, groups: Any, rng: np.random.Generator) -> NoveltyDetector | None:
    """A detector from (N, D) features of old pictures; None if there are too few."""
    rows = subsample(one_per_group(groups, rng), MAX_REFERENCE, rng)
    return NoveltyDetector.fit(features[rows]) if len(rows) > MIN_PICTURES else None


def _strange(manifest: pd.DataFrame, features: Floats, new: Bools, rng: np.random.Generator) -> Strangeness | None:
    novelty = _novelty(features[~new], manifest["group"].to_numpy(str)[~new], rng)
    if novelty is None:
        return None
    rows = manifest[new]
    distances = novelty.distances(features[new])
    beyond = distances > novelty.limit
    shown = beyond & (rows["split"] != "test").to_numpy()
    details = zip(rows["path"][shown], rows["label"][shown], distances[shown].tolist(), strict=True)
    pictures = [
        NewInKind(path=path, label=label, distance=round(distance, DIGITS))
        for path, label, distance in sorted(details, key=lambda row: -row[2])
    ]
    groups = rows["group"].to_numpy(str)
    return _strangeness(beyond, groups, novelty, pictures)


def _strangeness(
    beyond: Bools, groups: NDArray[np.str_], novelty: NoveltyDetector, pictures: list[NewInKind]
) -> Strangeness:
    """The share of pictures that are new in kind, and whether chance explains so many; a group counts once."""
    p = novelty.p_value(len(np.unique(groups)), len(np.unique(groups[beyond])))
    share = proportion(beyond, numbered(groups))
    return Strangeness(**share, p=round(p, DIGITS), differ=p < SIGNIFICANCE, pictures=pictures)


def _champion(
    manifest: pd.DataFrame, new: Bools, predictions: ChampionPredictions, rng: np.random.Generator
) -> ChampionAnswers:
    """Its confidence and how often it contradicts the label, for new and old pictures, and which new labels these are."""
    rows = manifest.iloc[predictions.rows].assign(guess=predictions.labels, probability=predictions.confidence)
    is_new = new[predictions.rows]
    wrong = (rows["guess"] != rows["label"]).to_numpy()
    if is_multi_label(manifest):
        wrong = (rows["guess"].map(_names) != rows["label"].map(_names)).to_numpy()
    groups = rows["group"].to_numpy(str)
    confidence = _difference(predictions.confidence, is_new, groups, rng)
    disagreement = _difference(wrong.astype(float), is_new, groups, rng)
    shown = rows[is_new & wrong & (rows["split"] != "test").to_numpy()]
    shown = shown.assign(probability=shown["probability"].round(DIGITS))
    shown = shown.sort_values("probability", ascending=False, kind="stable")
    return ChampionAnswers(
        asked=Asked(new=int(is_new.sum()), old=int((~is_new).sum())),
        unknown_classes=sorted(set(one_row_per_label(rows)["label"]) - set(predictions.classes)),
        confidence=confidence,
        disagreement=disagreement,
        contradicted=[Contradicted.model_validate(row) for row in shown.to_dict("records")],
    )


def _names(labels: str) -> frozenset[str]:
    """The names that a text joins, in whatever order."""
    return frozenset(labels.split(LABEL_SEPARATOR))


def _difference(values: Floats, is_new: Bools, groups: NDArray[np.str_], rng: np.random.Generator) -> Difference:
    of_new, of_old = (numbered(groups[side]) for side in (is_new, ~is_new))
    new, old, difference = unpaired_difference(values[is_new], values[~is_new], rng, of_new, of_old)
    if old is None or difference is None:
        return Difference(new=_rounded(new), old=None, difference=None)
    return Difference(new=_rounded(new), old=_rounded(old), difference=_rounded(difference))


# --- pictures without labels ------------------------------------------------------------------------------------------


def _guessed(incoming: Incoming, probabilities: Floats) -> list[str]:
    """The classes that the classifier chose for a picture."""
    from headstart.inference.predictor import names

    several = names(incoming.task, probabilities, incoming.classes)
    return [incoming.task.answer(probabilities, incoming.classes)[0]] if several is None else several


def compare_incoming(incoming: Incoming, old: Floats, old_groups: Any, at_most: int, seed: int) -> IncomingPictures:
    """What drift.json says about pictures without labels.

    Args:
        old: (N, D) features of the labelled pictures.
        old_groups: (N,).
        at_most: how many pictures to select for labelling if the incoming ones differ from the labelled ones.
    """
    from headstart.monitoring.active_learning import describe_selection, select_for_labelling

    rng = np.random.default_rng(seed)
    new = np.arange(len(incoming.paths) + len(old)) < len(incoming.paths)
    groups = np.concatenate([[f"incoming {group}" for group in incoming.groups], [f"old {group}" for group in old_groups]])
    test = two_sample(np.concatenate([incoming.features, old]), new, groups, seed)
    novelty = _novelty(old, old_groups, rng)
    strange, to_label = None, []
    if novelty is not None:
        distances = novelty.distances(incoming.features)
        beyond = distances > novelty.limit
        order = [int(row) for row in np.argsort(-distances, kind="stable") if beyond[row]]
        pictures = [NewInKind(path=incoming.paths[row], distance=round(float(distances[row]), DIGITS)) for row in order]
        strange = _strangeness(beyond, np.array(incoming.groups, str), novelty, pictures)
        if (test is not None and test.differ) or strange.differ:
            rows = select_for_labelling(incoming.features, incoming.probabilities, novelty.features, at_most, incoming.task)
            to_label = describe_selection(incoming, rows, novelty)
    confidence = incoming.task.confidence(incoming.probabilities)
    guesses = Counter(name for row in incoming.probabilities for name in _guessed(incoming, row))
    return IncomingPictures(
        pictures=len(incoming.paths),
        found=incoming.files,
        unusable=incoming.unusable,
        old=len(old),
        test=_separability(test),
        confidence=_rounded(mean(confidence, rng, numbered(np.array(incoming.groups, str)))),
        guesses=dict(guesses.most_common()),
        strange=strange,
        to_label=to_label,
    )
