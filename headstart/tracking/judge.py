"""Champion and challenger on the same pictures: what is measured of both, and the rules that decide between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts.metrics import Chance
from headstart.base.errors import HeadstartError
from headstart.base.sections import Gate
from headstart.evaluation.intervals import (
    Estimate,
    bootstrap,
    numbered,
    p_value_with_training,
    paired_difference,
    percentile_interval,
    permutation_p_value,
    with_training,
)
from headstart.evaluation.metrics import METRICS, Metric, Scores, measured, metrics_of
from headstart.evaluation.summary import interval
from headstart.models.task import MultiLabel, Task

PERFECT_DRAWS = 1000
MOST_AT_ONCE = 1 << 24  # drawn numbers: 128 MB
LISTED = 3  # classes that a sentence names
NO_CHANCE = Chance(variance=0.0, degrees=1)  # of a head on frozen features: fitted again it is the same


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
        training: what another training would change of the metric that counts; None where that is not known.
    """

    number: int
    scores: Scores
    known: frozenset[int]
    seconds: float
    arithmetic: str = ""
    training: Chance | None = None


def judge(
    champion: Side | None,
    challenger: Side,
    names: list[str],
    rules: Gate,
    resamples: int,
    seed: int,
    left_out: int = 0,
    shortcuts: Sequence[str] = (),
) -> Decision:
    """Hold two sides that answered the same pictures against the rules.

    Args:
        champion: None where there is none yet.
        names: of the classes.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        left_out: test pictures that were not compared, as the champion has learned from them.
        shortcuts: sentences on what tells the classes apart and has nothing to do with what the pictures show. With one a
            figure says nothing, so the challenger is refused; a person can promote it, with a reason.
    """
    metric = metric_of(rules, challenger.scores.task)
    after = measured(challenger.scores, resamples, seed)
    n = len(challenger.scores.labels)
    numbers: dict[str, Any] = {"pictures": n, "left_out": left_out, "metric": rules.metric}
    numbers["challenger"] = {"version": challenger.number, "seconds_per_picture": challenger.seconds, **after}
    known = [f"what was measured may be of a shortcut ({'; '.join(shortcuts)})"] if shortcuts else []
    if champion is None and known:
        sentence = (
            f"Version {challenger.number} is refused: {known[0]}. {metric.heading} {interval(after, metric.name)} on {n} "
            f"test pictures. `headstart promote {challenger.number} --why REASON` makes it the champion all the same."
        )
        return Decision("refused", sentence, numbers | {"broken": known})
    if champion is None:
        sentence = (
            f"Version {challenger.number} is the first champion: there was none to compare it with. "
            f"{metric.heading} {interval(after, metric.name)} on {n} test pictures."
        )
        return Decision("promoted", sentence, numbers)
    before = measured(champion.scores, resamples, seed)
    numbers["champion"] = {"version": champion.number, "seconds_per_picture": champion.seconds, **before}
    numbers["gain"] = gain = _gain(champion, challenger, metric, resamples, seed)
    difference = paired_difference(champion.scores.correct, challenger.scores.correct, challenger.scores.groups)
    numbers["mcnemar"] = {
        "only_challenger_right": difference.gained,
        "only_champion_right": difference.lost,
        "p": difference.p_value(),
    }
    numbers["unknown_to_champion"] = [names[c] for c in _present(challenger.scores) if c not in champion.known]
    numbers["classes"] = _classes(champion.scores, challenger.scores, names, rules)
    numbers["ece_by_chance"] = _ece_by_chance(challenger.scores, seed)
    numbers["slowdown"] = challenger.seconds / champion.seconds
    made_on = [side.arithmetic.split("; ") for side in (champion, challenger)]
    if any(there != here for there, here in zip(*made_on, strict=False)):  # a network that one lacks is no difference
        numbers["arithmetic"] = {"champion": champion.arithmetic, "challenger": challenger.arithmetic}
    broken = known + _broken(numbers, rules)
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


def metric_of(rules: Gate, task: Task) -> Metric:
    """The metric that the two are compared by.

    Raises:
        HeadstartError: there is no such metric of this task.
    """
    goals = {metric.name: metric for metric in metrics_of(task) if metric.is_goal}
    if rules.metric not in goals:
        raise HeadstartError(f"gate.metric {rules.metric} is none of {task.kind} pictures; allowed: {', '.join(goals)}")
    return goals[rules.metric]


def _gain(champion: Side, challenger: Side, metric: Metric, resamples: int, seed: int) -> dict[str, float]:
    """By how much the challenger is better, with its paired 95% bootstrap interval: each resample is drawn once and both
    are measured on it. ``p`` is how often one that is no better looks as good: by a permutation test, of which McNemar's is
    the exact form for accuracy. Where a side was trained several times, both are also for other trainings, by Student's
    test; of the two p-values the larger counts.

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

    groups = None if after.groups is None else numbered(after.groups[rows])
    draws = bootstrap(lambda drawn: gain(rows[drawn], rows[drawn] + n), len(rows), seed, resamples, groups)
    of_pictures = Estimate(gain(rows, rows + n), *map(float, percentile_interval(draws, groups)))
    chances = [side.training for side in (champion, challenger) if side.training is not None]
    found = with_training(of_pictures, chances, groups, most=1 if metric.is_bounded else math.inf)
    if metric.is_proportion:
        p = paired_difference(before.correct, after.correct, groups).p_value("greater")
    else:
        p = permutation_p_value(lambda swap: gain(rows + n * swap, rows + n * ~swap), len(rows), seed, groups=groups)
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "p": max(p, p_value_with_training(of_pictures, chances, groups)),
        "champion": metric.measure(before, rows),
        "challenger": metric.measure(after, rows),
        "pictures": len(rows),
    }


def _of_classes(scores: Scores, columns: list[int]) -> Scores:
    """Those of some of the classes, where pictures may have several."""
    thresholds = scores.task.thresholds
    task = MultiLabel(None if thresholds is None else tuple(thresholds[column] for column in columns))
    return Scores(scores.probabilities[:, columns], scores.labels[:, columns], task, scores.groups)


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
    by, low, high = (f"{gain[key]:+.3f}".replace("-0.000", "+0.000") for key in ("value", "low", "high"))
    better = "no difference" if by == low == high == "+0.000" else f"better by {by} ({low} to {high})"
    sentence = (
        f"{METRICS[numbers['metric']].heading} {gain['challenger']:.3f} (version {challenger.number}) against "
        f"{gain['champion']:.3f} (version {champion.number}) on the same {gain['pictures']} test pictures; {better}, "
        f"p {gain['p']:.2g}."
    )
    once = [f"version {side.number}" for side in (champion, challenger) if side.training is None]
    if once:
        sentence += f" Chance in the training of {' and of '.join(once)} is not counted: see finetune.repeats."
    if unknown:
        more = ", ..." if len(unknown) > LISTED else ""
        sentence += f" Version {champion.number} does not know {', '.join(unknown[:LISTED])}{more}: wrong on all of them."
    if numbers["left_out"]:
        sentence += f" {numbers['left_out']} test pictures that it has learned from were left out."
    if "arithmetic" in numbers:
        there, here = (numbers["arithmetic"][side] or "not known" for side in ("champion", "challenger"))
        sentence += f" Their arithmetic differs, which alone can change a few answers: {there}; now {here}."
    return sentence
