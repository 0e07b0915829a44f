"""rank: which backbone is best for these pictures? Measured on a sample of them, the hopeless ones left behind early.

All candidates see a small sample. Those whose cross-validated log-loss is clearly worse than the best one's are dropped,
the others see twice as many pictures, and so on: successive halving (Jamieson and Talwalkar 2016, "Non-stochastic best arm
identification and hyperparameter optimization"), except that evidence and not a quota decides who stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.device import set_up
from headstart.base.files import write_json
from headstart.base.measurements import Measurements, machine, seconds
from headstart.base.params import Budget, Params
from headstart.base.paths import state_folder
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.base import Forward
from headstart.engines.select import SAMPLE, engine_for
from headstart.evaluation.intervals import mean
from headstart.models.backbones import Trunk
from headstart.models.catalogue import published
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.graph import fold_batch_norm, split_frozen
from headstart.models.heads import LinearHead
from headstart.models.preprocessing import Normalise
from headstart.models.task import SINGLE_LABEL
from headstart.studies import ranking_report
from headstart.studies.candidates import Candidate, Sample, more_features
from headstart.training.augmentation import train_size
from headstart.training.features import Shown
from headstart.training.linear_probe import Folds, folds_of, held_out_logits
from headstart.training.recipe import Recipe

NEIGHBOURS = 5
MANY = 1_000_000  # pictures, for which any engine is worth compiling: what is measured is speed once it runs
STEP = 8  # pictures in the training step that is timed


# --- what is measured of features ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """What a logistic regression on frozen features says of pictures that were held out when it was fitted.

    Attributes:
        losses: (N,) log-losses, calibrated.
        correct: (N,) whether the answer was right.
    """

    losses: Floats
    correct: Bools


def probe(features: Tensor, labels: Ints, folds: Folds) -> Probe:
    """(N, D) features → what five regressions say of them, each of the fold that it was not fitted on."""
    logits = held_out_logits(features, labels, folds)
    return Probe(SINGLE_LABEL.losses(logits, labels), SINGLE_LABEL.correct(SINGLE_LABEL.predict(logits), labels))


def knn_accuracy(features: Tensor, labels: Ints, folds: Folds) -> float:
    """Accuracy of the five nearest neighbours by cosine, those in a picture's own fold left out."""
    from sklearn.neighbors import KNeighborsClassifier

    x, right = features.cpu().numpy(), 0
    for fitted, held_out in folds:
        nearest = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(x[fitted], labels[fitted])
        right += int((nearest.predict(x[held_out]) == labels[held_out]).sum())
    return right / len(labels)


def log_me(features: Floats, labels: Ints) -> float:
    """LogME (You et al. 2021, "LogME: practical assessment of pre-trained models for transfer learning"): the logarithm of
    the evidence, per picture and averaged over classes, for a Bayesian linear regression from features to "of this class".

    With F = U diag(s) V' the evidence for prior precision alpha and noise precision beta needs no more than s and U'y; both
    precisions are raised to its maximum by the fixed-point iteration of You et al. 2022, section 4.

    Args:
        features: (N, D).
        labels: (N,) of two classes or more.
    """
    n = len(labels)
    u, s, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    some = s > s.max() * 1e-7  # directions in which the features have any extent
    u, squared = u[:, some], s[some] ** 2
    evidences = []
    for y in (labels == number for number in np.unique(labels)):
        along = (u.T @ y) ** 2
        outside = y.sum() - along.sum()  # of |y|², what no weights can reach
        alpha = beta = 1.0
        for _ in range(100):
            ratio = alpha / beta
            free = (squared / (squared + ratio)).sum()  # well-determined directions, MacKay's gamma
            weights = (squared * along / (squared + ratio) ** 2).sum()
            residual = (along * (ratio / (squared + ratio)) ** 2).sum() + outside
            alpha, beta = free / max(weights, 1e-12), (n - free) / max(residual, 1e-12)
            if abs(alpha / beta - ratio) <= 1e-4 * ratio:
                break
        fit = n * np.log(beta / (2 * np.pi)) - beta * residual - alpha * weights
        evidences.append((fit + np.log(alpha / (alpha + beta * squared)).sum()) / (2 * n))
    return float(np.mean(evidences))


# --- what is measured of the machine ------------------------------------------------------------------------------


