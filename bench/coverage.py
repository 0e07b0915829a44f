"""How often 95% intervals hold the truth where pictures come in groups, such as ten of each person.

    python bench/coverage.py                     # 1,000 simulations of each number of groups: about ten minutes
    python bench/coverage.py --simulations 200 --groups 30

Two classifiers answer the same pictures. How far each is right has a part that all pictures of a group share and a part of
its own, for each classifier and for both. The intervals are those of metrics.json (accuracy), of the gain by fine-tuning,
and of the gate (a difference of accuracies and of log-losses); beside each the one that takes every picture for a group of
its own, as all did before. Fails if an interval that knows the groups covers less than 93 or more than 97 of 100.
"""

from __future__ import annotations

import argparse
import sys
from statistics import NormalDist

import numpy as np

from headstart.base.arrays import Floats
from headstart.base.sections import Gate
from headstart.evaluation import metrics
from headstart.evaluation.metrics import Scores
from headstart.tracking.judge import Side, judge

SKILLS = (1.2, 1.6)  # of the two classifiers, in units in which each part below is measured
GROUP, GROUP_AND_SIDE, PICTURE, PICTURE_AND_SIDE = 0.9, 0.5, 0.8, 0.6  # standard deviations
SPREAD = float(np.sqrt(GROUP**2 + GROUP_AND_SIDE**2 + PICTURE**2 + PICTURE_AND_SIDE**2))
NAMES = ["a", "b"]
RESAMPLES = 500


def answers(groups: int, per_group: int, chance: np.random.Generator) -> tuple[Scores, Scores]:
    """What the two say about the same pictures."""
    of = np.repeat(np.arange(groups), per_group)
    labels = chance.integers(0, 2, len(of))
    shared = chance.normal(0, GROUP, groups)[of] + chance.normal(0, PICTURE, len(of))
    sides = []
    for skill in SKILLS:
        own = chance.normal(0, GROUP_AND_SIDE, groups)[of] + chance.normal(0, PICTURE_AND_SIDE, len(of))
        sure: Floats = 1 / (1 + np.exp(-(skill + shared + own)))  # of what is true
        probabilities = np.stack([np.where(labels == 0, sure, 1 - sure), np.where(labels == 1, sure, 1 - sure)], axis=1)
        sides.append(Scores(probabilities, labels, groups=of))
    return sides[0], sides[1]


def truths() -> dict[str, float]:
    before, after = (NormalDist().cdf(skill / SPREAD) for skill in SKILLS)
    chance = np.random.default_rng(0).normal(0, SPREAD, 10**6)
    first, second = (float(np.log1p(np.exp(-(skill + chance))).mean()) for skill in SKILLS)
    return {"accuracy": before, "gain": after - before, "gate, accuracy": after - before, "gate, log-loss": first - second}


def intervals(before: Scores, after: Scores) -> dict[str, tuple[float, float]]:
    measured, gain = metrics.measured(before, 100, 0), metrics.gain(before, after)
    found = {"accuracy": (measured["accuracy_low"], measured["accuracy_high"]), "gain": (gain["low"], gain["high"])}
    sides = [Side(number, scores, frozenset({0, 1}), 1.0) for number, scores in enumerate((before, after))]
    for name in ("accuracy", "log_loss"):
        rules = Gate.model_validate({"metric": name, "max_slowdown": 1e9})
        numbers = judge(sides[0], sides[1], NAMES, rules, RESAMPLES, 0).numbers["gain"]
        found[f"gate, {name.replace('_', '-')}"] = (numbers["low"], numbers["high"])
    return found


def coverage(groups: int, per_group: int, simulations: int) -> dict[str, tuple[float, float]]:
    """By what is estimated: the shares of intervals, with groups and without, that hold the truth."""
    true, held = truths(), {name: np.zeros(2) for name in truths()}
    for number in range(simulations):
        with_groups = answers(groups, per_group, np.random.default_rng([groups, number]))
        without = [Scores(each.probabilities, each.labels) for each in with_groups]
        for column, (before, after) in enumerate((with_groups, without)):
            for name, (low, high) in intervals(before, after).items():
                held[name][column] += low <= true[name] <= high
    return {name: (float(counts[0] / simulations), float(counts[1] / simulations)) for name, counts in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--groups", type=int, nargs="+", default=[20, 40, 100])
    parser.add_argument("--per-group", type=int, default=10)
    asked = parser.parse_args()
    off = []
    print(f"of {asked.simulations} intervals of 95%, {asked.per_group} pictures a group: hold the truth")
    for groups in asked.groups:
        for name, (ours, before) in coverage(groups, asked.per_group, asked.simulations).items():
            print(f"{groups:4} groups  {name:16} {ours:6.1%}   each picture for itself {before:6.1%}", flush=True)
            off += [f"{name}, {groups} groups"] if not 0.93 <= ours <= 0.97 else []
    if off:
        sys.exit(f"not within 93 and 97%: {'; '.join(off)}")


if __name__ == "__main__":
    main()
