"""`dvc repro studies/dvc.yaml:shortcuts`: a branch off the main path.

That the main path, `dvc push` and `dvc pull` do not know of branches is shown in test_rank.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from PIL import Image

from headstart.data.manifest import read_manifest
from tests.data.pictures import write_pictures
from tests.stages.conftest import SLICE, SMALL, Clone
from tests.stages.test_pipeline import digests

pytestmark = [pytest.mark.slow]

BRANCH = "studies/dvc.yaml:shortcuts"


def test_the_branch_runs_alone_gives_the_same_bytes_and_can_be_read_again(project: Callable[..., Clone]) -> None:
    clone = project(**SLICE)
    output = clone.measured.repro(BRANCH).stdout
    assert f"Running stage '{BRANCH}'" in output
    assert "Running stage 'head'" not in output
    before = digests(clone.folder / "data/shortcuts")
    assert set(before) == {"shortcuts.html", "shortcuts.json"}
    result = json.loads(clone.read("data/shortcuts/shortcuts.json"))
    manifest = read_manifest(clone.folder / "data/prepare")
    assert result["pictures"] <= (manifest["split"] != "test").sum()
    assert all("probe" in score for score in result["scores"])
    clone.repro("--force", "--single-item", BRANCH)
    assert digests(clone.folder / "data/shortcuts") == before
    told = clone.measured.run("headstart", "shortcuts").stdout
    assert "With the pictures, and what to do: data/shortcuts/shortcuts.html" in told


def test_files_that_tell_the_classes_are_a_warning_and_the_gate_refuses(
    project: Callable[..., Clone],
) -> None:
    clone = project(**SMALL, data={"source": "set"}, finetune={"unfreeze": "none"})
    write_pictures(
        clone.folder / "set", {f"{name}/{n}.png": n + start for name, start in (("a", 0), ("b", 100)) for n in range(40)}
    )
    for path in (clone.folder / "set/b").iterdir():
        Image.open(path).convert("L").save(path)
    error = clone.repro("prepare").stderr
    audit = json.loads(clone.read("data/prepare/audit.json"))
    warning = audit["warnings"][0]
    assert warning.startswith("what the file says (format, colour mode, ")
    assert "colour mode L: 100% of 'b', 0% of the others" in warning
    assert f"headstart: {warning}" in error
    assert audit["shortcuts"][0]["kind"] == "shortcut"
    assert audit["blind"][0]["accuracy"]["value"] == 1.0
    assert audit["blind"][0]["guessing"] == pytest.approx(0.5, abs=0.1)

    said = clone.repro().stdout
    shortcut = audit["shortcuts"][0]["sentence"]
    assert f"Beware of a shortcut: {shortcut}" in said
    assert json.loads(clone.read("data/evaluate/metrics.json"))["shortcuts"] == [shortcut]
    assert "Beware of a shortcut" in clone.read("data/evaluate/report.html")
    refused = clone.run("headstart", "gate").stdout
    assert refused.startswith("Version 1 is refused: what was measured may be of a shortcut (what the file says")
    promoted = clone.run("headstart", "promote", "1", "--why", "grey scanners are what we have").stdout
    assert "version 1 of headstart-set is the champion" in promoted

    rules = {"accept_shortcut": "all scanners are grey", "max_p": 1.0, "max_ece": 1.0, "max_slowdown": 100.0}
    clone.set(gate=rules, evaluate={"mistakes": 3})
    clone.repro()
    accepted = clone.run("headstart", "gate").stdout
    assert accepted.startswith("Version 2 takes over from version 1")
    assert accepted.rstrip().endswith("A shortcut is known and accepted: all scanners are grey.")
