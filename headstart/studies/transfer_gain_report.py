"""What the study why found, in sentences that are true to its numbers."""

from __future__ import annotations

from typing import Final

from headstart.base.artifacts.why import CurvePoint, Freezing, Start, TransferGain
from headstart.base.wording import points, share, signed
from headstart.studies.learning_curves import FINETUNED, FROZEN, SCRATCH

WORTH: Final = "worth it"
NOT_WORTH: Final = "not worth it"
CANT_TELL: Final = "can't tell"
NAMES = {FROZEN: "frozen with a head on top", FINETUNED: "fine-tuned", SCRATCH: "from random weights"}


def sentences(result: TransferGain) -> list[str]:
    """What was found, in the order in which people ask."""
    freeze = result.freeze
    return [_worth(result), _labels(result), _minutes(result), _more(result), _freeze(freeze), _rules(freeze)]


def _at(result: TransferGain, start: Start) -> CurvePoint:
    """The point of a start's curve at all pictures."""
    return [row for row in result.curves if row.start == start][-1]


def _worth(result: TransferGain) -> str:
    start, scratch = result.pretrained, _at(result, SCRATCH)
    best, worth = _at(result, start), result.worth_points
    reached, without = (share(point.accuracy, point.low, point.high, 1) for point in (best, scratch))
    opening = {
        WORTH: "Pre-training is worth it here",
        NOT_WORTH: "Pre-training buys no accuracy here",
        CANT_TELL: "Whether pre-training buys accuracy here can't be told from these pictures",
    }[result.verdict]
    once = "" if result.repeated else " Chance in training is not counted: see finetune.repeats."
    return (
        f"{opening}: on {best.n} pictures the network reaches {reached} {NAMES[start]} and {without} "
        f"{NAMES[SCRATCH]}, {points(worth.value, worth.low, worth.high)} on the same {result.held_out} held-out "
        f"pictures.{once}"
    )


def _labels(result: TransferGain) -> str:
    labels = result.worth_labels
    reached = f"the {100 * _at(result, SCRATCH).accuracy:.1f}% that random weights reach with {labels.scratch}"
    if labels.pretrained is None:
        return f"In labels: pre-trained, {labels.scratch} pictures do not reach {reached}."
    few = round(labels.pretrained)
    if few >= labels.scratch:
        return f"In labels: pre-trained, it takes about as many pictures to reach {reached}."
    return f"In labels: pre-trained, {few} pictures{' or fewer' if labels.at_most else ''} reach {reached}."


def _minutes(result: TransferGain) -> str:
    minutes = result.worth_minutes
    ours, theirs = minutes.pretrained, minutes.scratch
    told = f"In minutes: training takes {ours:.1f} with pre-training and {theirs:.1f} without, on this machine"
    return f"{told}, {_times(theirs / ours)} times as long." if theirs >= 1.5 * ours else f"{told}."


def _times(ratio: float) -> str:
    """``2.5``; ``12`` from ten on, where the tenth is noise."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def _more(result: TransferGain) -> str:
    more, now = result.more, _at(result, result.pretrained)
    if more.accuracy is None or more.low is None or more.high is None:
        return f"More pictures: no forecast, since {more.refused}."
    return (
        f"More pictures: twice as many ({more.n}) should bring {share(more.accuracy, more.low, more.high, 1)}, "
        f"{signed(100 * (more.accuracy - now.accuracy), 1)} points, if the curve goes on as it has."
    )


def _freeze(freeze: Freezing) -> str:
    words = {
        "none": "leave the network frozen and train the head",
        "last": "train the last quarter of the network",
        "half": "train the upper half of the network",
        "all": "train all of the network",
    }
    gap = freeze.gap
    return (
        f"How much to train: {words[freeze.measured]} (finetune.unfreeze: {freeze.measured}); with {gap.cut} "
        f"trained instead of the head alone accuracy changes by {points(100 * gap.value, 100 * gap.low, 100 * gap.high)}."
    )


def _rules(freeze: Freezing) -> str:
    likeness = {True: "like ImageNet's", False: "unlike ImageNet's", None: "of unknown likeness to ImageNet's"}
    told = f"By rule of thumb: a {freeze.size} set ({freeze.per_class} per class), {likeness[freeze.similar]}"
    if freeze.similar is not None:
        told += f" (the network is {freeze.confidence:.2f} sure of what it sees; of ImageNet {freeze.on_imagenet:.2f})"
    advice = "; ".join(
        f"{rule} says {entry.words}, {'as' if entry.agrees else 'not what was'} measured"
        for rule, entry in freeze.rules.items()
    )
    return f"{told}. {advice}."
