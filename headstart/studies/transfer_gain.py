"""why: what the learning curves say, in numbers with intervals.

Is pre-training worth it here, in points, in labels and in minutes? Would more pictures help? How much of the network should
be trained, and is that what the rules of thumb say?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.members import first_of
from headstart.base.artifacts.why import (
    CurvePoint,
    Cut,
    CutResult,
    Forecast,
    Freezing,
    Gap,
    Rule,
    Size,
    Start,
    TransferGain,
    Verdict,
    WorthLabels,
    WorthMinutes,
)
from headstart.base.cluster import connected
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.identity import code_of, digest_of, inputs_of
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.terminal import say
from headstart.data.manifest import is_multi_label, read_manifest
from headstart.evaluation.intervals import (
    Estimate,
    bootstrap,
    paired_difference,
    percentile_interval,
    wilson,
    with_training,
)
from headstart.models.backbones import load_classifier, load_first
from headstart.models.catalogue import published
from headstart.models.task import SINGLE_LABEL
from headstart.studies.candidates import Sample
from headstart.studies.learning_curves import (
    CUTS,
    FINETUNED,
    FROZEN,
    SCRATCH,
    Curve,
    Curves,
    Laboratory,
    Pictures,
    cut_of,
    measure,
    plan,
)
from headstart.studies.speed import images_per_s
from headstart.studies.trainings_on_cluster import run_on
from headstart.studies.transfer_gain_report import CANT_TELL, NOT_WORTH, WORTH, sentences
from headstart.training.features import FeatureExtractor
from headstart.training.linear_probe import within_one_standard_error

MARGIN = 0.01  # of accuracy: less than a point is nobody's reason for anything
FURTHER = 2  # times as many pictures is as far as a fit on some tenfold range is followed
SMALL, LARGE = 100, 1000  # pictures per class: the rules of thumb give no numbers, these are ours
SIMILAR = 0.5  # of the confidence that the network has on ImageNet's own pictures


# --- numbers ------------------------------------------------------------------------------------------------------


def verdict(worth: Estimate) -> Verdict:
    """Of the gain in accuracy by pre-training, with its interval: worth it where there certainly is one and it is a point
    or more; not worth it where a gain of a point can be excluded or what there is comes to less; otherwise can't tell."""
    if worth.low > 0 and worth.value >= MARGIN:
        return WORTH
    if worth.high < MARGIN or (worth.low > 0 and worth.value < MARGIN):
        return NOT_WORTH
    return CANT_TELL


def pictures_for(accuracy: float, curve: Curve) -> tuple[float | None, bool]:
    """How many pictures ``curve`` needs for ``accuracy``, between its points by the logarithm of their numbers; and whether
    that is only an upper bound, since the smallest number does it already. None where it is never reached."""
    reached = np.maximum.accumulate(curve.accuracy)
    if reached[-1] < accuracy:
        return None, False
    at = int(np.argmax(reached >= accuracy))
    if at == 0:
        return float(curve.n[0]), True
    share = (accuracy - reached[at - 1]) / (reached[at] - reached[at - 1])
    low, high = np.log(curve.n[at - 1]), np.log(curve.n[at])
    return float(np.exp(low + share * (high - low))), False


def gained(before: Curve, after: Curve) -> Estimate:
    """Accuracy on all pictures of ``after`` minus that of ``before``; its interval is for other pictures, and for other
    trainings of what was trained several times."""
    difference = paired_difference(before.correct[-1], after.correct[-1], after.groups).accuracy
    chances = [chance for curve in (before, after) for chance in (curve.chances[-1] if curve.chances else [])]
    return with_training(difference, chances, after.groups, most=1)


def with_more(curve: Curve) -> Forecast:
    """Accuracy to expect of twice as many pictures, by a power law for the error (Hestness et al. 2017, "Deep learning
    scaling is predictable, empirically"): log error = a - b log n.

    It is refused with fewer than three points, where one of them is farther from the fit than its own interval allows, and
    where the interval of the decay reaches zero.
    """
    n = int(FURTHER * curve.n[-1])
    if len(curve.n) < 3:
        return Forecast(n=n, refused="a curve needs three points at least")
    count = curve.correct.shape[1]
    floor = 0.5 / count  # an error of none at all has no logarithm
    resampled_accuracy = bootstrap(lambda rows: curve.correct[:, rows].mean(axis=1), count, groups=curve.groups)
    errors = np.log(np.maximum(1 - np.vstack([curve.accuracy, resampled_accuracy]), floor))
    x = np.log(curve.n) - np.log(curve.n).mean()
    slopes = errors @ x / (x @ x)
    fitted = np.exp(errors[0].mean() + slopes[0] * x)
    low, high = percentile_interval(np.exp(errors[1:]), curve.groups)
    if ((fitted < low) | (fitted > high)).any():
        return Forecast(n=n, refused="the points do not lie on a power law")
    if percentile_interval(slopes[1:], curve.groups)[1] > -1e-9:  # nothing but rounding is no decay
        return Forecast(n=n, refused="from the pictures at hand it is not certain that more of them help")
    at = np.log(n) - np.log(curve.n).mean()
    expected = 1 - np.exp(errors.mean(axis=1) + slopes * at)
    low, high = percentile_interval(expected[1:], curve.groups)
    return Forecast(n=n, accuracy=float(expected[0]), low=float(low), high=float(high), exponent=float(-slopes[0]))


