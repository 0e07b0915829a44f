"""The notebook: stored with what it showed, and run from top to bottom in a kernel of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.stages.conftest import PROJECT, SLICE, Clone
from tests.stages.test_pipeline import runs_of

NOTEBOOK = Path("notebooks/headstart.ipynb")


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook: Any) -> str:
    return "".join(output.text for output in outputs_of(notebook) if output.output_type == "stream")


def shown(notebook: Any) -> list[Any]:
    """The kinds of what is shown, each with its content."""
    return [output.data for output in outputs_of(notebook) if "data" in output]


def pages_of(notebook: Any) -> list[str]:
    return [data["text/html"] for data in shown(notebook) if "text/html" in data]


def check_what_is_shown(notebook: Any) -> None:
    """The result as a page, the comparison, a picture and its row; nothing that another day or machine would show
    otherwise."""
    assert not [output for output in outputs_of(notebook) if output.output_type == "error"]
    result, compared, answer = pages_of(notebook)
    assert re.findall(r'alt="(\w+)"', result) == ["confusion", "mistakes", "curve"]
    assert "log-loss" in compared
    assert "picture 0" in answer
    assert sum("image/png" in data for data in shown(notebook)) == 1
    text = printed(notebook) + "".join(
        re.sub(r"base64,[^\"]+", "", str(value))
        for data in shown(notebook)
        for kind, value in data.items()
        if "image" not in kind
    )
    assert not re.search(
        r"(?<![\w.])/(home|root|work|tmp|Users|var)/|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|\d s\b|0x[0-9a-f]{6}", text
    )


def test_the_notebook_is_kept_with_what_it_showed() -> None:
    notebook = nbformat.read(PROJECT / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell for cell in code if "execution" in cell.metadata]  # when it ran
    check_what_is_shown(notebook)


def test_links_of_the_notebook_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in nbformat.read(PROJECT / NOTEBOOK, as_version=4).cells)
    for target in re.findall(r"\]\((\.\./[^)#]+)", text):
        assert (PROJECT / NOTEBOOK.parent / target).resolve().exists(), target


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(copy_of: Clone) -> None:
    copy_of.commit()
    notebook = nbformat.read(copy_of.folder / NOTEBOOK, as_version=4)
    limit = SLICE["data"]["limit"]  # type: ignore[index]
    for cell in notebook.cells:
        cell.source = re.sub(r"^LIMIT = \d+", f"LIMIT = {limit}", cell.source, flags=re.MULTILINE)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(copy_of.folder / NOTEBOOK.parent)}})
    client.execute(env=copy_of.environment())

    metrics = json.loads(copy_of.read("data/evaluate/metrics.json"))
    accuracy = f"test accuracy {metrics['test']['chosen']['accuracy']:.3f}"
    check_what_is_shown(notebook)
    assert accuracy in printed(notebook)
    assert accuracy in pages_of(notebook)[0]
    assert {tags["trained"] for tags in runs_of(copy_of)["tags"]} == {"last", "head"}
    assert "unfreeze: last" in copy_of.read("params.yaml")  # as it was before
