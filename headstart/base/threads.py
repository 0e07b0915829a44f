"""How many threads to use, and how they wait for each other."""

from __future__ import annotations


def cores() -> int:
    """The cores that this process may use, by its affinity mask and its container's quota: what ``threads: null`` is."""
    from joblib import cpu_count

    return int(cpu_count())
