"""The view that MLflow's page offers for an experiment of headstart's: which columns, in what order, which charts.

What people save with the button Views on MLflow's page becomes a tag of the experiment, ``mlflow.sharedViewState.KEY``:
JSON with a name, two times and the state of the page, which is JSON again. Here such a view is written without a page
(mlflow 3.17, ``ExperimentPageUIState`` and ``RunsChartsCardConfig`` of its server/js). A server that does not know these
tags passes them over.
"""

from __future__ import annotations

import json
import time
from typing import Any

from headstart.evaluation.metrics import ACCURACY, LOG_LOSS

VIEW, NAME = "headstart", "Results compared"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE = f"*Views*, on the right, has *{NAME}*: the best on validation first. Choose by val/chosen; report test/chosen."
COLUMNS = {  # with their widths in pixels
    "tags.`source`": 150,
    "params.`backbone`": 165,
    "tags.`trained`": 80,
    f"metrics.`val/chosen/{LOG_LOSS.name}`": 150,
    f"metrics.`val/chosen/{ACCURACY.name}`": 155,
    f"metrics.`test/chosen/{ACCURACY.name}`": 160,
    f"metrics.`test/chosen/{ACCURACY.name}_low`": 185,
    f"metrics.`test/chosen/{ACCURACY.name}_high`": 190,
    "metrics.`backbone/gmacs`": 125,
    "tags.`chosen`": 80,
}
FIGURES = ("confusion", "reliability", "mistakes")
COMPARED = "headstart-compared"  # the section of charts that is open
# MLflow makes a chart of every metric, in sections by what stands before the last slash of its name. The curves of
# fine-tuning are open too; the others, three charts for each figure and its interval, are there for whoever opens them.
CURVES = "finetune"
CLOSED = (
    "val/chosen", "test/chosen", "val/head", "test/head", "val/finetune", "test/finetune", "val/ensemble", "test/ensemble",
    "gain/val", "gain/test", "folds", "folds/head", "leaks", "leaks/without", "leaks/added", "heat", "heat/centre",
    "subgroups", "worst_class", "ensemble", "head", "backbone",
    "prepare", "figures", "gate", "gate/gain", "gate/champion", "gate/challenger",
)  # fmt: skip


def tags() -> dict[str, str]:
    """What an experiment is given: its kind, a word for those who open it, and the view."""
    now = int(time.time() * 1000)
    view = {"name": NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(_state())}
    return {
        "mlflow.experimentKind": "custom_model_development",  # the page opens on the runs, and not on what chats have
        "mlflow.note.content": NOTE,
        VIEW_TAG: json.dumps(view),
    }


def is_old(key: str, value: str) -> bool:
    """Whether a tag of an experiment holds headstart's view as an older version made it. What people save on MLflow's page
    are other tags."""
    if key != VIEW_TAG:
        return False
    try:
        return bool(json.loads(value)["state"] != json.dumps(_state()))
    except (ValueError, TypeError, KeyError):
        return True


def _state() -> dict[str, Any]:
    return {
        "searchFilter": "tags.chosen LIKE '%'",  # results: no trials of a tuning, and none that is not over yet
        "orderByKey": f"metrics.`val/chosen/{LOG_LOSS.name}`",
        "orderByAsc": not LOG_LOSS.higher_is_better,
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "compareRunCharts": _charts(),
        "compareRunSections": [
            _section(COMPARED, "Compared", True) | {"columns": 2, "cardHeight": 400},
            _section("headstart-curves", CURVES, True),
            *(_section(f"headstart-{name}", name, False) for name in CLOSED),
        ],
        "isAccordionReordered": True,  # or the sections are put in order by their names
    }


def _charts() -> list[dict[str, Any]]:
    """Accuracy over cost, what was tried beside what it gave, and the figures of several results side by side."""
    cost, accuracy, loss = "backbone/gmacs", f"val/chosen/{ACCURACY.name}", f"val/chosen/{LOG_LOSS.name}"
    return [
        _chart("SCATTER", xaxis={"key": cost, "type": "METRIC"}, yaxis={"key": accuracy, "type": "METRIC"}, runs=100),
        _chart(
            "PARALLEL", selectedParams=["backbone", "finetune.unfreeze"], selectedMetrics=[loss, accuracy],
            showAllRuns=False,
        ),
        _chart("IMAGE", imageKeys=[f"figures/{name}" for name in FIGURES], step=0, showRunParams=False),
    ]  # fmt: skip


def _chart(kind: str, runs: int = 10, **settings: Any) -> dict[str, Any]:
    card = {"uuid": f"headstart-{kind.lower()}", "type": kind, "metricSectionId": COMPARED, "runsCountToCompare": runs}
    return card | {"deleted": False, "isGenerated": False} | settings


def _section(key: str, name: str, is_open: bool) -> dict[str, Any]:
    return {
        "uuid": key, "name": name, "display": is_open, "isReordered": False, "deleted": False, "isGenerated": False
    }  # fmt: skip
