"""What frozen layers make of pictures: in files, since it is large, and kept, since it stays the same however the layers
above them are trained."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.checkout import replacing
from headstart.data.pixels import Pixels
from headstart.engines import Engine
from headstart.progress import progress

KEPT = 10_000_000_000  # bytes on disk


def answers_of(
    engine: Engine,
    batches: Iterable[Tensor],
    count: int,
    file: Path,
    each: Callable[[int, NDArray[np.float32]], None] = lambda at, found: None,
) -> np.memmap[Any, np.dtype[np.float32]]:
    """(count, ...) float32 in ``file``: what ``engine`` makes of the pictures in ``batches``, written as it comes, so that
    memory does not grow with their number.

    Args:
        batches: (N, 3, H, W) pictures, ``count`` in all and at least one.
        each: called for every batch, with the number of its first picture and what was found for them.
    """
    stored: np.memmap[Any, np.dtype[np.float32]] | None = None
    at = 0
    for pictures in batches:
        found = engine(pictures).float().cpu().numpy()
        each(at, found)
        if stored is None:
            stored = np.memmap(file, np.float32, "w+", shape=(count, *found.shape[1:]))
        stored[at : at + len(found)] = found
        at += len(found)
    assert stored is not None
    return stored


def folder_for(kept: Path, frozen: nn.Module, engine: str, pixels: Pixels, seen: tuple[Any, ...]) -> Path:
    """The folder in ``kept`` for what ``engine`` makes, with the weights of ``frozen``, of ``pixels`` seen like that.

    Of the other folders those that were not used for longest are removed, where all together hold more than 10 GB.

    Args:
        seen: all that decides which pictures are shown, and how.
    """
    state = hashlib.sha256()
    for name, tensor in frozen.state_dict().items():
        state.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    parts = (state.hexdigest(), str(frozen), engine, torch.get_num_threads(), pixels.digest, seen)
    mine = kept / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
    mine.mkdir(parents=True, exist_ok=True)
    os.utime(mine)
    left = KEPT
    with contextlib.suppress(FileNotFoundError):  # another process makes room or finishes a file: there is a next time
        for folder in sorted((path for path in kept.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime_ns):
            left -= sum(file.stat().st_size for file in folder.iterdir())
            if left < 0 and folder != mine:
                shutil.rmtree(folder, ignore_errors=True)
    return mine


def known_or_made(file: Path, shape: tuple[int, ...], engine: Engine, pictures: Iterable[Tensor]) -> NDArray[np.float32]:
    """``shape`` float32 in ``file``: what ``engine`` makes of ``pictures``, which are not looked at where that is known."""
    if not file.exists():
        with replacing(file) as part, progress(file.name, shape[0]) as advance:
            answers_of(engine, pictures, shape[0], part, lambda at, found: advance(len(found))).flush()
    return np.memmap(file, np.float32, "r+", shape=shape)
