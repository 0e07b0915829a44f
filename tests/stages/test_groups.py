"""`dvc repro studies/dvc.yaml:groups`: what it suggests is kept together by the next run, whose intervals know it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from headstart.data.manifest import read_manifest
from tests.data.pictures import write_pictures
from tests.stages.conftest import SMALL, Clone

pytestmark = [pytest.mark.slow]


def test_groups_in_names_are_suggested_and_taken(project: Callable[..., Clone]) -> None:
    clone = project(**SMALL, data={"source": "set"}, split={"val": 0.3, "test": 0.3}, finetune={"unfreeze": "none"})
    people = {f"{'ants' if n % 2 else 'bees'}/by{n // 4:02}-{3 * n:03}.png": n for n in range(80)}
    write_pictures(clone.folder / "set", people)
    clone.repro("studies/dvc.yaml:groups")
    found = json.loads(clone.read("data/groups/groups.json"))
    (suggestion,) = found["suggestions"]
    assert (suggestion["groups"], suggestion["largest"], found["given"]) == (20, 4, False)
    assert clone.read("data/groups/groups.csv").splitlines()[:2] == ["path,group", "ants/by00-003.png,by00"]
    assert "20 groups" in clone.read("data/groups/groups.html")

    clone.set(data={"group": suggestion["setting"]})
    clone.repro("prepare")
    manifest = read_manifest(clone.folder / "data/prepare")
    assert manifest["group"].nunique() == 20
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
