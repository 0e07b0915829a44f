"""Kinds of pictures that are wrong more often: how often they are found where there are some, and where there are none?

    python bench/subgroups.py data    # where stages have run up to features; half a minute

Validation and test pictures are drawn anew from all pictures, by their frozen features. In one case mistakes are spread by
chance, in the others a tenth of the pictures that resemble each other most is wrong more often than the rest. Prints how
often something is found, and how much of what is found is planted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from headstart.base.arrays import Bools
from headstart.base.artifacts.metrics import Subgroup
from headstart.data.splits import SPLITS
from headstart.evaluation.metrics import Scores
from headstart.evaluation.subgroups import worst_subgroups
from headstart.training.feature_files import load_features

WRONG, SHARE = 0.15, 0.1  # of all pictures; of the pictures, in a planted subgroup
CASES = {"mistakes by chance": WRONG, "half of the subgroup wrong": 0.5, "seven of ten wrong": 0.7}


def scores(wrong: Bools) -> Scores:
    return Scores(np.eye(2)[wrong.astype(int)], np.zeros(len(wrong), int))


def once(features: Tensor, wrong_in_subgroup: float, seed: int) -> list[tuple[Subgroup, float]]:
    """What is found, each with the share of its middle that is planted. Four of ten pictures are validation's."""
    random = np.random.default_rng(seed)
    unit = normalize(features - features.mean(0), dim=1)
    near = (unit @ unit[random.integers(len(unit))]).numpy()
    planted = near >= np.quantile(near, 1 - SHARE)
    wrong = random.random(len(unit)) < np.where(planted, wrong_in_subgroup, WRONG)
    order = random.permutation(len(unit))
    val, test = order[: len(order) * 4 // 10], order[len(order) * 4 // 10 :]
    manifest = pd.DataFrame({"split": "test", "label": "a", "path": test.astype(str)})
    found = worst_subgroups(manifest, (features[val], features[test]), scores(wrong[val]), scores(wrong[test]))
    return [(one, float(planted[list(map(int, one.nearest))].mean())) for one in found.found] if found else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=560)
    asked = parser.parse_args()
    features = torch.cat([load_features(asked.data / "features", split)[0] for split in SPLITS])
    for case, wrong in CASES.items():
        drawn = [
            once(features[np.random.default_rng(seed).permutation(len(features))[: asked.pictures]], wrong, seed)
            for seed in range(asked.draws)
        ]
        share = np.mean([planted for found in drawn for _, planted in found] or [0])
        print(
            f"{case}: something is found in {sum(map(bool, drawn))} of {asked.draws}; {share:.2f} of its middle is planted"
        )


if __name__ == "__main__":
    main()
