"""The files of the stage head: the head fitted on training pictures, the one fitted on validation pictures too, and how."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from headstart.base.artifacts import HeadFolder
from headstart.base.artifacts.head import REFIT, HeadDetails
from headstart.base.files import replacing, write_rows
from headstart.base.tensors import tensors_of
from headstart.models.classifier import FittedHead
from headstart.models.heads import HEADS, ClassifierHead
from headstart.models.task import task_named


def store_head(head: ClassifierHead, refit: ClassifierHead, details: HeadDetails, folder: Path) -> None:
    """Write all files.

    Args:
        head: fitted on training pictures.
        refit: fitted on training and validation pictures.
    """
    tensors = head.state_dict() | {f"{REFIT}{name}": value for name, value in refit.state_dict().items()}
    files = HeadFolder(folder)
    with replacing(files.weights) as part:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)
    details.write(files.details)
    write_rows([row.model_dump() for row in details.sweep], files.sweep)


def load_start(folder: HeadFolder) -> FittedHead:
    """The head that fine-tuning starts from: of several networks side by side, that of the first one alone."""
    return load_head(folder.of_first if folder.of_first.exists() else folder)


def load_head(folder: Path, refit: bool = False) -> FittedHead:
    """The chosen head, fitted on training pictures alone or (``refit``) on training and validation pictures."""
    files = HeadFolder(folder)
    details = HeadDetails.read(files.details)
    with tensors_of(files.weights, details.made_by) as tensors:
        state = {name.removeprefix(REFIT): value for name, value in tensors.items() if name.startswith(REFIT) == refit}
        head = HEADS[details.kind].from_state(state)
    weights = details.class_weight
    return FittedHead(
        head,
        details.refit_temperature if refit else details.temperature,
        tuple(details.classes),
        tuple(weights) if weights else None,
        task_named(details.task),
    )
