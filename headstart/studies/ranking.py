"""rank: which backbone is best for these pictures? Measured on a sample of them, the hopeless ones left behind early.

All candidates see a small sample. Those whose cross-validated log-loss is clearly worse than the best one's are dropped,
the others see twice as many pictures, and so on: successive halving (Jamieson and Talwalkar 2016, "Non-stochastic best arm
identification and hyperparameter optimization"), except that evidence and not a quota decides who stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.rank import RankedBackbone, Ranking
from headstart.base.device import set_up
from headstart.base.measurements import Measurements, machine
from headstart.base.params import Params
from headstart.base.paths import SIDE_BY_SIDE, state_folder
from headstart.base.sections import network_and_view
from headstart.base.terminal import say
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.base import Forward
from headstart.engines.select import SAMPLE, engine_for
from headstart.evaluation.intervals import mean, numbered
from headstart.models.catalogue import published
from headstart.models.trunk import plain
from headstart.studies import ranking_report
from headstart.studies.candidates import Candidate, Sample, features_of, stored_candidates
from headstart.studies.combination import Combination, Members, search
from headstart.studies.halving import Standing, choose, halve, listed, over_budget
from headstart.studies.speed import MANY, images_per_s, training_seconds
from headstart.studies.transferability import Probe, knn_accuracy, log_me, probe
from headstart.training.features import FeatureExtractor
from headstart.training.linear_probe import Folds, folds_of
from headstart.training.recipe import Recipe


class _Contender:
    """A candidate that has weights, in memory."""

    def __init__(self, candidate: Candidate, sample: Sample, pixels: Pixels, device: torch.device) -> None:
        self.candidate, self.sample, self.device = candidate, sample, device
        self.extractor = FeatureExtractor(candidate.trunk(), pixels, device)
        self.features = torch.empty(0, candidate.card.features, device=device)

    def forward(self, wanted: str) -> Forward:
        few = self.extractor.at_once(self.sample.rows[:SAMPLE])
        return engine_for(self.extractor.network, MANY, few, self.device, wanted)[0]

    def extend(self, count: int, wanted: str, kept: Path) -> None:
        """See to it that ``features`` are those of the first ``count`` pictures at least."""
        rows = self.sample.rows[len(self.features) : count]
        if len(rows):
            width = self.features.shape[1]
            name = self.candidate.name
            more = features_of(name, self.extractor, wanted, lambda: self.forward(wanted), rows, width, kept)
            self.features = torch.cat([self.features, more.to(self.device)])


def rank(
    candidates: list[Candidate],
    sample: Sample,
    pixels: Pixels,
    to_train: int,
    params: Params,
    device: torch.device,
    state: Callable[[str], Path],
) -> Ranking:
    """Compare and choose: what rank.json holds.

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
            Measurements.key(machine(), name, card.sha256, wanted, "images per second"),
            lambda shown=contender.extractor: images_per_s(shown, sample.rows, wanted),  # type: ignore[misc]
        )
        found: dict[str, float | None] = {"images_per_s": rate, "finetune_minutes": None}
        if params.finetune_is_on:
            step = steps.known_or(
                Measurements.key(
                    machine(), name, card.sha256, params.finetune.model_dump(exclude={"repeats"}), len(sample.classes)
                ),
                lambda c=candidate: training_seconds(  # type: ignore[misc]
                    plain(c.trunk()), sample.classes, recipe, device
                ),
            )
            found["finetune_minutes"] = step * to_train * recipe.epochs * params.finetune.repeats / 60
        costs[name] = found
        beyond = over_budget(params.rank.budget, rate, candidate.megabytes)
        standings.append(Standing(name, rate, beyond))
    sizes = sample.sizes(params.rank.first, params.rank.pictures)
    folds = {count: folds_of(sample.labels[:count], sample.groups[:count]) for count in sizes}

    def look(name: str, count: int) -> Probe:
        contender = contenders[name]
        contender.extend(count, wanted, state("rank"))
        found = probe(
            contender.features[:count], sample.labels[:count], folds[count], sample.task, numbered(sample.groups[:count])
        )
        say(f"rank: {name} on {count} pictures: log-loss {found.losses.mean():.3f}, accuracy {found.correct.mean():.3f}")
        return found

    @cache
    def look_together(members: Members, count: int) -> Probe:
        if len(members) == 1 and count in by_name[members[0]].probes:
            return by_name[members[0]].probes[count]
        for name in members:
            contenders[name].extend(count, wanted, state("rank"))
        features = torch.cat([contenders[name].features[:count] for name in members], dim=1)
        return probe(features, sample.labels[:count], folds[count], sample.task, numbered(sample.groups[:count]))

    halve(standings, sizes, look)
    choice, reason = choose(standings)
    by_name = {standing.name: standing for standing in standings}
    table = [_row(candidate, by_name, contenders, costs, folds) for candidate in candidates]
    if choice is not None and params.rank.members > 1:
        rates = {standing.name: standing.images_per_s for standing in standings}
        megabytes = {name: contender.candidate.megabytes for name, contender in contenders.items()}

        def affordable(members: Members) -> bool:
            cards = [contenders[name].candidate.card for name in members]
            different = len({(card.sha256, card.preprocessing.model_dump_json()) for card in cards})  # by whatever name
            return (
                different == len(cards)
                and over_budget(params.rank.budget, _rate(members, rates), _sum(members, megabytes)) is None
            )

        combination = search(
            choice, list(contenders), params.rank.members, affordable, look_together, sizes[0], by_name[choice].pictures
        )
        if combination is not None:
            row = _row_together(combination, table, _rate(combination.members, rates))
            table.append(row)
            reason += f" {_told(combination, rates)}"
            choice = row.backbone if combination.pays else choice
    # Figures are comparable on the same pictures: those who saw the most come first, then the lowest log-loss.
    table.sort(key=lambda row: (row.pictures is None, -(row.pictures or 0), row.log_loss or 0.0))
    if sample.left_out:
        names = ", ".join(sample.left_out)
        reason += f" Left out, since of these classes there are too few pictures to compare on: {names}."
    return Ranking(choice=choice, reason=reason, table=table)


