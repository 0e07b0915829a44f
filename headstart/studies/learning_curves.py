"""why, measured: learning curves of a frozen, a fine-tuned and a randomly initialised network on the user's own pictures.

Training and validation pictures are cut into five folds. For some of them everything is trained on growing shares of the
other four and asked about the fold that was held out, so that all starts answer the same pictures and nothing that is
reported chose anything. The test split is not looked at.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts import BackboneFolder, DataFolder, FinetuneFolder
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.metrics import Chance, chance_of
from headstart.base.artifacts.why import Cut
from headstart.base.device import precise
from headstart.base.kept import read_kept, write_kept
from headstart.base.params import Params
from headstart.base.progress import pieces
from headstart.base.sections import Finetune
from headstart.base.terminal import say
from headstart.data.packed import Pixels
from headstart.engines.batching import inference_batch
from headstart.evaluation.intervals import numbered
from headstart.models.backbones import load_first, stored_architecture
from headstart.models.classifier import FittedHead
from headstart.models.trunk import Trunk, plain
from headstart.studies.candidates import Sample
from headstart.training.checkpoint import STATE
from headstart.training.feature_files import load_first_features
from headstart.training.finetuned import load_finetuned
from headstart.training.head_files import load_head
from headstart.training.linear_probe import folds_of, train_head
from headstart.training.recipe import UNFROZEN, Recipe, TrainingSetup
from headstart.training.repeats import finetune_repeatedly

FROZEN: Final = "frozen"
FINETUNED: Final = "finetuned"
SCRATCH: Final = "scratch"
CUTS: tuple[Cut, ...] = ("none", "last", "half", "all")


@dataclass(frozen=True)
class Training:
    """One training: what it starts from, how much of the network it trains, and on which pictures.

    Attributes:
        start: frozen, finetuned or scratch.
        cut: as ``finetune.unfreeze``.
        fold: number of the fold that is held out.
        share: of the pictures outside that fold.
    """

    start: str
    cut: str
    fold: int
    share: float

    @property
    def name(self) -> str:
        return f"{self.start}-{self.cut}-{self.fold}-{self.share:g}"

    @property
    def told(self) -> str:
        """What people read of it."""
        return f"{self.start}, {self.cut} trained"


@dataclass(frozen=True)
class Outcome:
    """What came of one training.

    Attributes:
        n: pictures to train on and to choose with.
        correct, losses: of each held-out picture, 1 where the answer is right, and its calibrated log-loss.
        repeats: accuracy of each of several trainings that differ by chance alone; empty where there was one.
    """

    n: int
    seconds: float
    correct: list[int]
    losses: list[float]
    repeats: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """One start at one cut, over growing numbers of pictures.

    Attributes:
        n: (S,) pictures it was trained on.
        correct: (S, N) whether the answer for each held-out picture was right.
        losses: (S, N) calibrated log-losses.
        seconds: (S,) that the training took, mean over folds.
        groups: (N,) numbers of the groups that the held-out pictures belong to; None where each is on its own.
        chances: for each of S, what other trainings would change of the accuracy, fold by fold; empty where that is not
            known, as every training was done once.
    """

    n: Ints
    correct: Bools
    losses: Floats
    seconds: Floats
    groups: Ints | None = None
    chances: list[list[Chance]] = field(default_factory=list)

    @property
    def accuracy(self) -> Floats:
        found: Floats = self.correct.mean(axis=1)
        return found


Run = Callable[[Sequence[Training]], Iterator[tuple[Training, Outcome]]]
Curves = dict[tuple[str, str], Curve]  # by start and cut


def cut_of(settings: Finetune) -> Cut:
    """What "fine-tuned" stands for: as params.yaml has it, or half where fine-tuning is off."""
    return "half" if settings.unfreeze == "none" else settings.unfreeze


def plan(shares: Sequence[float], folds: int, cut: str) -> list[Training]:
    """All trainings, the quick ones first. The cuts that are not the curve's own are tried on all pictures only."""
    frozen = [Training(FROZEN, "none", fold, share) for fold in range(folds) for share in shares]
    tuned = [Training(FINETUNED, cut, fold, share) for fold in range(folds) for share in shares]
    cuts = [Training(FINETUNED, other, fold, 1.0) for fold in range(folds) for other in CUTS[1:] if other != cut]
    scratch = [Training(SCRATCH, "all", fold, share) for fold in range(folds) for share in shares]
    return frozen + tuned + cuts + scratch


