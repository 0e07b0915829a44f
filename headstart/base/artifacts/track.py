"""track.json: the result that was logged to MLflow."""

from __future__ import annotations

from typing import ClassVar

from headstart.base.artifacts.json_file import JsonFile


class TrackedResult(JsonFile):
    """
    Attributes:
        result: its digest.
        experiment: in MLflow.
    """

    made_by: ClassVar[str] = "dvc repro"

    result: str
    experiment: str
