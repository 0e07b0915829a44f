"""The pipeline from Python: ``headstart.run(source="pictures/birds")`` and what comes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Section
from headstart.base.yaml_file import read_yaml, set_values
from headstart.operations.dvc_command import dvc

if TYPE_CHECKING:
    import pandas as pd

    from headstart.inference.model import Model


@dataclass(frozen=True, repr=False)
class Result:
    """What the pipeline found, as ``headstart.run`` returns it. A notebook shows it as a page.

    Attributes:
        project: the project's folder.
        metrics: what metrics.json holds: which classifier validation chose, and what each reaches, with 95% intervals.
        figures: confusion matrix, worst mistakes and learning curve: the PNG files by their names.
    """

    project: Path
    metrics: Metrics
    figures: dict[str, bytes]

    @classmethod
    def read(cls, project: str | os.PathLike[str] = ".") -> Self:
        """The result that a project has now, without running anything.

        Raises:
            HeadstartError: it has none yet.
        """
        folder = Path(project).absolute()
        evaluate = DataFolder(folder, "data").evaluate
        shown = (evaluate.figures.confusion, evaluate.figures.mistakes, evaluate.figures.curve)
        figures = {path.stem: path.read_bytes() for path in shown if path.exists()}
        return cls(folder, Metrics.read(evaluate.metrics), figures)

    @property
    def chosen(self) -> Name:
        """The classifier that validation chose: head, finetune, or ensemble, the average of both."""
        return self.metrics.chosen

    @property
    def report(self) -> Path:
        """Everything on one page, report.html. Like the paths below it is the project's: the next run replaces the file."""
        return DataFolder(self.project, "data").evaluate.report

    @property
    def predictions(self) -> Path:
        """predictions.parquet: what the chosen classifier says of each validation and test picture."""
        return DataFolder(self.project, "data").evaluate.predictions

    @property
    def model(self) -> Path:
        """The folder of the packaged model."""
        return DataFolder(self.project, "data").package.model

    def load(self) -> Model:
        """The packaged model, as ``headstart.load`` returns it."""
        from headstart.inference.model import load

        return load(self.model)

    def table(self) -> pd.DataFrame:
        """The metrics with their intervals, as people write them: a row each, and a column for each."""
        import pandas as pd

        from headstart.evaluation.metrics import METRICS
        from headstart.evaluation.summary import interval

        columns = {
            f"{split}, {name}": {metric.label: interval(found, key) for key, metric in METRICS.items() if key in found}
            for split in ("val", "test")
            for name, found in getattr(self.metrics, split).items()
            if name != "chosen"
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        """What was chosen and what it is worth, in a sentence or a few."""
        from headstart.evaluation.summary import headline

        return headline(self.metrics)

    def _repr_html_(self) -> str:
        from headstart.evaluation import pages

        return pages.template("result.html.j2").render(
            sentence=str(self),
            table=self.table(),
            figures={name: pages.embedded(drawn) for name, drawn in self.figures.items()},
            report=self.report.relative_to(self.project).as_posix(),
        )


def run(
    *,
    source: str | os.PathLike[str] | None = None,
    backbone: str | list[str] | None = None,
    project: str | os.PathLike[str] = ".",
    **params: Any,
) -> Result:
    """Set parameters in a project's params.yaml, run its pipeline, and return the result.

    It does what a person does who edits params.yaml and runs ``dvc repro``: the parameters stay in the file, comments are
    kept, and only the stages that a change affects run again. Going back to earlier values takes seconds, since DVC
    keeps every output. If the run fails or is interrupted, the parameters stay as well, and the same call goes on after
    what was finished. To try something and leave the project as it is, use ``dvc exp run --temp -S KEY=VALUE``. Each result
    is a run in MLflow either way.

    What DVC and the stages say goes to standard output. Ctrl-C ends all of them before ``KeyboardInterrupt`` is raised.

    Args:
        source: ``data.source``: a folder with a folder of pictures for each class, or any other that params.yaml can name.
            A relative path starts in the project's folder.
        backbone: a network's name, or a list of names.
        project: the folder with dvc.yaml and params.yaml.
        params: other keys of params.yaml, sections as dicts: ``finetune={"epochs": 4}``, or dotted:
            ``**{"finetune.epochs": 4}``. Keys that are not given stay as the file has them.

    Raises:
        HeadstartError: the folder is no project, a key or value is not allowed (then params.yaml is not changed), or a
            stage failed; the message is the stage's own.
    """
    folder = Path(project).absolute()
    if not (folder / "dvc.yaml").exists() or not (folder / "params.yaml").exists():
        raise HeadstartError(
            f'{folder} has no dvc.yaml and params.yaml; name the project\'s folder, as in run(project="birds")'
        )
    top = {"data.source": source, "backbone": backbone}
    wanted = {key: _plain(value) for key, value in top.items() if value is not None} | dict(_dotted(params))
    file = folder / "params.yaml"
    values = read_yaml(file)
    for key, value in wanted.items():
        _put(values, key, value)
    Params.checked(values, file)
    set_values(file, wanted)
    dvc("repro", project=folder, file=sys.stdout)
    return Result.read(folder)


def _dotted(given: Mapping[str, Any], above: str = "", section: type[Section] = Params) -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key. Sections are taken apart; other dicts are values."""
    for name, value in given.items():
        known = section.model_fields.get(name)
        kind = None if known is None else known.annotation
        if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, Section):
            yield from _dotted(value, f"{above}{name}.", kind)
        else:
            yield f"{above}{name}", _plain(value)


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value  # a NumPy number


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value