class Pictures:
    """Training and validation pictures, folded.

    Attributes:
        features: (N, D) of the frozen network, in the sample's order.
    """

    def __init__(self, data: DataFolder, manifest: pd.DataFrame, sample: Sample, device: torch.device) -> None:
        self.sample, self.manifest = sample, manifest
        self.prepared = data.prepare
        self.folds = folds_of(sample.labels, sample.groups)
        self.features = features_of(data.features, manifest, sample.rows, precise(device))
        self.labels = torch.from_numpy(sample.labels).to(self.features.device)

    @cached_property
    def pixels(self) -> Pixels:
        return Pixels(self.prepared)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: a node of a cluster opens its own, once it is in the project's folder."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}

    def pictures(self, fold: int, share: float) -> Ints:
        """Numbers in the sample of the pictures to learn from: a share of those outside the fold, and at least so many that
        there are three of each class. A larger share holds the smaller."""
        fitted = self.folds[fold][0]
        labels = self.sample.labels[fitted]
        least = max(int(np.flatnonzero(labels == number)[:3][-1]) + 1 for number in range(len(self.sample.classes)))
        return fitted[: max(round(share * len(fitted)), least)]

    def shares(self, fractions: Sequence[float]) -> list[float]:
        """Those of the fractions that are different numbers of pictures here."""
        counts = [len(self.pictures(0, share)) for share in fractions]
        return [share for share, n, larger in zip(fractions, counts, [*counts[1:], 0], strict=True) if n != larger]

    def inner(self, fold: int, share: float) -> tuple[Ints, Ints]:
        """Of those, the ones to train on and the ones to choose with: a fifth of each class, and nothing that resembles one
        of them among the others, unless a class has nothing else."""
        order = self.pictures(fold, share)
        by_class = order[np.argsort(self.sample.labels[order], kind="stable")]
        val = np.sort(by_class[2::5])
        rest = np.setdiff1d(order, val)
        apart = rest[~np.isin(self.sample.groups[rest], self.sample.groups[val])]
        return (apart if len(np.unique(self.sample.labels[apart])) == len(self.sample.classes) else rest), val

    def as_manifest(self, train: Ints, val: Ints) -> pd.DataFrame:
        """A manifest in which these are all the training and validation pictures there are."""
        names = np.array(self.sample.classes, object)
        frame = pd.DataFrame({"label": names[0], "split": "", "group": self.manifest["group"].to_numpy()})
        frame.loc[self.sample.rows, "label"] = names[self.sample.labels]
        frame.loc[self.sample.rows[train], "split"] = "train"
        frame.loc[self.sample.rows[val], "split"] = "val"
        return frame


def features_of(folder: Path, manifest: pd.DataFrame, rows: Ints, device: torch.device) -> Tensor:
    """(N, D) cached features of ``rows`` of the manifest, which are training or validation pictures."""
    parts = [load_first_features(folder, split) for split in ("train", "val")]
    found = [np.flatnonzero(manifest["split"] == split) for split in ("train", "val")]
    place = {int(row): number for number, row in enumerate(np.concatenate(found))}
    return torch.cat(parts)[[place[int(row)] for row in rows]].to(device)


