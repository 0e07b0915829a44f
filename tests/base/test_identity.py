"""What shapes a stage is read from its code: every import counts, comments and docstrings do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.base import identity
from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.identity import Code
from headstart.base.source_code import Source

PROJECT = Path(__file__).parents[2]


def parsed(text: str) -> Source:
    return identity._parsed(Path("module.py"), text.encode())


PLAIN = "import torch\n\n\ndef double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    "same",
    [
        f'"""A docstring."""\n{PLAIN}',
        PLAIN.replace("(x):\n", '(x):\n    """Twice."""\n'),
        f"# a comment\n\n\n{PLAIN}",
        PLAIN.replace("2 * x", "(2 *\n            x)  # doubled"),
    ],
    ids=["docstring", "docstring of a function", "comment", "layout"],
)
def test_what_cannot_change_an_output_changes_no_digest(same: str) -> None:
    assert parsed(same).digest == parsed(PLAIN).digest


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("2 * x", "2.0 * x"),
        PLAIN.replace("2 * x", "x * 2"),
        PLAIN.replace("def double(x)", "def double(x=1)"),
        f"{PLAIN}\nlimit = 1\n",
        PLAIN.replace("return 2 * x", "'not a docstring'[0]\n    return 2 * x"),
    ],
)
def test_what_may_change_an_output_changes_the_digest(other: str) -> None:
    assert parsed(other).digest != parsed(PLAIN).digest


@given(st.integers(), st.integers())
def test_two_numbers_have_two_digests(one: int, other: int) -> None:
    assert (parsed(f"x = {one}").digest == parsed(f"x = {other}").digest) == (one == other)


def test_imports_inside_functions_count_and_those_for_type_checkers_do_not() -> None:
    source = parsed(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\nelse:\n    import polars\n"
        "def f():\n    from headstart.base import files\n    return files\n"
    )
    assert {"headstart.base", "headstart.base.files", "polars"} <= set(source.imports)
    assert "pandas" not in source.imports


def test_a_string_that_names_a_module_or_a_template_counts() -> None:
    modules = identity.modules_of("headstart.evaluation.report")
    assert "headstart.evaluation.figures" in modules
    code = identity._code([identity._modules()["headstart.evaluation.report"]])
    assert "headstart/evaluation/templates/report.html.j2" in code.modules
    package = identity._code([identity._modules()["headstart.inference.package"]])
    assert "headstart.inference.predictor" in package.modules, "it travels in the model"


def test_a_library_counts_by_its_version_wherever_it_is_imported(tmp_path: Path) -> None:
    """A fake version: a distribution of that name that stands before the real one on the path."""
    program = "from headstart.base.identity import code_of; print(code_of('headstart.models.backbones'))"

    def digest(*before: Path) -> str:
        path = ":".join(map(str, [*before, PROJECT]))
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    for name, counts in (("timm", True), ("torch", True), ("rich", False)):
        fake = tmp_path / name / f"{name}-0.0.1.dist-info"
        fake.mkdir(parents=True)
        (fake / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        assert (digest(tmp_path / name) != digest()) == counts, name


def test_changes_are_named() -> None:
    before = Code({"headstart.a": "1", "headstart.b": "1"}, {"timm": "1.0", "numpy": "2"})
    after = Code({"headstart.a": "2", "headstart.c": "1"}, {"timm": "1.1", "numpy": "2"})
    assert after.changes_since(before) == ["headstart.a", "headstart.b", "headstart.c", "timm 1.0 → 1.1"]
    assert after.changes_since(after) == []


def test_a_stage_whose_code_was_edited_after_fetch_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "stages" / "head.py"
    script.parent.mkdir()
    script.write_text("x = 1\n")
    identity.write_code(DataFolder(tmp_path, "data"))
    identity.check_code(DataFolder(tmp_path, "data"), "head")
    script.write_text("x = 2\n")
    identity._files.cache_clear()
    with pytest.raises(HeadstartError, match=r"the code of head has changed .* \(stages/head.py\); run `dvc repro`"):
        identity.check_code(DataFolder(tmp_path, "data"), "head")
    sentence = identity.made_by_other_code(DataFolder(tmp_path, "data"), ["head"])
    assert sentence == "head was made by other code or libraries than are here now: stages/head.py"


def test_what_was_parsed_once_is_remembered_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "head.py").write_text("import headstart.base.params\n")
    identity._files.cache_clear()
    identity.write_code(DataFolder(tmp_path, "data"))
    first = (tmp_path / "data/fetch/code/head.json").read_bytes()
    identity._files.cache_clear()
    monkeypatch.setattr(identity, "_parsed", lambda path, content: pytest.fail(f"{path} is parsed again"))
    identity.write_code(DataFolder(tmp_path, "data"))
    assert (tmp_path / "data/fetch/code/head.json").read_bytes() == first
    identity._files.cache_clear()


def test_a_module_that_cannot_be_parsed_is_named() -> None:
    with pytest.raises(HeadstartError, match=r"module.py, line 1: "):
        parsed("def (:\n")


LOCK = """schema: '2.0'
stages:
  {stage}:
    deps:
    - path: {dep}
      md5: {md5}
    params:
      params.yaml:
        labels:
          shown: {shown}
        threads:
    outs:
    - path: {out}
      md5: {md5}
"""


def test_an_output_from_other_inputs_or_parameters_than_are_here_is_of_an_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    data = DataFolder("data")

    def now(pipeline: str, shown: int) -> str | None:
        (tmp_path / "dvc.lock").write_text(
            LOCK.format(stage="features", dep="data/prepare", out="data/features", md5=pipeline, shown=shown)
        )
        (tmp_path / "params.yaml").write_text(f"labels: {{shown: {shown}}}\nthreads: null\n")
        return identity.outdated(data, ["labels"])

    assert now("aaa", 30) is None  # it never ran
    (tmp_path / "studies/dvc.lock").write_text(
        LOCK.format(stage="labels", dep="data/features", out="data/labels", md5="aaa", shown=30)
    )
    assert now("aaa", 30) is None
    assert now("bbb", 30) == "labels last ran before data/features changed"
    assert now("bbb", 3) == "labels last ran before data/features, labels in params.yaml changed"
