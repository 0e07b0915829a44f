"""A result knows what it is made of: all that a stage runs is part of its identity, and a change runs it again."""

from __future__ import annotations

import json
import random

import pytest
import yaml

from headstart.base.identity import PIPELINES
from tests.stages.conftest import PROJECT, Clone

pytestmark = [pytest.mark.slow]

STAGES = list(yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"])
BRANCHES = list(yaml.safe_load((PROJECT / PIPELINES[1]).read_text())["stages"])
# Runs a stage in a process that has loaded nothing of headstart, and writes down which modules of it the stage has loaded
# and which other files of it the stage has opened. It stands in stages/, and is started warm as they are.
WATCHED = """
import json, os, runpy, sys
import headstart
package = os.path.dirname(headstart.__file__) + os.sep
opened = set()
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(package):
        if not arguments[0].endswith((".py", ".pyc")) and os.path.isfile(arguments[0]):
            opened.add("headstart/" + arguments[0][len(package):])
sys.addaudithook(note)
import headstart.base.errors
headstart.base.errors.leave = lambda: None
target, sys.argv = sys.argv[1], sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
here = lambda module: (getattr(module, "__file__", None) or "").startswith(package)
ran = [name for name, module in sys.modules.items() if name.split(".")[0] == "headstart" and here(module)]
with open(target, "w") as file:
    json.dump({"modules": ran, "files": sorted(opened)}, file)
"""
CANDIDATE = "tf_efficientnet_lite0"


def what_ran(clone: Clone, stage: str) -> set[str]:
    """Modules and other files of headstart that a run of the stage has used."""
    (clone.folder / "stages/watched.py").write_text(WATCHED)
    clone.run("python", "stages/watched.py", "ran.json", f"stages/{stage}.py")
    ran = json.loads(clone.read("ran.json"))
    return {*ran["modules"], *(ran["files"] if stage != "fetch" else [])}  # fetch reads all of them for their digests


def known(clone: Clone, stage: str) -> set[str]:
    return set(json.loads(clone.read(f"data/fetch/code/{stage}.json"))["modules"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_no_module_that_is_not_in_its_identity(copy_of: Clone, stage: str) -> None:
    ran = what_ran(copy_of, stage)
    assert ran - known(copy_of, stage) == set()
    assert f"stages/{stage}.py" in known(copy_of, stage)


def test_a_branch_runs_no_module_that_is_not_in_its_identity(copy_of: Clone) -> None:
    copy_of.set(
        rank={"candidates": [CANDIDATE], "first": 40, "pictures": 60},
        why={"fractions": [1.0], "folds": 1},
        tune={"trials": 1},
        finetune={"epochs": 1, "scratch_epochs": 1, "scratch_passes": 40, "scratch_size": 32, "size_ratio": 0.7},
    )
    copy_of.run("python", "stages/fetch.py")
    for stage in BRANCHES:
        ran = what_ran(copy_of, stage)
        assert ran - known(copy_of, stage) == set(), stage


def changed(clone: Clone) -> set[str]:
    """The stages whose code DVC finds changed, once fetch has looked."""
    clone.run("dvc", "repro", "fetch")
    status = json.loads(clone.run("dvc", "status", "--json").stdout)
    return {
        name
        for name, parts in status.items()
        if name in STAGES  # the branches of the slice have never run
        for part in parts
        if isinstance(part, dict) and f"data/fetch/code/{name}.json" in part.get("changed deps", {})
    }


def stages_that_use(clone: Clone, module: str) -> set[str]:
    return {stage for stage in STAGES if stage not in ("fetch", "track") and module in known(clone, stage)}


def edit(clone: Clone, module: str, line: str) -> None:
    base = clone.folder.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    path.write_text(f"{path.read_text()}\n{line}\n")


def test_a_change_of_any_module_changes_the_stages_that_use_it_and_no_other(copy_of: Clone) -> None:
    """For five modules drawn anew in every run; the failing one is in the message."""
    stages = set(STAGES) - {"fetch", "track"}  # fetch always runs, and track with it
    modules = sorted({m for stage in stages for m in known(copy_of, stage) if m.startswith("headstart.")})
    for module in random.Random().sample(modules, 5):
        before = {path: path.read_bytes() for path in (copy_of.folder / "headstart").rglob("*.py")}
        edit(copy_of, module, "# a comment")
        assert changed(copy_of) == set(), f"a comment in {module}"
        edit(copy_of, module, "_edited = True")
        assert changed(copy_of) == stages_that_use(copy_of, module) != set(), module
        for path, content in before.items():
            path.write_bytes(content)
    assert changed(copy_of) == set()


def test_templates_and_servers_are_known_by_those_who_use_them(copy_of: Clone) -> None:
    template = copy_of.folder / "headstart/evaluation/templates/report.html.j2"
    template.write_text(template.read_text() + "<!-- edited -->\n")
    assert changed(copy_of) == {"evaluate"}
    edit(copy_of, "headstart.inference.server", "_edited = True")
    assert changed(copy_of) == {"evaluate"}


def test_another_version_of_a_library_reruns_the_stages_that_import_it(copy_of: Clone) -> None:
    fake = copy_of.folder / "timm-0.0.1.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    expected = {"backbone", "features", "finetune", "evaluate"}
    assert expected <= changed(copy_of)
    assert not {"prepare", "head"} & changed(copy_of)
    told = copy_of.run("headstart", "doctor", check=False).stdout
    assert "result: backbone, features, finetune, evaluate, package last ran with other code or libraries" in told


def test_a_broken_trunk_is_reported_with_its_own_accuracy(copy_of: Clone) -> None:
    """Features that are column numbers tell classes apart no better than chance."""
    copy_of.set(finetune={"unfreeze": "none"})
    copy_of.repro()
    before = json.loads(copy_of.read("data/evaluate/metrics.json"))["test"]["head"]
    path = copy_of.folder / "headstart/models/trunk.py"
    text = path.read_text()
    line = "        return features.flatten(1)"
    assert line in text
    path.write_text(
        text.replace(line, "        return torch.arange(1280.0).expand(len(pictures), -1) + 0 * features.flatten(1)")
    )
    ran = copy_of.stages_run()
    assert {"features", "head", "evaluate", "package", "track"} <= set(ran)
    after = json.loads(copy_of.read("data/evaluate/metrics.json"))["test"]["head"]
    classes = len({*json.loads(copy_of.read("data/head/head.json"))["classes"]})
    assert before["accuracy"] > 0.4
    assert after["accuracy"] <= 2 / classes


def test_what_was_kept_of_other_code_is_not_used_again(copy_of: Clone) -> None:
    """A half-finished training and stored activations belong to the code that made them."""
    kept = copy_of.folder / ".headstart"
    copy_of.set(finetune={"views": 1})
    copy_of.killed_when(lambda: any(kept.glob("finetune/*/epoch.pt")), "dvc", "repro")
    activations = {path.name for path in (kept / "answers").iterdir()}
    trainings = {path.name for path in (kept / "finetune").iterdir()}
    edit(copy_of, "headstart.training.trainer", "_edited = True")
    output = copy_of.repro().stdout
    assert "going on after epoch" not in output
    assert {path.name for path in (kept / "answers").iterdir()} - activations
    assert (kept / "finetune").exists()
    assert trainings