@dataclass(frozen=True)
class Laboratory:
    """What every training needs.

    Attributes:
        backbone: the folder of the backbone stage.
        seconds_per_picture: that the frozen network takes.
        state: where a training that was interrupted goes on.
    """

    pictures: Pictures
    backbone: BackboneFolder
    network_file: Path
    params: Params
    device: torch.device
    seconds_per_picture: float
    state: Path

    def run(self, training: Training) -> Outcome:
        p, sample = self.pictures, self.pictures.sample
        train, val = p.inner(training.fold, training.share)
        held_out = p.folds[training.fold][1]
        start, repeats = time.perf_counter(), list[float]()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            train_x, val_x = (p.features[numbers] for numbers in (train, val))
            train_head(
                (train_x, p.labels[train]), (val_x, p.labels[val]), list(sample.classes), self.params.head, folder / "head",
                sample.groups[np.concatenate([train, val])],
            )  # fmt: skip
            head = load_head(folder / "head", refit=training.start == FROZEN)
            if training.start == FROZEN:
                seconds = time.perf_counter() - start + self.seconds_per_picture * (len(train) + len(val))
                logits, temperature = head.logits(p.features[held_out].cpu()), head.temperature
            else:
                recipe = self.recipe(training, len(train))
                resume = self.state / training.name
                setup = TrainingSetup(
                    self.trunk(training), head, p.pixels, p.as_manifest(train, val), recipe, self.device,
                    self.params.features.engine,
                )  # fmt: skip
                clock = Clock(resume)
                finetune_repeatedly(setup, folder / "tuned", resume, lambda row: clock.note())
                seconds = clock.seconds()
                if training.start == FINETUNED:
                    seconds += self.seconds_per_picture * (len(train) + len(val))  # of the head it starts from
                tuned, rows = FinetuneFolder(folder, "tuned"), sample.rows[held_out]
                logits, temperature = self.logits(tuned, training, head, rows)
                count = self.params.finetune.repeats
                for home in [tuned.repeat(number) for number in range(1, count + 1)] if count > 1 else []:
                    found = head.task.predict(self.logits(home, training, head, rows)[0].numpy())
                    repeats.append(float(head.task.correct(found, sample.labels[held_out]).mean()))
        calibrated, labels = (logits.cpu() / temperature).numpy(), sample.labels[held_out]
        losses = head.task.losses(calibrated.astype(np.float64), labels)
        return Outcome(
            n=len(train) + len(val),
            seconds=round(seconds, 2),
            correct=head.task.correct(head.task.predict(calibrated), labels).astype(int).tolist(),
            losses=[round(float(loss), 6) for loss in losses],
            repeats=repeats,
        )

    def run_all(self, trainings: Sequence[Training]) -> Iterator[tuple[Training, Outcome]]:
        """What comes of each training, one after the other."""
        with pieces("why", [self.cost(training) for training in trainings], "training") as piece:
            for training in trainings:
                with piece(f"{training.told}, fold {training.fold + 1}"):
                    outcome = self.run(training)
                yield training, outcome

    def cost(self, training: Training) -> float:
        """How long it takes, in relation to others: pictures times epochs, their pixels, and how much of a forward and a
        backward pass is done for each. Heads on frozen features take no time beside that."""
        if training.start == FROZEN:
            return 0.0
        n = len(self.pictures.inner(training.fold, training.share)[0])
        recipe, size = self.recipe(training, n), Card.read(self.backbone.card).preprocessing.size
        passes = 1 + 2 * (1.0 if recipe.scratch else UNFROZEN[training.cut])
        return n * recipe.epochs * recipe.settings.repeats * recipe.size_ratio(size) ** 2 * passes

    def logits(self, folder: Path, training: Training, head: FittedHead, rows: Ints) -> tuple[Tensor, float]:
        """(N, classes) logits of ``rows`` by what a training left in ``folder``, and its temperature."""
        model = load_finetuned(folder, self.trunk(training), head)
        assert model is not None
        model.eval().to(self.device)
        batch = inference_batch(model, model.trunk.view, self.device)
        return torch.cat(list(model.logits_of(self.pictures.pixels, rows.tolist(), batch, self.device))), model.temperature

    def trunk(self, training: Training) -> Trunk:
        trunk, card = load_first(self.backbone, self.network_file)
        if training.start != SCRATCH:
            return trunk
        network = stored_architecture(card.name, card.weights, card.preprocessing, self.network_file)
        return plain(network.trunk(self.params.seed + training.fold))

    def recipe(self, training: Training, n: int) -> Recipe:
        """The pipeline's own, so that no straw man is compared with; fine-tuned at the training's cut.

        Args:
            n: pictures to train on.
        """
        settings = self.params.finetune.model_copy(update={"unfreeze": training.cut})
        return Recipe(settings, training.start == SCRATCH, self.params.seed, n)


