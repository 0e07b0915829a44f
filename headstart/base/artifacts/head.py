"""head.json: the classifier on frozen features, and the regularisation strengths that were tried."""

from __future__ import annotations

from typing import ClassVar, Literal

from headstart.base.artifacts.json_file import JsonFile, Part

REFIT = "refit_"  # before the names of the tensors of the head that was fitted on validation pictures too


class Strength(Part):
    """What a regularisation strength gave. The field is called C as in scikit-learn.

    Attributes:
        weight: its share in the refitted head, whose logits are the weighted mean of those at each strength.
    """

    C: float
    weight: float
    val_log_loss: float
    val_accuracy: float
    train_accuracy: float
    temperature: float
    iterations: int


class HeadDetails(JsonFile):
    """
    Attributes:
        kind: of head, as ``head.kind`` in params.yaml.
        task: whether a picture has one label, or any number of them.
        C, chosen_by, temperature: of the head that is fitted on training pictures alone.
        refit_temperature: of the one that is fitted on validation pictures too.
        class_weight: a weight for each class, where they are balanced.
        sweep: from strong to weak regularisation.
    """

    made_by: ClassVar[str] = "dvc repro head"

    kind: str
    task: Literal["single-label", "multi-label"]
    C: float
    chosen_by: Literal["validation", "cross-validation"]
    temperature: float
    refit_temperature: float
    classes: list[str]
    class_weight: list[float] | None
    sweep: list[Strength]
