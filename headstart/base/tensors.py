"""Tensors in files, and the one sentence for those that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headstart.base.errors import HeadstartError, made_again


@contextmanager
def tensors_of(file: Path, made_by: str, device: torch.device | str = "cpu") -> Iterator[dict[str, Tensor]]:
    """The tensors of ``file`` by name, to be put where they belong: what does not fit there is damaged too.

    Args:
        made_by: the command that writes the file.

    Raises:
        HeadstartError: it is missing or damaged.
    """
    try:
        yield load_file(file, device=str(device))
    except FileNotFoundError:
        raise HeadstartError(f"{file} is not there; run `{made_by}`") from None
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HeadstartError(f"{file} is damaged ({reason}); {made_again(made_by)}") from None
