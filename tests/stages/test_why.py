"""`dvc repro studies/dvc.yaml:why` on a slice: what it measures is kept through a kill, told in ten lines and applied."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

import pytest
import yaml

from headstart.base.kept import read_kept
from headstart.evaluation.intervals import Estimate
from headstart.studies.transfer_gain import verdict
from tests.stages.conftest import Clone
from tests.two_nodes import TwoNodes

pytestmark = [pytest.mark.slow]

BRANCH = "studies/dvc.yaml:why"
WHY = {"fractions": [0.5, 1.0], "folds": 1}
QUICK = {"scratch_passes": 100, "scratch_size": 64}


def results(clone: Clone) -> dict[str, int]:
    """The trainings that are finished, with the times at which they were."""
    found = (clone.folder / ".headstart" / "why").glob("*/*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_a_killed_why_goes_on_and_its_answer_can_be_read_and_applied(copy_of: Clone) -> None:
    copy_of.set(why=WHY, finetune=QUICK)
    copy_of.killed_when(lambda: any(name.startswith("finetuned") for name in results(copy_of)), "dvc", "repro", BRANCH)
    before = results(copy_of)
    assert not (copy_of.folder / "data/why/why.json").exists()

    output = copy_of.measured.repro(BRANCH).stdout
    after = results(copy_of)
    assert before.items() <= after.items(), "what was finished is not trained again"
    assert len(after) == 2 + 2 + 2 + 2  # frozen, fine-tuned and scratch on both shares; two other cuts on all pictures
    found = json.loads(copy_of.read("data/why/why.json"))
    worth = found["worth_points"]
    assert found["verdict"] == verdict(Estimate(*(worth[key] / 100 for key in ("value", "low", "high"))))
    most = {row["start"]: row["accuracy"] for row in found["curves"]}  # of each start's last row, on all pictures
    assert worth["value"] == pytest.approx(100 * (most[found["pretrained"]] - most["scratch"]))
    assert [row["start"] for row in found["curves"]] == ["frozen"] * 2 + ["finetuned"] * 2 + ["scratch"] * 2
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in found["curves"])
    assert 0 < found["freeze"]["confidence"] < 1, "the weights came with their ImageNet classifier"
    assert set(found["sentences"]) <= set(output.splitlines())
    assert copy_of.stages_run(BRANCH) == []

    said = copy_of.measured.run("headstart", "why", "--no-open").stdout.splitlines()
    assert set(found["sentences"]) <= set(said)
    assert len(said) <= 11  # ten, and where the page is
    page = copy_of.read("data/why/story.html")
    assert found["sentences"][0].split(":")[0] in html.unescape(page)
    assert "://" not in page.replace("data:image/png", "")
    copy_of.run("headstart", "why", "--no-open", "--apply")
    assert yaml.safe_load(copy_of.read("params.yaml"))["finetune"]["unfreeze"] == found["freeze"]["measured"]


def test_trainings_on_a_cluster_give_what_they_give_here(two_nodes: TwoNodes, copy_of: Clone) -> None:
    import ray

    copy_of.set(why={"fractions": [1.0], "folds": 1}, finetune=QUICK, cluster=two_nodes.address)
    path = f"{copy_of.folder}{os.pathsep}{Path(ray.__file__).parents[1]}"
    output = copy_of.cold.repro(BRANCH, PYTHONPATH=path)
    assert "why: 5/5 trainings" in output.stderr or "why: 5 trainings in" in output.stderr
    copy_of.set(cluster=None)
    assert copy_of.stages_run(BRANCH) == []  # it is no other result
    (file,) = (copy_of.folder / ".headstart/why").glob("*/finetuned-half-0-1.json")
    there = read_kept(file)
    file.unlink()
    copy_of.measured.repro("--force", "--single-item", BRANCH)
    here = read_kept(file)
    assert (here["n"], here["correct"]) == (there["n"], there["correct"])
    assert here["losses"] == pytest.approx(there["losses"], abs=1e-3)


@pytest.mark.usefixtures("tmp_path")
def test_without_pretrained_weights_there_is_nothing_to_compare(copy_of: Clone) -> None:
    card = copy_of.folder / "data/backbone/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"pretrained": False}))
    done = copy_of.run("python", "stages/why.py", check=False)
    assert done.returncode == 1
    assert "has random weights" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_answer_that_is_not_there_is_asked_for_in_one_sentence(copy_of: Clone) -> None:
    done = copy_of.run("headstart", "why", check=False)
    assert done.returncode == 1
    sentence = "headstart: data/why/why.json is not there; run `dvc repro studies/dvc.yaml:why`"
    assert done.stderr.strip() == sentence