class Clock:
    """Seconds of a training that may be interrupted and go on another day, from where its state was saved last."""

    def __init__(self, resume: Path) -> None:
        self.file, self.resume, self.start = resume / "seconds.json", resume, time.perf_counter()
        self.before: float = read_kept(self.file) or 0.0
        self.saved = self._saved()

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def note(self) -> None:
        if (saved := self._saved()) != self.saved:
            self.saved = saved
            write_kept(self.file, self.seconds())

    def _saved(self) -> int:
        return max((state.stat().st_mtime_ns for state in self.resume.rglob(STATE)), default=0)  # each repeat has one


def measure(pictures: Pictures, trainings: Sequence[Training], run: Run, kept: Path) -> Curves:
    """Run what was not run before, and put all of it together.

    Args:
        run: yields what came of each training, in any order.
        kept: a folder for the results of these very pictures, network and settings.
    """
    files = {training: kept / f"{training.name}.json" for training in trainings}
    outcomes = {training: Outcome(**kept) for training, file in files.items() if (kept := read_kept(file)) is not None}
    missing = [training for training in trainings if training not in outcomes]
    for training, outcome in run(missing):
        outcomes[training] = outcome
        write_kept(files[training], asdict(outcome))
        say(
            f"why: {training.told}, fold {training.fold + 1}, {outcome.n} pictures: "
            f"accuracy {np.mean(outcome.correct):.3f} in {outcome.seconds:.0f} s",
            flush=True,
        )
    keys = dict.fromkeys((t.start, t.cut) for t in trainings)
    return {key: _curve(key, outcomes, pictures) for key in keys}


def _curve(key: tuple[str, str], outcomes: dict[Training, Outcome], pictures: Pictures) -> Curve:
    """Held-out pictures in the folds' order, shares in ascending order."""
    mine = {t: outcome for t, outcome in outcomes.items() if (t.start, t.cut) == key}
    held_out = np.concatenate([pictures.folds[fold][1] for fold in sorted({t.fold for t in mine})])
    shares = sorted({t.share for t in mine})
    rows = [[mine[t] for t in sorted(mine, key=lambda t: t.fold) if t.share == share] for share in shares]
    return Curve(
        np.array([round(float(np.mean([o.n for o in row]))) for row in rows], np.int64),
        np.array([[c for o in row for c in o.correct] for row in rows], bool),
        np.array([[loss for o in row for loss in o.losses] for row in rows]),
        np.array([float(np.mean([o.seconds for o in row])) for row in rows]),
        numbered(pictures.sample.groups[held_out]),
        [_chances(row) for row in rows],
    )


def _chances(outcomes: list[Outcome]) -> list[Chance]:
    """Of the accuracy over all folds, fold by fold; none where the trainings were done once."""
    count = sum(len(outcome.correct) for outcome in outcomes)
    shares = [(len(outcome.correct) / count, outcome.repeats) for outcome in outcomes if outcome.repeats]
    return [chance_of([share * accuracy for accuracy in repeats]) for share, repeats in shares]
