"""How many threads to use."""

from __future__ import annotations

import os


def cores() -> int:
    """The cores this process may use: what ``threads: null`` stands for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
