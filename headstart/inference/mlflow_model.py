"""The packaged classifier as an MLflow model. MLflow stores this file with the model and runs it on load (models from
code), so that nothing is unpickled."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel, PythonModelContext

COLUMN = "image"


class PictureClassifier(PythonModel):  # type: ignore[misc]
    """Predicts the label and probabilities of each picture: a path, bytes, base64 text or an array; in a list, or as the
    column ``image`` of a data frame. Where there may be several labels, they are joined by ";", and so are the training
    pictures that one is nearest to which is unlike all of them."""

    def load_context(self, context: PythonModelContext) -> None:
        model = Path(context.artifacts["classifier"]).parents[1]
        own = _own(model / "code", "headstart.inference.predictor")
        # Whoever loads a model with MLflow has it run the code in it, this file first.
        self.predictor, self.refusal = own.load_predictor(model, trust=True), own.HeadstartError

    # MLflow makes a schema of other type hints and warns without one. It passes on whatever it is given, and what its
    # server makes of a request: a data frame, an array, a list or a dict.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        try:
            predictions = self.predictor.predict(_pictures(model_input))
        except self.refusal as error:
            raise MlflowException(str(error), BAD_REQUEST) from None
        rows = [
            {"label": p.label, "probability": p.probability, "unfamiliar": p.unfamiliar}
            | {"nearest": ";".join(p.nearest or ())}
            | p.probabilities
            for p in predictions
        ]
        also = [] if self.predictor.familiarity is None else ["unfamiliar", "nearest"]
        return pd.DataFrame(rows, columns=["label", "probability", *also, *self.predictor.classes])


def _pictures(given: Any) -> list[Any]:
    if isinstance(given, pd.DataFrame):
        given = given.to_dict("list")
    if isinstance(given, dict):
        if COLUMN not in given and len(given) != 1:
            raise MlflowException(f"no {COLUMN!r} among {', '.join(map(repr, given))}; name the pictures so", BAD_REQUEST)
        given = given[COLUMN] if COLUMN in given else next(iter(given.values()))
    if isinstance(given, np.ndarray):
        if given.dtype.kind in "OSU":
            return list(given.ravel().tolist())
        return [given] if given.ndim < 4 else list(given)
    if not isinstance(given, list | tuple | pd.Series):
        return [given]
    return [picture for row in given for picture in (_pictures(row) if isinstance(row, dict) else [row])]


def _own(code: Path, module: str) -> Any:
    """A module as it is in this model, whatever version of headstart this process has imported before: two models in one
    process each answer by their own code."""
    others = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "headstart"}
    sys.path.insert(0, str(code))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(code))
        for name in [name for name in sys.modules if name.partition(".")[0] == "headstart"] if others else []:
            del sys.modules[name]
        sys.modules.update(others)


set_model(PictureClassifier())
