"""The packaged classifier as an MLflow model. MLflow stores this file with the model and runs it on load (models from
code), so that nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class PictureClassifier(PythonModel):  # type: ignore[misc]
    """Predicts the label and probabilities of each row of the column ``image``: a path, bytes, base64 text or an array."""

    def load_context(self, context: PythonModelContext) -> None:
        from headstart.inference.predictor import Predictor  # imports torch, and MLflow also runs this file to save it

        self.predictor = Predictor(Path(context.artifacts["classifier"]))

    # MLflow makes a schema of other type hints and warns without one. Lists of pictures arrive here too.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        if isinstance(model_input, pd.DataFrame):
            column = "image" if "image" in model_input else model_input.columns[0]
            pictures = model_input[column].tolist()
        else:
            pictures = [row["image"] if isinstance(row, dict) else row for row in model_input]
        return pd.DataFrame(
            [{"label": p.label, "probability": p.probability} | p.probabilities for p in self.predictor.predict(pictures)]
        )


set_model(PictureClassifier())
