"""`dvc repro studies/dvc.yaml:rank`: a branch off the main path, in which only what is new runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from tests.stages.conftest import SLICE, Clone
from tests.stages.test_pipeline import digests

pytestmark = [pytest.mark.slow]

STUDIES = "studies/dvc.yaml"
BRANCH = f"{STUDIES}:rank"
SMALL = ["test_resnet", "test_efficientnet"]
RANK = {"candidates": SMALL, "first": 45, "pictures": 90, "members": 1}


def with_mirror(clone: Clone) -> Clone:
    """Files of weights for three small networks where a publisher's mirror would have them; random ones will do."""
    for name in (*SMALL, "test_byobnet"):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False)
        cfg = timm.models.get_pretrained_cfg(name)
        file = clone.folder / "mirror" / f"timm/{cfg.architecture}.{cfg.tag}" / "model.safetensors"
        file.parent.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    clone.set(weights_mirror="mirror")
    return clone


def ran(clone: Clone, *arguments: str) -> list[str]:
    """The stages of the branch that ran."""
    return [stage.removeprefix(f"{STUDIES}:") for stage in clone.stages_run(*arguments) if stage.startswith(STUDIES)]


def kept(clone: Clone) -> dict[str, str]:
    """Digests of the weights and features that the ranking keeps."""
    state = clone.folder / ".headstart"
    return {f"{name}/{file}": value for name in ("candidates", "rank") for file, value in digests(state / name).items()}


def made(clone: Clone) -> dict[str, int]:
    """When each of them was written; unfinished ones left out."""
    state = clone.folder / ".headstart"
    files = [file for name in ("candidates", "rank") for file in (state / name).rglob("*")]
    return {str(file): file.stat().st_mtime_ns for file in files if file.is_file() and not file.name.startswith(".")}


@pytest.fixture
def ranked(project: Callable[..., Clone]) -> Clone:
    clone = with_mirror(project(**SLICE | {"rank": RANK}))
    output = clone.measured.repro(BRANCH).stdout
    assert "Running stage 'studies/dvc.yaml:rank'" in output
    assert "Running stage 'head'" not in output
    return clone


def test_what_a_candidate_was_found_to_be_is_not_found_again_when_others_come(ranked: Clone) -> None:
    ranking = json.loads(ranked.read("data/rank/rank.json"))
    assert ranking["choice"] in SMALL
    assert {row["backbone"] for row in ranking["table"]} == set(SMALL)
    assert ran(ranked, BRANCH) == []
    before, written = kept(ranked), made(ranked)
    assert len({file for file in before if file.startswith("rank/")}) >= len(SMALL)
    padded = f"{SMALL[0]}@96/pad"
    ranked.set(rank={"candidates": [*SMALL, "test_byobnet", padded, "squeezenet1_0"]})
    closed = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(ranked.folder)}
    output = ranked.repro(BRANCH, **closed).stdout
    table = json.loads(ranked.read("data/rank/rank.json"))["table"]
    views = {row["backbone"]: (row["size"], row["frame"]) for row in table}
    assert views[padded] == (96, "pad")
    assert views[SMALL[0]] == (160, "centre")
    assert table[-1]["backbone"] == "squeezenet1_0"
    assert table[-1]["note"].startswith("no weights: ")
    assert "squeezenet1_0: no weights: " in output
    assert before.items() <= kept(ranked).items()
    assert written.items() <= made(ranked).items()
    ranked.set(rank={"budget": {"images_per_s": None, "megabytes": 0.001}})
    assert ran(ranked, BRANCH) == ["rank"]
    assert json.loads(ranked.read("data/rank/rank.json"))["choice"] is None
    done = ranked.run("headstart", "rank", "--apply", check=False)
    assert done.returncode == 1
    assert "there is no choice to apply" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_inputs_give_the_same_bytes_and_the_choice_can_be_applied(ranked: Clone) -> None:
    before = kept(ranked)
    for name in ("candidates", "rank"):
        shutil.rmtree(ranked.folder / ".headstart" / name)
    ranked.repro("--force", "--single-item", BRANCH)
    assert kept(ranked) == before
    choice = json.loads(ranked.read("data/rank/rank.json"))["choice"]
    output = ranked.measured.run("headstart", "rank", "--apply").stdout
    assert f"dvc exp run -S backbone={choice}" in output
    assert yaml.safe_load(ranked.read("params.yaml"))["backbone"] == choice


def test_killed_half_way_it_loses_no_candidate_that_was_finished(project: Callable[..., Clone]) -> None:
    clone = with_mirror(project(**SLICE | {"rank": RANK}))

    def first_is_finished() -> bool:
        finished = (clone.folder / ".headstart/rank").rglob("*")  # unread: what is half written may be gone by then
        return any(path.is_file() and not path.name.startswith(".") for path in finished)

    clone.cold.killed_when(first_is_finished, "dvc", "repro", BRANCH)
    before = made(clone)
    assert before
    assert ran(clone, BRANCH)[-1:] == ["rank"]
    assert before.items() <= made(clone).items()


def test_the_main_path_does_not_know_of_the_branches(copy_of: Clone, tmp_path: Path) -> None:
    for command in (["repro"], ["exp", "run"]):
        output = copy_of.run("dvc", *command).stdout
        assert BRANCH not in output
        assert "studies/dvc.yaml:labels" not in output
    assert not (copy_of.folder / "data/labels").exists()
    copy_of.commit()
    assert "rank.json" not in copy_of.run("dvc", "metrics", "show").stdout
    copy_of.run("dvc", "remote", "add", "-d", "there", str(tmp_path / "remote"))
    copy_of.commit()
    copy_of.run("dvc", "push")
    copy_of.run("git", "clone", "-q", ".", str(tmp_path / "fresh"))
    fresh = Clone(tmp_path / "fresh")
    fresh.run("dvc", "pull")
    assert (fresh.folder / "data/package/model/MLmodel").exists()