def images_per_s(shown: Shown, rows: Ints, wanted: str) -> float:
    """How many pictures a second the engine does that a long pass would be made with."""
    few = shown.at_once(rows[:SAMPLE])
    forward, _ = engine_for(shown.network, MANY, few, shown.device, wanted)
    return len(few) / seconds(lambda: forward(few).cpu())


def training_seconds(trunk: Trunk, width: int, classes: Sequence[str], recipe: Recipe, device: torch.device) -> float:
    """Seconds that fine-tuning takes for one picture in one epoch: a step's, without decoding and validation.

    The layers that stay frozen run in torch here, where fine-tuning may find them a faster engine.
    """
    trunk.view = replace(trunk.view, size=train_size(trunk, recipe.settings.size_ratio))
    head = FittedHead(LinearHead.of(torch.zeros(len(classes), width), torch.zeros(len(classes))), 1.0, tuple(classes))
    model = Classifier(trunk, head).to(device).to(memory_format=torch.channels_last).eval()
    optimizer, loss_of = torch.optim.AdamW(recipe.parameter_groups(model), fused=True), head.task.training_loss()
    pictures = torch.zeros(STEP, 3, trunk.view.size, trunk.view.size, dtype=torch.uint8, device=device)
    labels = torch.zeros(STEP, dtype=torch.int64, device=device)
    normalise = Normalise(trunk.view).to(device)
    parts = split_frozen(model.trunk, normalise(pictures[:2]))
    below = nn.Sequential(normalise, parts[0]) if parts else normalise
    above = parts[1] if parts else model.trunk
    if not recipe.batch_norm_trained:
        above = fold_batch_norm(above, below(pictures[:2]))

    def step() -> None:
        with torch.no_grad():
            seen = below(pictures)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.settings.precision == "bf16"):
            loss = loss_of(model.head(above(seen)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()  # an accelerator is done when the answer is here

    return seconds(step) / STEP


# --- who stays and who is chosen ----------------------------------------------------------------------------------


@dataclass
class Standing:
    """How far a candidate got.

    Attributes:
        probes: by the number of pictures.
        over_budget: in what way, or None.
        dropped: why it was not shown more pictures, or None.
    """

    name: str
    images_per_s: float
    over_budget: str | None = None
    dropped: str | None = None
    probes: dict[int, Probe] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        return max(self.probes)

    @property
    def last(self) -> Probe:
        return self.probes[self.pictures]

    @property
    def log_loss(self) -> float:
        return float(self.last.losses.mean())

    def behind(self, other: Standing) -> tuple[int, float, float, float]:
        """On the largest sample that both saw: its size, this one's log-loss minus the other's on the same pictures, and
        the paired 95 % interval of that."""
        count = max(self.probes.keys() & other.probes.keys())
        return count, *mean(self.probes[count].losses - other.probes[count].losses)


def halve(standings: list[Standing], sizes: list[int], look: Callable[[str, int], Probe]) -> None:
    """Fill in ``probes`` and ``dropped``. Everybody sees ``sizes[0]`` pictures; who is within budget and not clearly worse
    than the best such candidate sees the next size, as long as there are two of them."""
    for standing in standings:
        standing.probes[sizes[0]] = look(standing.name, sizes[0])
    running = [standing for standing in standings if standing.over_budget is None]
    for count in sizes:
        for standing in running:
            if count not in standing.probes:
                standing.probes[count] = look(standing.name, count)
        best = min(running, key=lambda s: s.log_loss, default=None)
        for standing in running:
            assert best is not None
            _, by, low, high = standing.behind(best)
            if low > 0:
                standing.dropped = f"log-loss {by:+.3f} ({low:+.3f} to {high:+.3f}) against {best.name} on {count} pictures"
        running = [standing for standing in running if standing.dropped is None]
        if len(running) < 2:
            return


def choose(standings: list[Standing]) -> tuple[str | None, str]:
    """The candidate to take, or None, and the reason in words.

    Among those in the running to the end the lowest log-loss is taken. Where others cannot be told from it, that is said,
    and which of them is the fastest.
    """
    if not standings:
        return None, "Nothing could be measured: no candidate's weights were found."
    within = [standing for standing in standings if standing.over_budget is None]
    if not within:
        told = "; ".join(f"{s.name}: {s.over_budget}" for s in standings)
        return None, f"No candidate is within rank.budget. {told}."
    running = sorted((s for s in within if s.dropped is None), key=lambda s: s.log_loss)
    best, others = running[0], running[1:]
    tied = [best, *(other for other in others if other.behind(best)[2] <= 0)]
    fastest = max(tied, key=lambda s: s.images_per_s)
    sentences = []
    if len(tied) > 1:
        names = " and ".join([", ".join(s.name for s in tied[:-1]), tied[-1].name])
        sentences.append(f"Too close to call between {names} on {best.pictures} pictures.")
        if fastest is best:
            sentences.append(f"{best.name} has the lowest log-loss ({best.log_loss:.3f}) and is the fastest of them here.")
        else:
            _, by, low, high = fastest.behind(best)
            sentences.append(
                f"{best.name} has the lowest log-loss ({best.log_loss:.3f}). Where speed counts take {fastest.name}, the "
                f"fastest of them here ({fastest.images_per_s:.0f} images/s against {best.images_per_s:.0f}); its log-loss "
                f"differs by {by:+.3f} ({low:+.3f} to {high:+.3f})."
            )
    elif len(within) == 1:
        sentences.append(f"{best.name} is the only candidate {_that_was_measured(standings)}.")
    else:
        following = min((s for s in within if s is not best), key=lambda s: s.behind(best)[1])
        count, by, low, high = following.behind(best)
        sentences.append(
            f"{best.name} has the lowest log-loss ({best.log_loss:.3f} on {best.pictures} pictures); the next, "
            f"{following.name}, is behind by {by:.3f} ({low:+.3f} to {high:+.3f}) on {count}."
        )
    for standing in standings:
        if standing.over_budget is not None and standing.behind(best)[1] < 0:
            count, by, low, high = standing.behind(best)
            sentences.append(
                f"{standing.name} has a lower log-loss, by {-by:.3f} ({-high:+.3f} to {-low:+.3f}) on {count} pictures, "
                f"but is over the budget: {standing.over_budget}."
            )
    return best.name, " ".join(sentences)


def _that_was_measured(standings: list[Standing]) -> str:
    return "whose weights were found" if len(standings) == 1 else "within rank.budget"


def over_budget(budget: Budget, images_per_s: float, megabytes: float) -> str | None:
    """In what way a candidate costs more than it may, or None."""
    problems = []
    if budget.images_per_s is not None and images_per_s < budget.images_per_s:
        problems.append(f"{images_per_s:.0f} images/s, at least {budget.images_per_s:g} are asked")
    if budget.megabytes is not None and megabytes > budget.megabytes:
        problems.append(f"{megabytes:.1f} MB, at most {budget.megabytes:g} are allowed")
    return ", ".join(problems) or None


# --- all of it ----------------------------------------------------------------------------------------------------


class _Contender:
    """A candidate that has weights, in memory."""

    def __init__(self, candidate: Candidate, sample: Sample, pixels: Pixels, device: torch.device) -> None:
        self.candidate, self.sample, self.device = candidate, sample, device
        self.shown = Shown(candidate.trunk(), pixels, device)
        self.features = candidate.first_features().to(device)

    def forward(self, wanted: str) -> Forward:
        few = self.shown.at_once(self.sample.rows[:SAMPLE])
        return engine_for(self.shown.network, MANY, few, self.device, wanted)[0]

    def extend(self, count: int, wanted: str, kept: Path) -> None:
        """See to it that ``features`` are those of the first ``count`` pictures at least."""
        rows = self.sample.rows[len(self.features) : count]
        if len(rows):
            width = self.features.shape[1]
            more = more_features(self.shown, wanted, lambda: self.forward(wanted), rows, width, kept)
            self.features = torch.cat([self.features, more.to(self.device)])


def rank(
    candidates: list[Candidate],
    sample: Sample,
    pixels: Pixels,
    to_train: int,
    params: Params,
    device: torch.device,
    state: Callable[[str], Path],
) -> dict[str, Any]:
    """Compare and choose: what rank.json holds, best first.

    Args:
        to_train: pictures that fine-tuning would train on.
        state: a folder by name, in which what took long is kept from run to run.
    """
    wanted = params.features.engine
    recipe = Recipe(params.finetune, scratch=False, seed=params.seed)
    images, steps = (Measurements(state("speed") / f"{what}.json") for what in ("images", "steps"))
    contenders, costs, standings = {}, {}, []
    for candidate in candidates:
        if candidate.missing is not None:
            continue
        name, card = candidate.name, candidate.card
        contender = contenders[name] = _Contender(candidate, sample, pixels, device)
        rate = images.known_or(
            Measurements.key(machine(), name, card["sha256"], wanted, "images per second"),
            lambda shown=contender.shown: images_per_s(shown, sample.rows, wanted),  # type: ignore[misc]
        )
        found: dict[str, float | None] = {"images_per_s": rate, "finetune_minutes": None}
        if params.finetune_is_on:
            step = steps.known_or(
                Measurements.key(machine(), name, card["sha256"], params.finetune.model_dump(), len(sample.classes)),
                lambda c=candidate: training_seconds(  # type: ignore[misc]
                    c.trunk(), c.card["features"], sample.classes, recipe, device
                ),
            )
            found["finetune_minutes"] = step * to_train * recipe.epochs / 60
        costs[name] = found
        beyond = over_budget(params.rank.budget, rate, candidate.megabytes)
        standings.append(Standing(name, rate, beyond))
    sizes = sample.sizes(params.rank.first, params.rank.pictures)
    folds = {count: folds_of(sample.labels[:count], sample.groups[:count]) for count in sizes}

    def look(name: str, count: int) -> Probe:
        contender = contenders[name]
        contender.extend(count, wanted, state("rank"))
        found = probe(contender.features[:count], sample.labels[:count], folds[count])
        print(f"rank: {name} on {count} pictures: log-loss {found.losses.mean():.3f}, accuracy {found.correct.mean():.3f}")
        return found

    halve(standings, sizes, look)
    choice, reason = choose(standings)
    by_name = {standing.name: standing for standing in standings}
    table = []
    for candidate in candidates:
        figures = published(candidate.name)
        row: dict[str, Any] = {"backbone": candidate.name} | dict.fromkeys(MEASURES) | {"note": candidate.missing}
        row |= {"imagenet_top1": figures.top1, "imagenet_top5": figures.top5}
        if candidate.missing is None:
            standing = by_name[candidate.name]
            count = standing.pictures
            features, labels = contenders[candidate.name].features[:count], sample.labels[:count]
            row |= _measures(standing, features, labels, folds[count])
            row |= {
                "gmacs": candidate.card["gmacs"],
                "parameters": candidate.card["parameters"],
                "megabytes": round(candidate.megabytes, 2),
                "images_per_s": _rounded(costs[candidate.name]["images_per_s"], 1),
                "finetune_minutes": _rounded(costs[candidate.name]["finetune_minutes"]),
            }
        table.append(row)
    # Figures are comparable on the same pictures: those who saw the most come first, then the lowest log-loss.
    table.sort(key=lambda row: (row["pictures"] is None, -(row["pictures"] or 0), row["log_loss"] or 0.0))
    if sample.left_out:
        names = ", ".join(sample.left_out)
        reason += f" Left out, since of these classes there are too few pictures to compare on: {names}."
    return {"choice": choice, "reason": reason, "table": table}


MEASURES = (
    "probe_accuracy", "low", "high", "log_loss", "log_loss_low", "log_loss_high", "logme", "knn_accuracy", "imagenet_top1",
    "imagenet_top5", "gmacs", "parameters", "megabytes", "images_per_s", "finetune_minutes", "pictures",
)  # fmt: skip


def _measures(standing: Standing, features: Tensor, labels: Ints, folds: Folds) -> dict[str, Any]:
    accuracy, low, high = mean(standing.last.correct.astype(np.float64))
    log_loss, loss_low, loss_high = mean(standing.last.losses)
    note = f"over the budget: {standing.over_budget}" if standing.over_budget else None
    return {
        "probe_accuracy": accuracy,
        "low": low,
        "high": high,
        "log_loss": log_loss,
        "log_loss_low": loss_low,
        "log_loss_high": loss_high,
        "logme": log_me(features.cpu().numpy(), labels),
        "knn_accuracy": knn_accuracy(features, labels, folds),
        "pictures": standing.pictures,
        "note": f"dropped: {standing.dropped}" if standing.dropped else note,
    }


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def run(params: Params, data: Path) -> None:
    """The stage rank: compare the candidates and choose the best one for these pictures."""
    device, folder = set_up(params.threads), data / "rank"
    manifest = read_manifest(data / "prepare")
    candidates = [Candidate.of(name, data / "candidates" / name) for name in params.rank.candidates]
    to_train = int((manifest["split"] == "train").sum())
    sample = Sample.of(manifest, params.seed)
    ranking = rank(candidates, sample, Pixels(data / "prepare"), to_train, params, device, state_folder)
    ranking_report.write_page(ranking, folder / ranking_report.PAGE)
    write_json(folder / ranking_report.RANK, ranking)
    ranking_report.show(ranking, params.weights)
