"""How often the gate promotes a challenger that is no better, against how often it says it does (gate.max_p).

    python bench/gate.py                                   # 2,000 simulations of every case: about half an hour
    python bench/gate.py --metrics accuracy --simulations 200

Both classifiers answer the same pictures of four classes: logits that are normal around the truth, four fifths of their
variance in common, as two trainings on the same pictures have it. In every case the challenger is truly no better; the
rules that only refuse are switched off, so that they do not help. Fails if a rate is clearly above gate.max_p.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from headstart.base.arrays import Floats
from headstart.base.sections import Gate
from headstart.evaluation.intervals import wilson
from headstart.evaluation.metrics import METRICS, Scores
from headstart.tracking.judge import Side, judge

CLASSES, SKILL, COMMON = 4, 2.5, 0.8
NAMES = [f"class {number}" for number in range(CLASSES)]
EVEN = np.arange(CLASSES) % 2
# Of champion and challenger: the skill in each class, and how much surer than calibrated they are.
CASES = {
    "alike": ((SKILL, 1.0), (SKILL, 1.0)),
    "worse": ((SKILL, 1.0), (SKILL - 0.3, 1.0)),
    "better in some classes, as much worse in others": ((SKILL + 0.4 * EVEN, 1.0), (SKILL + 0.4 - 0.4 * EVEN, 1.0)),
    "too sure": ((SKILL, 1.0), (SKILL, 1.5)),
}


def false_promotions(case: str, metric: str, simulations: int, pictures: int = 100, seed: int = 0) -> int:
    """How many of the simulated challengers the gate promotes."""
    rules = Gate.model_validate({"metric": metric, "margin": 1e9, "class_margin": 1.0, "max_ece": 1.0, "max_slowdown": 1e9})
    promoted = 0
    for number in range(simulations):
        champion, challenger = _answers(case, pictures, np.random.default_rng([seed, number]))
        promoted += judge(champion, challenger, NAMES, rules, 1, number).outcome == "promoted"
    return promoted


def _answers(case: str, pictures: int, chance: np.random.Generator) -> tuple[Side, Side]:
    labels = np.arange(pictures) % CLASSES
    common = chance.normal(0, COMMON**0.5, (pictures, CLASSES))
    sides = []
    for number, (skill, sureness) in enumerate(CASES[case]):
        own = chance.normal(0, (1 - COMMON) ** 0.5, (pictures, CLASSES))
        logits = common + own + np.eye(CLASSES)[labels] * np.broadcast_to(skill, CLASSES)
        scores = Scores(_softmax(SKILL * sureness * logits), labels)  # calibrated at a sureness of 1
        sides.append(Side(number, scores, frozenset(range(CLASSES)), 1.0))
    return sides[0], sides[1]


def _softmax(logits: Floats) -> Floats:
    odds: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def main() -> None:
    goals = [metric.name for metric in METRICS.values() if metric.is_goal]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=100, help="in the test split (default: 100)")
    parser.add_argument("--metrics", nargs="+", choices=goals, default=goals)
    asked = parser.parse_args()
    nominal, above = Gate().max_p, []
    print(f"promoted although no better, of {asked.simulations} on {asked.pictures} pictures; nominal: {nominal:.1%}")
    for metric in asked.metrics:
        for case in CASES:
            count = false_promotions(case, metric, asked.simulations, asked.pictures)
            low, high = wilson(np.arange(asked.simulations) < count)
            print(f"{metric:20}{case:50}{count / asked.simulations:6.1%} ({low:.1%} to {high:.1%})", flush=True)
            above += [f"{metric}, {case}"] if low > nominal else []
    if above:
        sys.exit(f"above gate.max_p: {'; '.join(above)}")


if __name__ == "__main__":
    main()