# --- how much to freeze -------------------------------------------------------------------------------------------


def size_of(per_class: float) -> Size:
    return "small" if per_class < SMALL else "medium" if per_class < LARGE else "large"


def confidence(features: Tensor, classifier: tuple[Tensor, Tensor] | None) -> float | None:
    """Mean over (N, D) features of the probability that the network's own ImageNet classifier gives its first choice."""
    if classifier is None:
        return None
    weight, bias = (part.to(features.device) for part in classifier)
    return float(SINGLE_LABEL.confidence(SINGLE_LABEL.probabilities(torch.addmm(bias, features, weight.T))).mean())


def advice_231(size: Size, similar: bool) -> tuple[Cut, str]:
    """The cut, and the words, of Stanford's CS231n for a set of that size and likeness to ImageNet ("Transfer Learning",
    cs231n.github.io/transfer-learning). Its small is ours up to LARGE."""
    if size == "large":
        return ("all", "fine-tune the whole network")
    if similar:
        return ("none", "train a linear classifier on the frozen network")
    return ("last", "train a classifier on earlier layers, which is nearest to retraining the last ones")


def advice_230(size: Size) -> tuple[Cut, str]:
    """The same of CS230's table, which goes by size alone."""
    advice: dict[Size, tuple[Cut, str]] = {
        "small": ("none", "freeze all layers and train the head"),
        "medium": ("last", "freeze most layers and train the last ones"),
        "large": ("all", "freeze nothing, start from the pre-trained weights"),
    }
    return advice[size]


@dataclass(frozen=True)
class Set:
    """The user's pictures, as the rules of thumb look at them.

    Attributes:
        pictures: for training and validation.
        confidence: ``confidence`` on them; None where the network has no linear ImageNet classifier.
        on_imagenet: what that is on ImageNet itself: its published top-1 accuracy, as a calibrated classifier's is.
    """

    pictures: int
    classes: int
    confidence: float | None
    on_imagenet: float | None

    @property
    def similar(self) -> bool | None:
        if self.confidence is None or not self.on_imagenet:
            return None
        return self.confidence >= SIMILAR * self.on_imagenet


def freezing(curves: Curves, cut: Cut, pictures: Set) -> Freezing:
    """What each cut reached on all pictures, which of them to take, and what the rules of thumb say.

    Taken is the least training that is not clearly worse, by log-loss, than the best (one standard error).
    """
    by_cut: dict[Cut, Curve] = {"none": curves[FROZEN, "none"]}
    by_cut |= {c: curves[FINETUNED, c] for c in CUTS[1:] if (FINETUNED, c) in curves}
    table = []
    for name, curve in by_cut.items():
        low, high = wilson(curve.correct[-1], curve.groups)
        table.append(
            CutResult(
                cut=name,
                accuracy=float(curve.accuracy[-1]),
                low=low,
                high=high,
                log_loss=float(curve.losses[-1].mean()),
                seconds=float(curve.seconds[-1]),
            )
        )
    names = list(by_cut)
    measured = names[within_one_standard_error([curve.losses[-1] for curve in by_cut.values()], by_cut["none"].groups)]
    size = size_of(pictures.pictures / pictures.classes)
    rules = {"CS230": advice_230(size)}
    if pictures.similar is not None:
        rules["CS231n"] = advice_231(size, pictures.similar)
    gap = gained(by_cut["none"], by_cut[cut])
    return Freezing(
        measured=measured,
        table=table,
        per_class=round(pictures.pictures / pictures.classes),
        size=size,
        similar=pictures.similar,
        confidence=pictures.confidence,
        on_imagenet=pictures.on_imagenet,
        gap=Gap(value=gap.value, low=gap.low, high=gap.high, cut=cut),
        rules={
            rule: Rule(cut=advised, words=words, agrees=advised == measured) for rule, (advised, words) in rules.items()
        },
    )


