"""A clock may decide when something happens, and never what comes out."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.files import read_json
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.evaluation import report
from headstart.inference import package
from headstart.models import weights
from headstart.training import features, finetune, linear_probe

ROOT = Path(__file__).parents[2]
# So many pictures that the engine is no foregone conclusion: preparing OpenVINO takes about as long as it saves.
PARAMS = Params.model_validate(
    {
        "data": {"limit": 32},
        "backbone": "tf_efficientnet_lite0",
        "finetune": {"epochs": 2, "unfreeze": "last", "size_ratio": 0.3, "batch_size": 16, "views": 1},
        "evaluate": {"bootstrap": 100, "mistakes": 2},
    }
)
BEFORE: tuple[Callable[[Params, DataFolder], None], ...] = (fetch.run, prepare.run, weights.run)
STAGES: tuple[Callable[[Params, DataFolder], None], ...] = (
    features.run,
    linear_probe.run,
    lambda params, data: finetune.run(params, data, lambda *_: lambda row: None),
    report.run,
    package.run,
)
OUTPUTS = ("features", "head", "finetune", "evaluate", "package")


def lying(clock: Callable[[], float], factor: float) -> Callable[[], float]:
    start = clock()
    return lambda: start + factor * (clock() - start)


def run_with_clock(factor: float, project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Digests of all that the stages write in ``project`` while every clock runs so many times as fast."""
    with monkeypatch.context() as patched:
        patched.chdir(project)
        for name in ("time", "monotonic", "perf_counter"):
            patched.setattr(time, name, lying(getattr(time, name), factor))
        for run in STAGES:
            run(PARAMS, DATA)
    files = (path for name in OUTPUTS for path in sorted((project / "data" / name).rglob("*")) if path.is_file())
    return {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_clock_that_lies_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    start = tmp_path / "start"
    start.mkdir()
    shutil.copy(ROOT / "dvc.yaml", start)
    with monkeypatch.context() as patched:
        patched.chdir(start)
        for run in BEFORE:
            run(PARAMS, DATA)
    found = {}
    for factor in (0.1, 10.0):
        project = tmp_path / f"times {factor}"
        shutil.copytree(start, project)
        found[factor] = run_with_clock(factor, project, monkeypatch)
    assert found[0.1] == found[10.0]
    assert len(found[0.1]) > 20
    assert read_json(project / "data/features/features.json")["engine"] == "openvino"
