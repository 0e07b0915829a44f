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

from headstart.base.arrays import Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.rank import RankedBackbone, Ranking
from headstart.base.cluster import Cluster, connected
from headstart.base.device import precise, set_up
from headstart.base.kept import is_whole
from headstart.base.measurements import Measurements, machine
from headstart.base.params import Params
from headstart.base.paths import SIDE_BY_SIDE, state_folder
from headstart.base.sections import network_and_view
from headstart.base.terminal import say
from headstart.base.wording import log_loss_difference
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.activations import answers_of
from headstart.engines.base import Forward
from headstart.engines.remote import SharedPixels
from headstart.engines.select import SAMPLE, engine_for
from headstart.evaluation.intervals import mean, numbered
from headstart.models.catalogue import published
from headstart.models.trunk import plain
from headstart.studies import ranking_report
from headstart.studies.candidates import Candidate, Sample, features_of, file_of, stored_candidates
from headstart.studies.candidates_on_cluster import Answer, Examiner, Question, ask
from headstart.studies.combination import Combination, Members, search
from headstart.studies.halving import Standing, choose, halve, listed, over_budget
from headstart.studies.speed import MANY, images_per_s, training_seconds
from headstart.studies.transferability import Probe, knn_accuracy, log_me, probe
from headstart.training.features import FeatureExtractor
from headstart.training.linear_probe import Folds, folds_of
from headstart.training.recipe import Recipe


class _Contender:
    """A candidate that has weights, in memory."""

    def __init__(
        self, candidate: Candidate, sample: Sample, pixels: Pixels, device: torch.device, cluster: Cluster | None
    ) -> None:
        self.candidate, self.sample, self.device = candidate, sample, device
        self.threads = cluster.cpus_of_smallest if cluster else torch.get_num_threads()
        self.extractor = FeatureExtractor(candidate.trunk(), pixels, device)
        self.features = torch.empty(0, candidate.card.features, device=precise(device))

    def forward(self, wanted: str) -> Forward:
        few = self.extractor.at_once(self.sample.rows[:SAMPLE])
        return engine_for(self.extractor.network, MANY, few, self.device, wanted)[0]

    def missing(self, count: int) -> Ints:
        """The rows of the first ``count`` pictures whose features are not among ``features``."""
        return self.sample.rows[len(self.features) : count]

    def file(self, count: int, wanted: str, kept: Path) -> Path:
        """Where the features of those are kept."""
        return file_of(self.candidate.name, self.extractor, wanted, self.missing(count), kept, self.threads)

    def extend(self, count: int, wanted: str, kept: Path) -> None:
        """See to it that ``features`` are those of the first ``count`` pictures at least."""
        if len(rows := self.missing(count)):
            name, width, file = self.candidate.name, self.features.shape[1], self.file(count, wanted, kept)
            more = features_of(name, self.extractor, lambda: self.forward(wanted), rows, width, file)
            self.features = torch.cat([self.features, more.to(self.features.device)])


