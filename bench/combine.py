"""What networks side by side bring: accuracy and minutes beside one frozen network, fine-tuning, and both together.

    python bench/combine.py                                       # the embedded default, three seeds, half an hour
    python bench/combine.py emoji ../shared/data/hymenoptera_data --seeds 1

The combination is the one of params.yaml; "one network" is its first, which is also the one that is fine-tuned. Each seed
draws other validation pictures (and, where the source has no test split of its own, other test pictures) and trains anew.
Minutes are those of the stages that the row needs, from backbone on. The last column is the accuracy minus that of
fine-tuning, on the same test pictures, with its 95% interval, for each seed. bench/fastai_loop.py compares with fastai's
fine_tune.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from _project import clone, stages

from headstart.base.artifacts import DataFolder
from headstart.base.params import Params
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation import report
from headstart.evaluation.metrics import Scores, gain

ROWS = ("one network, frozen", "side by side, frozen", "one network, fine-tuned", "average of the last two")


@dataclass
class Row:
    scores: list[Scores] = field(default_factory=list)  # by seed
    minutes: list[float] = field(default_factory=list)


def timed(folder: Path, *scripts: str) -> dict[str, float]:
    """Minutes of each stage."""
    minutes = {}
    for script in scripts:
        start = time.perf_counter()
        stages(folder, script)
        minutes[script] = (time.perf_counter() - start) / 60
    return minutes


def scores_of(folder: Path) -> dict[str, Scores]:
    """What each classifier says of the test pictures."""
    data = DataFolder(folder / "data")
    manifest, pixels = read_manifest(data.prepare), Pixels(data.prepare)
    found = report._candidates(data, manifest, pixels, torch.device("cpu"))
    return {name: scores["test"] for name, scores in found.scores.items()}


def measure(source: str, seeds: int) -> dict[str, Row]:
    rows = {name: Row() for name in ROWS}
    path = Path(source)
    where = str(path.resolve()) if path.exists() else source
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            one, several = Path(name, "one"), Path(name, "several")
            clone(several, data={"source": where}, seed=seed)
            first = Params.load(several / "params.yaml").members[0]
            clone(one, data={"source": where}, seed=seed, backbone=first[0], view=first[1].model_dump())
            clone(one, finetune={"unfreeze": "none"})
            for folder in (one, several):
                stages(folder, "fetch", "prepare")
            alone = timed(one, "backbone", "features", "head", "finetune")
            together = timed(several, "backbone", "features", "head", "finetune")
            single, found = scores_of(one), scores_of(several)
        frozen = sum(together[stage] for stage in ("backbone", "features", "head"))
        each = [
            (single["head"], sum(alone.values())),
            (found["head"], frozen),
            (found["finetune"], sum(alone.values()) + together["finetune"]),
            (found["ensemble"], frozen + together["finetune"]),
        ]
        for name, (scores, minutes) in zip(ROWS, each, strict=True):
            rows[name].scores.append(scores)
            rows[name].minutes.append(minutes)
            print(f"{source}, seed {seed}: {name}: {scores.correct.mean():.3f} ({scores.losses.mean():.3f})", flush=True)
    return rows


def show(source: str, rows: dict[str, Row]) -> None:
    tuned = rows["one network, fine-tuned"]
    print(
        f"\n{source}\n{'':<26}{'accuracy':>9}{'log-loss':>9}{'minutes':>9}{'× fine-tuning':>15}   points over fine-tuning"
    )
    for name, row in rows.items():
        accuracy = np.mean([scores.correct.mean() for scores in row.scores])
        loss = np.mean([scores.losses.mean() for scores in row.scores])
        minutes = float(np.mean(row.minutes))
        gains = [gain(before, after) for before, after in zip(tuned.scores, row.scores, strict=True)]
        told = [f"{100 * g['accuracy']:+.1f} ({100 * g['low']:+.1f} to {100 * g['high']:+.1f})" for g in gains]
        ratio = minutes / float(np.mean(tuned.minutes))
        over = "" if row is tuned else ", ".join(told)
        print(f"{name:<26}{accuracy:>9.3f}{loss:>9.3f}{minutes:>9.1f}{ratio:>15.2f}   {over}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=["emoji"], help="as data.source in params.yaml (default: emoji)")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for source in arguments.sources:
        show(source, measure(source, arguments.seeds))


if __name__ == "__main__":
    main()
