"""A metric and a stage are added as CONTRIBUTING.md says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.inference.test_predictor import NETWORK
from tests.stages.conftest import SLICE, Clone

FUNCTION = '''
def _top_two_accuracy(scores: Scores, rows: Ints) -> float:
    """How often the label is among the two most probable classes."""
    best = np.argsort(-scores.probabilities[rows], axis=1)[:, :2]
    return float((best == scores.labels[rows, None]).any(axis=1).mean())

'''
ENTRY = '        Metric("top_two_accuracy", "accuracy of the first two", _top_two_accuracy, is_proportion=True),\n'

GATE = """
import numpy as np
from headstart.base.params import Params
from headstart.evaluation.metrics import Scores
from headstart.tracking.judge import Side, judge

params, labels = Params.load(), np.zeros(20, np.int64)
second, third = (Side(n, Scores(np.tile(p, (20, 1)), labels), frozenset(range(3)), 0.01) for n, p in enumerate(
    ([0.3, 0.5, 0.2], [0.2, 0.5, 0.3])))
print(judge(second, third, ["a", "b", "c"], params.gate, 100, 0).sentence)
"""


def insert(path: Path, text: str, before: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(before) == 1, f"{path.name}: {before}"
    path.write_text(source.replace(before, text + before), encoding="utf-8")


def test_a_metric_that_is_added_is_in_metrics_json_the_report_and_the_gate(project: Callable[..., Clone]) -> None:
    clone = project(**SLICE | {"backbone": "net.py:colours", "weights": "none", "finetune": {"unfreeze": "none"}})
    (clone.folder / "net.py").write_text(NETWORK)
    metrics = clone.folder / "headstart/evaluation/metrics.py"
    insert(metrics, FUNCTION, "\nACCURACY = ")
    insert(metrics, ENTRY, "        LOG_LOSS,\n")
    insert(clone.folder / "headstart/base/sections.py", '"top_two_accuracy", ', '"log_loss"')
    clone.set(gate={"metric": "top_two_accuracy"})
    clone.run_without_dvc("fetch", "prepare", "backbone", "features", "head", "finetune", "evaluate")
    test = json.loads(clone.read("data/evaluate/metrics.json"))["test"]["chosen"]
    assert test["accuracy"] <= test["top_two_accuracy"]
    assert test["top_two_accuracy_low"] < test["top_two_accuracy"] < test["top_two_accuracy_high"]
    report = clone.read("data/evaluate/report.html")
    assert '<th class="n">accuracy of the first two</th>' in report
    assert f'<td class="n">{test["top_two_accuracy"]:.3f} (' in report
    (clone.folder / "stages/judged.py").write_text(GATE)  # where it is started warm
    sentence = clone.run("python", "stages/judged.py").stdout
    assert "Accuracy of the first two is 1.000 worse, more than gate.margin 0.01 allows" in sentence


FOLDER = """
class CensusFolder(Folder):
    details = File("census.json")

"""

RUN = '''"""How many pictures each class has."""

from headstart.base.artifacts import DataFolder
from headstart.base.files import write_json
from headstart.base.params import Params
from headstart.data.manifest import read_manifest


def run(params: Params, data: DataFolder) -> None:
    counts = read_manifest(data.prepare)["label"].value_counts()
    write_json(data.census.details, counts.to_dict())
'''

SCRIPT = '''"""Count the pictures."""

from headstart.base.stage import start
from headstart.data.census import run

start(__file__, run)
'''


def test_a_stage_that_is_added_runs_when_its_code_or_its_inputs_change(copy_of: Clone) -> None:
    clone = copy_of
    artifacts = clone.folder / "headstart/base/artifacts/__init__.py"
    insert(artifacts, FOLDER, "\nclass DataFolder(Folder):")
    insert(
        artifacts, '    census = Subfolder("census", CensusFolder)\n', '    prepare = Subfolder("prepare", PrepareFolder)'
    )
    work = clone.folder / "headstart/data/census.py"
    work.write_text(RUN)
    (clone.folder / "stages/census.py").write_text(SCRIPT)
    pipeline = yaml.safe_load(clone.read("dvc.yaml"))
    pipeline["stages"]["census"] = {
        "cmd": "python stages/census.py", "deps": ["data/fetch/code/census.json", "data/prepare"], "outs": ["data/census"],
    }  # fmt: skip
    (clone.folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    assert clone.stages_run("census")[-1] == "census"
    counts = json.loads(clone.read("data/census/census.json"))
    assert set(counts.values()) == {12}
    assert clone.stages_run("census") == []
    work.write_text(RUN.replace("counts.to_dict()", "counts[:2].to_dict()"))
    assert clone.stages_run("census") == ["census"]
    assert len(json.loads(clone.read("data/census/census.json"))) == 2
    clone.set(data={"limit": 11})
    assert clone.stages_run("census") == ["prepare", "census"]
