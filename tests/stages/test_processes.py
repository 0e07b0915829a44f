"""`finetune.processes`: `dvc repro` trains in several processes and ends where one does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.stages.conftest import Clone
from tests.two_nodes import TwoNodes

pytestmark = [pytest.mark.slow]


def test_dvc_repro_trains_in_two_processes_and_ends_where_one_does(finished: Clone, copy_of: Clone) -> None:
    copy_of.set(finetune={"processes": 2})
    done = copy_of.repro("finetune")
    curve = "data/finetune/curve.csv"
    pd.testing.assert_frame_equal(*(pd.read_csv(c.folder / curve) for c in (copy_of, finished)), atol=1e-3, rtol=0)
    alone, details = (json.loads(clone.read("data/finetune/finetune.json")) for clone in (finished, copy_of))
    assert details["processes"] == 2
    assert details["trained_share"] == alone["trained_share"]
    assert done.stdout.count("finetune: epoch 1/2, ") == 1, "one of them talks"
    assert "torch.distributed" not in done.stderr


def test_where_one_of_them_is_killed_all_go_on_and_end_there_too(finished: Clone, copy_of: Clone) -> None:
    copy_of.set(finetune={"processes": 2})
    stage = subprocess.Popen(
        ["python", "stages/finetune.py"], cwd=copy_of.folder, env=copy_of.cold.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    resume, deadline = copy_of.folder / ".headstart/finetune", time.monotonic() + 300
    while not list(resume.glob("*/epoch.pt")):
        assert stage.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (last,) = [one for one in psutil.Process(stage.pid).children(recursive=True) if one.environ().get("RANK") == "1"][:1]
    last.kill()
    said, errors = stage.communicate(timeout=300)
    assert stage.returncode == 0, errors
    told = "finetune: one of the 2 processes that train was killed by signal 9; all go on after the last finished epoch"
    assert errors.count(told) == 1
    assert "Traceback" not in errors
    assert said.count("finetune: going on after epoch 1, ") == 1
    curve = "data/finetune/curve.csv"
    pd.testing.assert_frame_equal(*(pd.read_csv(c.folder / curve) for c in (copy_of, finished)), atol=1e-3, rtol=0)


def test_with_a_cluster_its_workers_train(two_nodes: TwoNodes, finished: Clone, copy_of: Clone) -> None:
    import ray

    copy_of.set(cluster=two_nodes.address, finetune={"processes": 2})
    path = f"{copy_of.folder}{os.pathsep}{Path(ray.__file__).parents[1]}"
    done = copy_of.cold.run("python", "stages/finetune.py", PYTHONPATH=path)
    assert json.loads(copy_of.read("data/finetune/finetune.json"))["processes"] == 2
    assert re.findall("finetune: .*epoch (?:1|1/2|2/2),", done.stdout) == ["finetune: epoch 1/2,", "finetune: epoch 2/2,"]
    curve = "data/finetune/curve.csv"
    pd.testing.assert_frame_equal(*(pd.read_csv(c.folder / curve) for c in (copy_of, finished)), atol=1e-3, rtol=0)


def test_what_is_wrong_is_said_once(copy_of: Clone) -> None:
    copy_of.set(finetune={"processes": 2, "lr": 0.002})
    damaged = copy_of.folder / "data/head/head.json"
    copy_of.run("dvc", "unprotect", "data/head")
    damaged.write_text("{")
    done = copy_of.run("python", "stages/finetune.py", check=False)
    assert done.returncode == 1
    assert done.stderr.count("headstart: data/head/head.json: ") == 1
    assert "Traceback" not in done.stderr
