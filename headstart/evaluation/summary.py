"""The result in one sentence, from what metrics.json holds: for whoever does not want to import what evaluating takes."""

from __future__ import annotations

from statistics import stdev

from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.finetune import KEPT, FinetuneDetails
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.metrics import Folds, Heat, Leaks, Measured, Metrics, Name, Repeats, Subgroup
from headstart.base.terminal import many
from headstart.base.wording import points, share

NAMES: dict[Name, str] = {
    "head": "the head on frozen features",
    "finetune": "the fine-tuned network",
    "ensemble": "the average of the head and the fine-tuned network",
}


def interval(measured: Measured, name: str = "accuracy") -> str:
    """A metric with its interval, as people write it: 0.812 (0.774–0.848)."""
    return f"{measured[name]:.3f} ({measured[f'{name}_low']:.3f}–{measured[f'{name}_high']:.3f})"


def arithmetic(features: FeaturesDetails, finetune: FinetuneDetails) -> str:
    """What made the features, and the fine-tuned network where there is one. Where it differs, so do the last digits, and
    fine-tuning lets them grow."""
    here, there = (f"{details.processor}, {details.threads} threads" for details in (features, finetune))
    text = f"{here}; features by {features.engine}"
    if not finetune.ran:
        return text
    elsewhere = "" if there == here else f" on {there}"
    return f"{text}; fine-tuning{elsewhere}, its frozen layers by {finetune.frozen_part.engine}"


def headline(result: Metrics) -> str:
    """A sentence or a few on what was chosen and what it is worth."""
    best = result.test["chosen"]
    chose = f"Validation chose {NAMES[result.chosen]}" if "finetune" in result.test else "The head on frozen features"
    sentence = f"{chose}; test {_figures(best)} on {best['n']} pictures."
    if (worst := result.worst_class) and worst.f1 < best["accuracy"]:
        sentence += f" Its worst class is {worst.label}: F1 {worst.f1:.2f}, of {many(worst.pictures, 'test picture')}."
    if result.gain:
        gain = result.gain["test"]
        by = points(100 * gain.accuracy, 100 * gain.low, 100 * gain.high)
        told = f"differs from the head by {by}"
        if gain.accuracy == gain.low == gain.high == 0:
            told = "is right on the same pictures as the head"
        unchosen = ", which was not chosen," if result.chosen == "head" else ""
        sentence += f" The fine-tuned network{unchosen} {told}"
        missing = "the interval is for other pictures, not for another training."
        sentence += f"; {of_repeats(result.repeats) if result.repeats else missing}"
    if result.folds:
        sentence += f" {in_folds(result.folds)}"
    if result.heat and (edge := at_edge(result.heat)):
        sentence += f" {edge}"
    return f"{sentence} {of_shortcuts(result.shortcuts)}" if result.shortcuts else sentence


def of_repeats(repeats: Repeats) -> str:
    """What the interval of the gain holds where there were several trainings, and how far these lie apart, as a sentence
    goes on."""
    found = repeats.each["finetune"]["test"]["accuracy"]
    return (
        f"the interval is for other pictures and other trainings. Test accuracy of the {repeats.count} trainings is "
        f"{min(found):.3f} to {max(found):.3f} (standard deviation {stdev(found):.3f}); kept: {KEPT[repeats.kept]}."
    )


def at_edge(heat: Heat) -> str:
    """That it looks mostly at the edge of pictures, if it does; with what an even map would have there."""
    if heat.centre.high >= heat.even:
        return ""
    outside = Interval(value=1 - heat.centre.value, low=1 - heat.centre.high, high=1 - heat.centre.low)
    return (
        f"It looks mostly at the edge of pictures: {_percent(outside)} of the heat lies outside the centre, where an even "
        f"map would have {100 * (1 - heat.even):.0f}%."
    )


def of_heat(heat: Heat) -> str:
    """How much of the heat lies at the centre, and which classes are told by the edge."""
    sentence = (
        f"On {heat.pictures} test pictures {_percent(heat.centre)} of the heat lies at the centre of what the network is "
        f"shown, where an even map would have {100 * heat.even:.0f}%."
    )
    classes = ", ".join(f"{one.label} {_percent(one.centre)}" for one in heat.at_edge)
    return f"{sentence} Less than an even map has, beyond chance: {classes}." if classes else sentence


def of_subgroup(subgroup: Subgroup) -> str:
    """What is known of a subgroup that is worse than the others."""
    labels = ", ".join(f"{label} {count}" for label, count in subgroup.labels.items())
    value, low, high = (getattr(subgroup.accuracy, name) for name in ("value", "low", "high"))
    others = f"{subgroup.others:.3f} on the others"
    return f"{subgroup.pictures} test pictures ({labels}): accuracy {value:.3f} ({low:.3f}–{high:.3f}), {others}"


def _percent(part: Interval) -> str:
    return share(part.value, part.low, part.high)


def of_shortcuts(known: list[str]) -> str:
    """That the figures may be of something else than what the pictures show."""
    more = f" (and {len(known) - 1} more)" if len(known) > 1 else ""
    return f"Beware of a shortcut: {known[0]}{more}. The figures may be of that and not of what the pictures show."


def in_folds(folds: Folds) -> str:
    """What the folds say, and which figure to quote."""
    return (
        f"In {folds.count} folds over all {folds.head['n']} pictures, heads made like this one from {folds.count - 1}/"
        f"{folds.count} of them reach {_figures(folds.head)}. "
        f"Quote {'the figure of the folds' if folds.quote == 'folds' else 'the test figure'}: {folds.reason}."
    )


def of_leaks(leaks: Leaks, test: Measured) -> str:
    """How many test pictures look the same as one that was learned from, and what that adds to the accuracy of ``test``."""
    if not leaks.pictures:
        return ""
    sentence = (
        f"{leaks.pictures} of {test['n']} test pictures look the same to the network as a training or validation picture."
    )
    if leaks.without is None or leaks.added is None:
        return f"{sentence} Test figures tell nothing of new pictures."
    added = leaks.added
    by = points(100 * added.value, 100 * added.low, 100 * added.high)
    return f"{sentence} Without them test accuracy is {interval(leaks.without)}: they change it by {by}."


def _figures(measured: Measured) -> str:
    accuracy = f"accuracy {interval(measured)}"
    several = "mean_average_precision" in measured
    return f"mean average precision {interval(measured, 'mean_average_precision')}, {accuracy}" if several else accuracy
