"""On a cluster of two nodes rank gives the table that this machine gives, and what was found out once stays found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headstart.base.artifacts.rank import Ranking
from headstart.base.cluster import Cluster, connected
from headstart.base.params import Params
from headstart.data.packed import Pixels
from headstart.studies.candidates import Sample
from headstart.studies.candidates_on_cluster import Answer
from headstart.studies.ranking import rank
from tests.studies.test_ranking import CPU, closed, in_folder, mirror, pictures, stored  # noqa: F401 - fixtures
from tests.two_nodes import TwoNodes

NAMES = ["test_resnet", "test_efficientnet", "test_vit"]
TIMES = ("images_per_s", "finetune_minutes")


def without_times(found: Ranking) -> tuple[str | None, list[Any]]:
    rows = [row.model_dump(exclude=set(TIMES)) for row in found.table]
    return found.choice, [{key: pytest.approx(row[key], abs=1e-3) for key in row} for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("closed")
def test_a_node_that_dies_changes_no_row_and_no_candidate_is_looked_at_twice(
    two_nodes: TwoNodes,
    tmp_path: Path,
    pictures: tuple[Pixels, pd.DataFrame],  # noqa: F811
    mirror: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidates = stored(mirror, tmp_path / "candidates", *NAMES)
    settings = {
        "rank": {"candidates": NAMES, "first": 60, "pictures": 120, "members": 1},
        "features": {"engine": "torch"},
        "finetune": {"unfreeze": "last"},
    }
    params, sample = Params.model_validate(settings), Sample.of(pictures[1], 0)
    here = rank(candidates, sample, pictures[0], 60, params, CPU, in_folder(tmp_path / "here"))
    answer, answers = Cluster._answer, list[Any]()

    def answer_and_break(self: Cluster, *waiting: Any) -> Any:
        answers.append(answer(self, *waiting))
        if len(answers) == 1:
            two_nodes.remove_second()
        return answers[-1]

    monkeypatch.setattr(Cluster, "_answer", answer_and_break)
    with connected(two_nodes.address, "headstart.studies.ranking") as cluster:
        there = rank(candidates, sample, pictures[0], 60, params, CPU, in_folder(tmp_path / "there"), cluster)
        first = [found for found in answers if isinstance(found, Answer) and found.images_per_s is not None]
        assert sorted(found.name for found in first) == sorted(NAMES)
        count = len(answers)
        assert rank(candidates, sample, pictures[0], 60, params, CPU, in_folder(tmp_path / "there"), cluster) == there
    assert len(answers) == count
    assert without_times(there) == without_times(here)
    assert all(row.images_per_s and row.finetune_minutes is not None for row in there.table)
