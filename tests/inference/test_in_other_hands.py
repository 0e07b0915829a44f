"""The packaged model as a Spark UDF and in Ray Data, by the very code that docs/use.md shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.dataset
import pytest

from headstart.base.artifacts import ModelFolder
from headstart.inference.predictor import load_predictor
from tests.inference.test_package import PROJECT, data, model  # noqa: F401 - fixtures

PAGE = (PROJECT / "docs/use.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE[PAGE.index("## In Spark and in Ray") :], re.DOTALL)
HERE = {  # in a cluster of its own, whatever other tests have started
    "SPARK_LOCAL_IP": "127.0.0.1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pyspark", "ray"])
def test_the_code_in_the_documentation_answers_as_the_model_itself(model: ModelFolder, engine: str) -> None:  # noqa: F811
    if find_spec(engine) is None or (engine == "pyspark" and shutil.which("java") is None):
        pytest.skip(f"{engine} is not installed here")
    (code,) = (block for block in BLOCKS if f"import {engine}" in block or f"from {engine}" in block)
    # As somebody who has no headstart: the model brings its own.
    paths = [path for path in sys.path if path and not (Path(path) / "headstart").is_dir()]
    environment = os.environ | HERE | {"PYTHONPATH": os.pathsep.join(paths), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = sorted(Path("pictures").rglob("*.png"))
    expected = {file.name: answer for file, answer in zip(files, load_predictor(model).predict(files), strict=True)}
    rows = pyarrow.dataset.dataset("answers", exclude_invalid_files=True).to_table().to_pylist()
    assert sorted(Path(row["path"]).name for row in rows) == sorted(expected)
    for row in rows:
        answer = expected[Path(row["path"]).name]
        assert row["label"] == answer.label
        assert row["probability"] == pytest.approx(answer.probability, abs=1e-4)
        assert [row[name] for name in answer.probabilities] == pytest.approx([*answer.probabilities.values()], abs=1e-4)