def _row(
    candidate: Candidate,
    standings: dict[str, Standing],
    contenders: dict[str, _Contender],
    costs: dict[str, dict[str, float | None]],
    folds: dict[int, Folds],
) -> RankedBackbone:
    network, view = network_and_view(candidate.name)
    figures = published(network)
    row = RankedBackbone(
        backbone=candidate.name,
        size=view.size,
        frame=view.frame,
        imagenet_top1=figures.top1,
        imagenet_top5=figures.top5,
        note=candidate.missing,
    )
    if candidate.missing is not None:
        return row
    standing, contender = standings[candidate.name], contenders[candidate.name]
    count, card = standing.pictures, candidate.card
    features, labels = contender.features[:count], contender.sample.labels[:count]
    measured = _measured(standing.last, count) | {
        "size": card.preprocessing.size,
        "logme": log_me(features.cpu().numpy(), labels),
        "knn_accuracy": knn_accuracy(features, labels, folds[count], contender.sample.task),
        "gmacs": card.gmacs,
        "parameters": card.parameters,
        "megabytes": round(candidate.megabytes, 2),
        "images_per_s": _rounded(costs[candidate.name]["images_per_s"], 1),
        "finetune_minutes": _rounded(costs[candidate.name]["finetune_minutes"]),
        "note": standing.note,
    }
    return row.model_copy(update=measured)


def _measured(probe: Probe, count: int) -> dict[str, float | int]:
    accuracy, low, high = mean(probe.correct.astype(np.float64), groups=probe.groups)
    log_loss, loss_low, loss_high = mean(probe.losses, groups=probe.groups)
    return {
        "probe_accuracy": accuracy, "low": low, "high": high,
        "log_loss": log_loss, "log_loss_low": loss_low, "log_loss_high": loss_high,
        "pictures": count,
    }  # fmt: skip


def _rate(members: Members, rates: dict[str, float]) -> float:
    """Pictures per second that pass through all of them, one after the other."""
    return 1 / sum(1 / rates[name] for name in members)


def _sum(members: Members, values: dict[str, float]) -> float:
    return sum(values[name] for name in members)


def _row_together(combination: Combination, table: Sequence[RankedBackbone], rate: float) -> RankedBackbone:
    members = [row for row in table if row.backbone in combination.members]
    return RankedBackbone(
        backbone=SIDE_BY_SIDE.join(combination.members),
        gmacs=sum(row.gmacs or 0 for row in members),
        parameters=sum(row.parameters or 0 for row in members),
        megabytes=round(sum(row.megabytes or 0 for row in members), 2),
        images_per_s=_rounded(rate, 1),
    ).model_copy(update=_measured(combination.together, combination.pictures))


def _told(combination: Combination, rates: dict[str, float]) -> str:
    """What putting networks side by side brings, in a sentence."""
    first, *others = combination.members
    by, low, high = combination.gained
    names = listed(others)
    worth = f"by {by:.3f} ({low:+.3f} to {high:+.3f}) on {combination.pictures} pictures"
    speed = f"{_rate(combination.members, rates):.0f} images/s instead of {rates[first]:.0f}"
    if combination.pays:
        return f"With the features of {names} beside its own the log-loss is lower {worth}, at {speed}."
    return f"With the features of {names} beside its own the log-loss changes {worth}: too close to call, at {speed}."


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def run(params: Params, data: DataFolder) -> None:
    """The stage rank: compare the candidates and choose the best one for these pictures."""
    device = set_up(params.threads)
    manifest = read_manifest(data.prepare)
    to_train = int((manifest["split"] == "train").sum())
    sample = Sample.of(manifest, params.seed)
    candidates = stored_candidates(params, state_folder("candidates"))
    ranking = rank(candidates, sample, Pixels(data.prepare), to_train, params, device, state_folder)
    ranking_report.write_page(ranking, data.rank.page)
    ranking.write(data.rank.details)
    ranking_report.show(ranking, params)
