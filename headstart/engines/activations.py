"""What frozen layers make of pictures: in files, since it is large, and kept, since it stays the same however the layers
above them are trained. The files are sealed, as ``base.kept`` has it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.base.device import processor
from headstart.base.files import reserve
from headstart.base.kept import SEAL, digest_of_start, is_whole, read_kept, say_damaged, seal, write_kept
from headstart.base.progress import Advance, progress
from headstart.data.packed import Pixels
from headstart.engines.base import Forward

KEPT = 10_000_000_000  # bytes on disk
SAVE_EVERY_S = 10.0  # seconds that a kill can cost


def answers_of(
    answers: Callable[[int], Iterable[Tensor]],
    count: int,
    file: Path,
    advance: Advance,
    check: Callable[[int, NDArray[np.float32]], None] = lambda at, found: None,
) -> NDArray[np.float32]:
    """(count, ...) float32 in ``file``: what a network makes of the pictures, written as it comes, so that memory does not
    grow with their number. They are not looked at where that is known; one that was killed is gone on with; of several
    processes one works and the others wait.

    Args:
        answers: (N, ...) for the pictures from a number on, ``count`` in all and at least one, always in the same batches.
        check: called for every batch, with the number of its first picture and what was found for them.
    """
    part, saved, lock = (file.with_name(f".{file.name}.{suffix}") for suffix in ("part", "json", "lock"))
    with FileLock(lock):
        if is_whole(file):
            advance(count)
        else:
            _write(answers, count, part, saved, advance, check)
            part.replace(file)
            saved.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)  # whoever comes now finds the file
    width = (file.stat().st_size - SEAL) // (4 * count)
    return np.memmap(file, np.float32, "r+", shape=(count, width))


def _write(
    answers: Callable[[int], Iterable[Tensor]],
    count: int,
    part: Path,
    saved: Path,
    advance: Advance,
    check: Callable[[int, NDArray[np.float32]], None],
) -> None:
    stored: np.memmap[Any, np.dtype[np.float32]] | None = None
    at, last, digest = 0, time.monotonic(), hashlib.sha256()
    if part.exists() and (known := read_kept(saved)):
        digest = digest_of_start(part, known["bytes"])
        if digest.hexdigest() == known["sha256"]:
            stored, at = np.memmap(part, np.float32, "r+", shape=tuple(known["shape"])), known["rows"]
            advance(at)
        else:
            say_damaged(part)
            digest = hashlib.sha256()
    for answer in answers(at):
        found = answer.float().cpu().numpy()
        check(at, found)
        if stored is None:
            reserve(part, count * found[0].nbytes)
            stored = np.memmap(part, np.float32, "r+", shape=(count, *found.shape[1:]))
        stored[at : at + len(found)] = found
        digest.update(np.ascontiguousarray(found).data)
        at += len(found)
        advance(len(found))
        if time.monotonic() - last > SAVE_EVERY_S:
            stored.flush()
            size = at * stored.nbytes // count
            write_kept(saved, {"rows": at, "shape": stored.shape, "bytes": size, "sha256": digest.hexdigest()})
            last = time.monotonic()
    assert stored is not None
    stored.flush()
    os.truncate(part, stored.nbytes)  # one that was killed may have been sealed
    seal(part, digest.hexdigest())


def folder_for(kept: Path, frozen: nn.Module, engine: str, pixels: Pixels, seen: tuple[Any, ...]) -> Path:
    """The folder in ``kept`` for what ``engine`` makes, with the weights of ``frozen``, of ``pixels`` seen like that.

    Args:
        seen: all that decides which pictures are shown, and how.
    """
    return folder_of(kept, key_of(frozen, engine, (pixels.digest, *seen)))


def key_of(frozen: nn.Module, engine: str, seen: tuple[Any, ...]) -> str:
    """What decides the answers of ``frozen`` to a picture that is ``seen`` like that, in 20 letters."""
    state = hashlib.sha256()
    for name, tensor in frozen.state_dict().items():
        state.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    device = next((tensor.device for tensor in frozen.state_dict().values()), torch.device("cpu"))
    parts = (state.hexdigest(), str(frozen), engine, processor(device), torch.get_num_threads(), seen)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def folder_of(kept: Path, name: str) -> Path:
    """A folder in ``kept``. Others that were not used for longest are removed, where all hold more than 10 GB."""
    mine = kept / name
    mine.mkdir(parents=True, exist_ok=True)
    os.utime(mine)
    left = KEPT
    with contextlib.suppress(FileNotFoundError):  # another process makes room or finishes a file: there is a next time
        for folder in sorted((path for path in kept.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime_ns):
            left -= sum(file.stat().st_size for file in folder.iterdir())
            if left < 0 and folder != mine:
                shutil.rmtree(folder, ignore_errors=True)
    return mine


def known_or_made(
    file: Path, shape: tuple[int, ...], forward: Forward, batches: Callable[[int], Iterable[Tensor]]
) -> NDArray[np.float32]:
    """``shape`` float32 in ``file``: what ``forward`` makes of the pictures, which are not looked at where that is known.

    Args:
        batches: the (N, 3, H, W) pictures from a number on, always in the same batches.
    """
    if is_whole(file):
        return np.memmap(file, np.float32, "r+", shape=shape)
    with progress(file.name, shape[0]) as advance:
        return answers_of(lambda first: map(forward, batches(first)), shape[0], file, advance).reshape(shape)
