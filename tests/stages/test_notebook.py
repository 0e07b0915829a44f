"""The notebook, from top to bottom, in a kernel of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.stages.conftest import PROJECT, Clone
from tests.stages.test_pipeline import runs_of

NOTEBOOK = Path("notebooks/headstart.ipynb")


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    notebook = nbformat.read(PROJECT / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert not [cell for cell in code if cell.outputs or cell.execution_count]


def test_links_of_the_notebook_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in nbformat.read(PROJECT / NOTEBOOK, as_version=4).cells)
    for target in re.findall(r"\]\((\.\./[^)#]+)", text):
        assert (PROJECT / NOTEBOOK.parent / target).resolve().exists(), target


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(copy_of: Clone) -> None:
    copy_of.commit()
    notebook = nbformat.read(copy_of.folder / NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(copy_of.folder / NOTEBOOK.parent)}})
    client.execute(env=copy_of.environment())

    metrics = json.loads(copy_of.read("data/evaluate/metrics.json"))
    assert f"test accuracy {metrics['test']['chosen']['accuracy']:.3f}" in printed(notebook)
    shown = [list(output.data) for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in kinds for kinds in shown) == 4  # three figures, and the picture that is asked about
    assert sum("text/html" in kinds for kinds in shown) == 2  # the figures in a table, and the runs
    assert re.search(r"^ *\d+\.\d% .* \S*picture\.png$", printed(notebook), re.MULTILINE)
    assert {tags["trained"] for tags in runs_of(copy_of)["tags"]} == {"last", "head"}
    assert "unfreeze: last" in copy_of.read("params.yaml")  # the experiment was made beside it
