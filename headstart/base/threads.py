"""How many threads to use, and how they wait for each other."""

from __future__ import annotations

import os


def cores() -> int:
    """The cores that this process may use, by its affinity mask and its container's quota: what ``threads: null`` is."""
    from joblib import cpu_count

    return int(cpu_count())


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait for each other, unless the user's environment says how they wait.

    By default they spin for milliseconds, and where other processes want the cores too, that is time which the thread that
    they wait for does not get (bench/waiting.py). Call it before torch is imported: libgomp reads the environment when it
    is loaded.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
