"""Names that libraries keep to themselves: used in one module only, and still true."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import openvino
import pytest
import torch
from mlflow.utils import requirements_utils
from torch import nn

from headstart.base import private_names
from headstart.engines.openvino import converted

PROJECT = Path(__file__).parents[2]
ELSEWHERE = [path for path in (PROJECT / "headstart").rglob("*.py") if path.name != "private_names.py"]
DOCUMENTED = {"_exit", "_fields", "_asdict"}  # of os, ast and named tuples


def private(path: Path) -> set[str]:
    """Attributes and modules of others that begin with an underscore."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in found if re.match(r"_[^_]", name)} - DOCUMENTED


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_private_names_stand_in_one_module(path: Path) -> None:
    assert not private(path)


@pytest.mark.parametrize(
    "function",
    [f for f in vars(private_names).values() if inspect.isfunction(f) and f.__module__ == private_names.__name__],
    ids=lambda function: function.__name__,
)
def test_each_says_library_reason_and_the_test_that_holds_it(function: object) -> None:
    text = inspect.getdoc(function) or ""
    for heading in ("Names: ", "Library: ", "Reason: "):
        assert f"\n{heading}" in text
    named = re.search(r"^Test: (test_\w+)$", text, re.MULTILINE)
    assert named
    tests = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tests").rglob("test_*.py"))
    assert f"def {named[1]}(" in tests


def test_a_process_that_leaves_has_ended_its_threads_and_exit_functions() -> None:
    program = """
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor
from headstart.base.errors import run_cleanly

pool = ThreadPoolExecutor(1)  # never shut down: its thread waits for more work

def main():
    atexit.register(print, "exit function")
    pool.submit(time.sleep, 0.3).add_done_callback(lambda _: print("of the pool"))
    threading.Thread(target=lambda: (time.sleep(0.6), print("thread"))).start()

run_cleanly(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["of the pool", "thread", "exit function"]


def test_a_converted_network_answers_as_torch_and_has_its_batch_norm_folded() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    network[1].running_mean += torch.rand(8)
    pictures = torch.rand(2, 3, 8, 8)
    model = converted(network, pictures)
    assert "BatchNormInference" in {op.get_type_name() for op in model.get_ops()}
    private_names.fold_openvino_batch_norm(model)
    kinds = [op.get_type_name() for op in model.get_ops()]
    assert "BatchNormInference" not in kinds
    assert "Multiply" not in kinds  # it is in the convolution's weights
    answers = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pictures.numpy())[0]
    np.testing.assert_allclose(answers, network(pictures).detach().numpy(), atol=1e-5)


def test_mlflow_saves_a_model_without_listing_all_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lists: list[str] = []
    whole = requirements_utils.importlib_metadata.packages_distributions

    def packages() -> object:
        lists.append(name)
        return whole()

    monkeypatch.setattr(requirements_utils.importlib_metadata, "packages_distributions", packages)
    (tmp_path / "model.py").write_text("import mlflow\nmlflow.models.set_model(lambda model_input: model_input)\n")

    for name in ("slowly", "quickly"):
        monkeypatch.setattr(requirements_utils, "_MODULES_TO_PACKAGES", None)
        if name == "quickly":
            private_names.list_no_packages_in_mlflow()
        mlflow.pyfunc.save_model(tmp_path / name, python_model=str(tmp_path / "model.py"), pip_requirements=["numpy"])
        assert (tmp_path / name / "MLmodel").exists()
    assert set(lists) == {"slowly"}
