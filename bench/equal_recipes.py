"""How often two equal recipes are called different: by intervals for other pictures, and by those for other trainings too.

    python bench/equal_recipes.py                                              # the embedded default: hours on two cores
    python bench/equal_recipes.py --source ~/pictures/hymenoptera --epochs 2   # another source, shorter trainings
    python bench/equal_recipes.py --kept FOLDER                                # go on with what an earlier run has trained

The recipe of params.yaml is trained twenty times, with seeds 0 to 19. A comparison draws two sides from them: before, one
training against one, as with finetune.repeats 1; after, 2, 3 and 5 against as many others, the answers of each side
averaged in log-probabilities. There is no difference but by chance, so that 5% of the intervals may miss zero. Fails if
more do after.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _project import clone, stages, with_features

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.metrics import chance_of
from headstart.base.device import set_up
from headstart.base.identity import digest_of
from headstart.base.params import Params
from headstart.base.progress import hidden
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation.intervals import Estimate, mean, numbered, paired_difference, wilson, with_training
from headstart.evaluation.metrics import Scores
from headstart.models.backbones import load_first
from headstart.training.finetuned import load_finetuned
from headstart.training.head_files import load_start
from headstart.training.recipe import Recipe, TrainingSetup
from headstart.training.trainer import finetune

SIDES = (1, 2, 3, 5)  # trainings on each side of a comparison


def answers(project: Path, kept: Path, trainings: int) -> list[Scores]:
    """What each training says about the test pictures; those that are in ``kept`` are not trained again."""
    data, params, device = DataFolder(project, "data"), Params.load(project / "params.yaml"), set_up(None)
    manifest, pixels, head = read_manifest(data.prepare), Pixels(data.prepare), load_start(data.head)
    rows = np.flatnonzero(manifest["split"] == "test")
    labels = head.task.labels_of(manifest.iloc[rows], head.classes)
    groups = numbered(manifest["group"].to_numpy(str)[rows])
    found, recipes = [], kept / digest_of([params.finetune])[:7]
    for seed in range(trainings):
        home = recipes / f"seed-{seed}"
        file = home / "test.npy"
        if not file.exists():
            trunk, card = load_first(data.backbone, data.fetch.network)
            recipe = Recipe(params.finetune, not card.pretrained, seed, int((manifest["split"] == "train").sum()))
            setup = TrainingSetup(trunk, head, pixels, manifest, recipe, device, params.features.engine)
            with hidden():
                finetune(setup, home, recipes / f"resume-{seed}", cache=kept / "answers")
            model = load_finetuned(home, load_first(data.backbone, data.fetch.network)[0], head)
            assert model is not None
            logits = torch.cat(list(model.eval().logits_of(pixels, rows.tolist(), 64, device))) / model.temperature
            part = file.with_name("part.npy")
            np.save(part, logits.double().log_softmax(1).numpy())
            part.replace(file)
        scores = Scores(np.exp(np.load(file)), labels, groups=groups)
        print(f"seed {seed}: accuracy {scores.correct.mean():.3f}, log-loss {scores.losses.mean():.3f}", flush=True)
        found.append(scores)
    return found


def averaged(side: list[Scores]) -> Scores:
    """Of several trainings, in log-probabilities."""
    odds = np.exp(np.mean([np.log(one.probabilities) for one in side], axis=0))
    return Scores(odds / odds.sum(axis=1, keepdims=True), side[0].labels, groups=side[0].groups)


def differences(before: list[Scores], after: list[Scores]) -> dict[str, Estimate]:
    """Of the averages of two sides, with the intervals that headstart gives."""
    one, other = averaged(before), averaged(after)
    of_pictures = {
        "accuracy": paired_difference(one.correct, other.correct, one.groups).accuracy,
        "log-loss": Estimate(*mean(other.losses - one.losses, groups=one.groups)),
    }
    if len(before) == 1:
        return of_pictures
    figures = {
        "accuracy": [[float(each.correct.mean()) for each in side] for side in (before, after)],
        "log-loss": [[float(each.losses.mean()) for each in side] for side in (before, after)],
    }
    return {
        name: with_training(found, [chance_of(side) for side in figures[name]], one.groups)
        for name, found in of_pictures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="emoji", help="a value of data.source; default: emoji")
    parser.add_argument("--limit", type=int, help="data.limit, for a quick look; default: all pictures")
    parser.add_argument("--epochs", type=int, help="finetune.epochs; default: that of params.yaml")
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--kept", type=Path, help="folder of the project and of all trainings; default: a temporary one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = (asked.kept or Path(scratch)).resolve()
        project, source = kept / "project", Path(asked.source).expanduser()
        if not (project / "data/head").exists():
            clone(project, data={"limit": asked.limit})
            with_features(project, str(source.resolve()) if source.exists() else asked.source)
            stages(project, "head")
        if asked.epochs:
            clone(project, finetune={"epochs": asked.epochs})
        os.chdir(project)
        found = answers(project, kept, asked.trainings)
    accuracies = [scores.correct.mean() for scores in found]
    print(f"accuracy {np.mean(accuracies):.3f}, standard deviation between trainings {np.std(accuracies, ddof=1):.4f}")
    chance, above = np.random.default_rng(0), []
    for count in SIDES:
        if 2 * count > len(found):
            continue
        called: dict[str, list[bool]] = {}
        widths: dict[str, list[float]] = {}
        for _ in range(asked.comparisons):
            drawn = [found[number] for number in chance.permutation(len(found))[: 2 * count]]
            for name, (_, low, high) in differences(drawn[:count], drawn[count:]).items():
                called.setdefault(name, []).append(low > 0 or high < 0)
                widths.setdefault(name, []).append(high - low)
        for name, different in called.items():
            share, (low, high) = np.mean(different), wilson(np.array(different))
            what = f"{count} against {count}, {'pictures only' if count == 1 else 'pictures and trainings'}"
            print(
                f"{name:9}{what:38}called different {share:5.1%} ({low:.1%} to {high:.1%}), intervals "
                f"{np.mean(widths[name]):.3f} wide",
                flush=True,
            )
            above += [f"{name}, {what}"] if count > 1 and share > 0.05 else []
    if above:
        sys.exit(f"called different too often: {'; '.join(above)}")


if __name__ == "__main__":
    main()