class _Field:
    """All contenders, and what has to be found out about them: here when it is asked for, or before on a cluster, which
    looks at as many of them at a time as it has nodes. What was found out once is kept."""

    def __init__(
        self,
        contenders: dict[str, _Contender],
        sample: Sample,
        params: Params,
        state: Callable[[str], Path],
        cluster: Cluster | None,
    ) -> None:
        self.contenders, self.sample, self.params, self.cluster = contenders, sample, params, cluster
        self.wanted, self.kept = params.features.engine, state("rank")
        self.recipe = Recipe(params.finetune, scratch=False, seed=params.seed)
        self._images, self._steps = (Measurements(state("speed") / f"{what}.json") for what in ("images", "steps"))
        self._where = (
            machine() if cluster is None else ("cluster", cluster.cpus_of_smallest, cluster.gpus, torch.__version__)
        )

    def images_per_s(self, name: str) -> float:
        extractor = self.contenders[name].extractor
        if self.cluster is None and self._rate_key(name) not in self._images:
            say(f"rank: {name}: its speed is measured", flush=True)
        found = self._images.known_or(self._rate_key(name), lambda: images_per_s(extractor, self.sample.rows, self.wanted))
        return float(found)

    def step(self, name: str) -> float | None:
        """Seconds per picture of a training step; None without fine-tuning."""
        if not self.params.finetune_is_on:
            return None
        contender, classes = self.contenders[name], self.sample.classes
        found = self._steps.known_or(
            self._step_key(name),
            lambda: training_seconds(plain(contender.candidate.trunk()), classes, self.recipe, contender.device),
        )
        return float(found)

    def announce(self, names: list[str], count: int) -> None:
        """These will be asked about next, and look at ``count`` pictures."""
        if self.cluster is None:
            return
        questions = [question for name in names if (question := self._question(name, count)).wants_anything]
        if questions:
            rows = np.concatenate([self.sample.rows[:SAMPLE], *(question.rows for question in questions)])
            pixels = SharedPixels(self.cluster, self.contenders[names[0]].extractor.pixels, rows)
            examiner = Examiner(
                pixels, rows[:SAMPLE], self.wanted, self.sample.classes, self.recipe, self.cluster.cpus_of_smallest
            )
            for answer in ask(self.cluster, examiner, questions):
                self._keep(answer, count)

    def _question(self, name: str, count: int) -> Question:
        contender, trunk = self.contenders[name], self.contenders[name].candidate.trunk()
        rows = contender.missing(count)
        if is_whole(contender.file(count, self.wanted, self.kept)):
            rows = rows[:0]
        step = self.params.finetune_is_on and self._step_key(name) not in self._steps
        return Question(name, trunk, rows, contender.features.shape[1], self._rate_key(name) not in self._images, step)

    def _keep(self, found: Answer, count: int) -> None:
        if found.images_per_s is not None:
            self._images[self._rate_key(found.name)] = found.images_per_s
        if found.step is not None:
            self._steps[self._step_key(found.name)] = found.step
        if (features := found.features) is not None:
            file = self.contenders[found.name].file(count, self.wanted, self.kept)
            answers_of(lambda first: [features[first:]], len(features), file, lambda count=1: None)

    def _rate_key(self, name: str) -> str:
        card = self.contenders[name].candidate.card
        return Measurements.key(self._where, name, card.sha256, self.wanted, "images per second")

    def _step_key(self, name: str) -> str:
        card, settings = self.contenders[name].candidate.card, self.params.finetune.model_dump(exclude={"repeats"})
        return Measurements.key(self._where, name, card.sha256, settings, len(self.sample.classes))


def rank(
    candidates: list[Candidate],
    sample: Sample,
    pixels: Pixels,
    to_train: int,
    params: Params,
    device: torch.device,
    state: Callable[[str], Path],
    cluster: Cluster | None = None,
) -> Ranking:
    """Compare and choose: what rank.json holds.

    Args:
        to_train: pictures that fine-tuning would train on.
        state: a folder by name, in which what took long is kept from run to run.
        cluster: where candidates are looked at, each on a node; None: here, one after the other.
    """
    contenders = {
        candidate.name: _Contender(candidate, sample, pixels, device, cluster)
        for candidate in candidates
        if candidate.missing is None
    }
    sizes = sample.sizes(params.rank.first, params.rank.pictures)
    field = _Field(contenders, sample, params, state, cluster)
    field.announce(list(contenders), sizes[0])
    costs, standings = {}, []
    for name, contender in contenders.items():
        rate, step = field.images_per_s(name), field.step(name)
        minutes = step * to_train * field.recipe.epochs * params.finetune.repeats / 60 if step is not None else None
        costs[name] = {"images_per_s": rate, "finetune_minutes": minutes}
        standings.append(Standing(name, rate, over_budget(params.rank.budget, rate, contender.candidate.megabytes)))
    folds = {count: folds_of(sample.labels[:count], sample.groups[:count]) for count in sizes}

    def look(name: str, count: int) -> Probe:
        contender = contenders[name]
        contender.extend(count, field.wanted, field.kept)
        say(f"rank: {name}: a head is fitted to {count} pictures", flush=True)
        found = probe(
            contender.features[:count], sample.labels[:count], folds[count], sample.task, numbered(sample.groups[:count])
        )
        say(f"rank: {name} on {count} pictures: log-loss {found.losses.mean():.3f}, accuracy {found.correct.mean():.3f}")
        return found

    @cache
    def look_together(members: Members, count: int) -> Probe:
        if len(members) == 1 and count in by_name[members[0]].probes:
            return by_name[members[0]].probes[count]
        field.announce(list(members), count)
        for name in members:
            contenders[name].extend(count, field.wanted, field.kept)
        features = torch.cat([contenders[name].features[:count] for name in members], dim=1)
        say(f"rank: {' + '.join(members)}: a head is fitted to {count} pictures", flush=True)
        return probe(features, sample.labels[:count], folds[count], sample.task, numbered(sample.groups[:count]))

    halve(standings, sizes, look, field.announce)
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
    worth = f"by {log_loss_difference(by, low, high)} on {combination.pictures} pictures"
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
    with connected(params.cluster, __name__) as cluster:
        ranking = rank(candidates, sample, Pixels(data.prepare), to_train, params, device, state_folder, cluster)
    ranking_report.write_page(ranking, data.rank.page)
    ranking.write(data.rank.details)
    ranking_report.show(ranking, params)
