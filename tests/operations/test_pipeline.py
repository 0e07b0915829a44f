"""`headstart.run`: parameters are written as a person would, DVC runs, and what comes of it is shown in a notebook."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import headstart
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.metrics import Metrics
from headstart.evaluation.summary import headline

PROJECT = Path(__file__).parents[2]
PIXEL = b"\x89PNG"  # a figure is shown as it is


def measured(accuracy: float) -> dict[str, float | int]:
    return {"accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1, "n": 40}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The shipped params.yaml, and a pipeline of one stage that writes what evaluate writes, and what it was told."""
    folder = tmp_path / "birds"
    data = DataFolder(folder, "data")
    data.evaluate.figures.mkdir(parents=True)
    shutil.copy(PROJECT / "params.yaml", folder)
    test = {"head": measured(0.8), "finetune": measured(0.85), "chosen": measured(0.85)}
    metrics = Metrics(chosen="finetune", val={"head": measured(0.8), "finetune": measured(0.9)}, test=test)
    metrics.write(folder / "finished.json")
    for name in ("confusion", "mistakes"):
        (data.evaluate.figures / f"{name}.png").write_bytes(PIXEL + name.encode())
    stage(folder, "cp finished.json data/evaluate/metrics.json")
    return folder


@pytest.fixture
def under_dvc(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    dvc = [sys.executable, "-m", "dvc", "init", "-q"]
    subprocess.run(dvc, cwd=project, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "true"})


def stage(folder: Path, command: str) -> None:
    params = ["data", "backbone", "finetune", "tune"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": {"cmd": command, "params": params}}}))


@pytest.mark.usefixtures("under_dvc")
def test_parameters_are_written_with_comments_kept_and_the_result_is_typed_and_shown(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project / "params.yaml").read_text()
    more: dict[str, Any] = {
        "finetune": {"epochs": 3, "lr": np.float64(0.002)}, "tune": {"space": {"lr": (0.001, 0.002)}},
        "head.C": [0.1, 1.0],
    }  # fmt: skip
    pictures = Path("pictures")
    result = headstart.run(source=pictures, backbone=["resnet18", "alexnet"], project=project, **more)
    after = (project / "params.yaml").read_text()
    params = yaml.safe_load(after)
    assert (params["data"]["source"], params["backbone"]) == ("pictures", ["resnet18", "alexnet"])
    assert (params["finetune"]["epochs"], params["finetune"]["lr"], params["finetune"]["unfreeze"]) == (3, 0.002, "half")
    assert params["tune"]["space"] == {"lr": [0.001, 0.002]}  # a value, and no section to add to
    assert params["head"]["C"] == [0.1, 1.0]
    comments = re.findall(r"# .*", before)
    assert len([comment for comment in comments if comment in after]) > 0.9 * len(comments)
    assert "Running stage 'evaluate'" in capsys.readouterr().out

    assert result.chosen == "finetune"
    assert result.metrics.test["chosen"]["accuracy_low"] == pytest.approx(0.75)
    assert str(result) == headline(result.metrics)
    assert result.report == project / "data/evaluate/report.html"
    assert result.predictions == project / "data/evaluate/predictions.parquet"
    assert result.model == project / "data/package/model"
    table = result.table()
    assert table.loc["accuracy", "test, finetune"] == "0.850 (0.750–0.950)"
    assert list(table.columns) == ["val, head", "val, finetune", "test, head", "test, finetune"]
    page = result._repr_html_()
    assert page.count("<img") == 2
    assert "0.850 (0.750–0.950)" in page
    assert headline(result.metrics).split(";")[0] in page
    assert str(project) not in page
    assert result == headstart.Result.read(project)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"finetune": {"epoch": 3}}, r"params.yaml: .*finetune.epoch\b.*did you mean 'epochs'"),
        ({"finetune.epochs": "many"}, r"params.yaml: finetune.epochs .*'many'"),
        ({"bakcbone": "resnet18"}, r"params.yaml: .*bakcbone.*did you mean 'backbone'"),
        ({"backbone.size": 3}, r"params.yaml: backbone"),
        ({"source": ""}, r"params.yaml: data.source"),
    ],
)
def test_what_is_not_allowed_is_refused_before_anything_is_written(
    given: dict[str, Any], sentence: str, project: Path
) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(headstart.HeadstartError, match=sentence):
        headstart.run(project=project, **given)
    assert (project / "params.yaml").read_bytes() == before
    assert not (project / "dvc.lock").exists()


def test_a_folder_that_is_no_project_and_one_without_a_result_are_named(project: Path) -> None:
    with pytest.raises(headstart.HeadstartError, match=r"has no dvc.yaml and params.yaml; name the project's folder"):
        headstart.run(project=project / "data")
    with pytest.raises(headstart.HeadstartError, match=r"metrics.json is not there"):
        headstart.Result.read(project)


@pytest.mark.usefixtures("under_dvc")
def test_what_a_stage_says_is_the_error_and_the_parameters_stay(project: Path) -> None:
    stage(project, "echo 'headstart: pictures holds no class folders' >&2; false")
    with pytest.raises(headstart.HeadstartError, match=r"`dvc repro` failed: pictures holds no class folders\. Finished"):
        headstart.run(source="pictures", project=project)
    assert yaml.safe_load((project / "params.yaml").read_text())["data"]["source"] == "pictures"


@pytest.mark.usefixtures("under_dvc")
def test_ctrl_c_ends_what_runs_and_is_what_python_makes_of_it(project: Path) -> None:
    stage(project, "echo $$ > pid; exec sleep 60")
    program = (
        "import headstart\n"
        "try: headstart.run(project='.')\n"
        "except KeyboardInterrupt: print('interrupted'); raise SystemExit(3)\n"
    )
    here = os.environ | {"PYTHONPATH": str(PROJECT)}
    # A group of its own, all of which gets the signal, as in a terminal and from Jupyter.
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=project, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as one:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (project / "pid").exists() or not (pid := (project / "pid").read_text().strip()):
            assert one.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(one.pid, signal.SIGINT)
        out, err = one.communicate(timeout=60)
    assert one.returncode == 3
    assert out.endswith("interrupted\n")
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_import_headstart_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, headstart; assert headstart.__version__; from headstart import HeadstartError; "
        "print(*{'torch', 'numpy', 'pandas', 'mlflow', 'sklearn', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"
    assert set(headstart.__all__) <= set(dir(headstart))
    for name in headstart.__all__:
        assert getattr(headstart, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        headstart.lod  # type: ignore[attr-defined] # noqa: B018