def answer(data: DataFolder, params: Params, device: torch.device, state: Callable[[str], Path]) -> TransferGain:
    """Measure what has not been measured before, and conclude: what why.json holds.

    Args:
        data: the folder of the stages' folders.
        state: a folder by name, in which what took long is kept from run to run.

    Raises:
        HeadstartError: the backbone has random weights, so that there is nothing to compare; or pictures are too few.
    """
    backbone, network = first_of(data.backbone), data.fetch.network
    trunk, card = load_first(backbone, network)
    if not card.pretrained:
        raise HeadstartError(
            f"backbone {card.name!r} has random weights (weights: {params.weights}): there is no pre-training to judge; "
            "name weights in params.yaml"
        )
    manifest = read_manifest(data.prepare)
    if is_multi_label(manifest):
        raise HeadstartError(
            "why draws its learning curves with the same number of pictures of each class, which pictures with several "
            "labels do not allow; `headstart rank` and `headstart tune` take them"
        )
    sample = Sample.of(manifest, params.seed)
    pictures = Pictures(data, manifest, sample, device if params.cluster is None else torch.device("cpu"))
    rate = images_per_s(FeatureExtractor(trunk, pictures.pixels, device), sample.rows, params.features.engine)
    settings = (
        params.finetune.model_dump(exclude={"unfreeze"}),
        params.head, params.features, params.seed, params.threads,
    )  # fmt: skip
    made_by = code_of("headstart.studies.learning_curves")
    kept, cut = state("why") / digest_of([made_by, inputs_of("why"), settings]), cut_of(params.finetune)
    laboratory = Laboratory(pictures, backbone, network, params, device, 1 / rate, kept / "running")
    trainings = plan(pictures.shares(params.why.fractions), params.why.folds, cut)
    with connected(params.cluster, __name__) as cluster:
        run = laboratory.run_all if cluster is None else partial(run_on, cluster, laboratory)
        curves = measure(pictures, trainings, run, kept)
    top1 = published(card.name).top1 if card.library != "own" else None
    sure = confidence(pictures.features, load_classifier(backbone))
    about = Set(len(sample.rows), len(sample.classes), sure, top1 / 100 if top1 else None)
    return conclude(card.name, curves, cut, about, sample.left_out)


def conclude(backbone: str, curves: Curves, cut: Cut, pictures: Set, left_out: Sequence[str] = ()) -> TransferGain:
    """What why.json holds.

    Args:
        curves: frozen, fine-tuned at ``cut`` and from scratch over growing numbers of pictures; other cuts at all of them.
        left_out: classes that have too few pictures.
    """
    rows: dict[Start, Curve] = {
        FROZEN: curves[FROZEN, "none"],
        FINETUNED: curves[FINETUNED, cut],
        SCRATCH: curves[SCRATCH, "all"],
    }
    pretrained: Start = min((FROZEN, FINETUNED), key=lambda start: rows[start].losses[-1].mean())
    best, scratch = rows[pretrained], rows[SCRATCH]
    worth = gained(scratch, best)
    enough, at_most = pictures_for(float(scratch.accuracy[-1]), best)
    gain = TransferGain(
        backbone=backbone,
        verdict=verdict(worth),
        pretrained=pretrained,
        worth_points=Interval(value=100 * worth.value, low=100 * worth.low, high=100 * worth.high),
        worth_labels=WorthLabels(pretrained=enough, at_most=at_most, scratch=int(scratch.n[-1])),
        worth_minutes=WorthMinutes(pretrained=float(best.seconds[-1] / 60), scratch=float(scratch.seconds[-1] / 60)),
        more=with_more(best),
        freeze=freezing(curves, cut, pictures),
        held_out=int(best.correct.shape[1]),
        curves=[
            CurvePoint(start=start, n=int(n), accuracy=float(accuracy), low=low, high=high, seconds=float(seconds))
            for start, curve in rows.items()
            for n, accuracy, correct, seconds in zip(curve.n, curve.accuracy, curve.correct, curve.seconds, strict=True)
            for low, high in [wilson(correct, curve.groups)]
        ],
        sentences=[],
        left_out=list(left_out),
        repeated=bool(scratch.chances and scratch.chances[-1]),
    )
    return gain.model_copy(update={"sentences": sentences(gain)})


def run(params: Params, data: DataFolder) -> None:
    """The stage why: is pre-training worth it here, and how much of the network should be trained?"""
    gain = answer(data, params, set_up(params.threads), state_folder)
    gain.write(data.why.details)
    say(*gain.sentences)
