"""What was measured or counted once: kept in a JSON file from run to run, by what it is of and what it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.base.kept import read_kept, write_kept


def machine() -> tuple[Any, ...]:
    """What a time depends on, besides that of which it is the time."""
    import torch  # seconds, which those who only read what was measured need not wait for

    from headstart.base.device import accelerator_name

    return platform.node(), torch.get_num_threads(), torch.__version__, accelerator_name()


class Measurements:
    """Values by keys, in ``file`` (None: for this run only).

    Several processes may write: each reads the file anew before it adds what it has found.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._values = self._read()

    @staticmethod
    def key(*parts: Any) -> str:
        """A key that says what a value is of; of a time, ``machine()`` is a part."""
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self._values.get(key, otherwise)

    def __setitem__(self, key: str, value: Any) -> None:
        self._values |= self._read() | {key: value}
        if self.file is not None:
            with contextlib.suppress(OSError):  # no place to keep it, and no reason to stop
                write_kept(self.file, self._values)

    def known_or(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of ``key``; it is measured where it is not known."""
        if key not in self:
            self[key] = measure()
        return self[key]

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            if self.file is not None:
                return read_kept(self.file) or {}
        return {}


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work`` takes: the better of two measurements, after a first that sets things up."""
    work()
    found = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)
