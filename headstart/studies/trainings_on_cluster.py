"""Trainings of why on a cluster, as many at a time as there are nodes.

They read the project's folder and keep what is half finished in it, so it has to be on a disk that all nodes share. The
driver writes what came of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from headstart.base.cluster import Cluster, Project
from headstart.base.device import set_up
from headstart.base.progress import hidden, progress
from headstart.studies.learning_curves import Laboratory, Outcome, Training


@dataclass(frozen=True)
class _OnNode:
    """Runs trainings on a node, of which it takes ``threads`` cores."""

    project: Project
    threads: int
    laboratory: Laboratory

    @cached_property
    def ready(self) -> Laboratory:
        self.project.enter()
        return replace(self.laboratory, device=set_up(self.threads))

    def __call__(self, training: Training) -> tuple[Training, Outcome]:
        with hidden():
            return training, self.ready.run(training)


def run_on(cluster: Cluster, laboratory: Laboratory, trainings: Sequence[Training]) -> Iterator[tuple[Training, Outcome]]:
    """What comes of each training, as soon as it is known; those that take longest begin.

    Raises:
        HeadstartError: as ``Cluster.map``; or a node does not have the project's folder.
    """
    at_once = _OnNode(Project.here(), cluster.cpus_of_smallest, laboratory)
    items = ((training, 0) for training in sorted(trainings, key=laboratory.cost, reverse=True))
    with progress("why", len(trainings), "trainings") as advance:
        gpus = 1.0 if cluster.gpus else 0.0
        for found in cluster.map(at_once, items, "a training", cpus=at_once.threads, gpus=gpus, ordered=False):
            yield found
            advance()
