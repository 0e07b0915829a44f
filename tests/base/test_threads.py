"""How many threads there are, and that they wait for each other as they are told to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headstart.base.threads import cores

LOADED = (
    "import ctypes, sys; from importlib.util import find_spec; from pathlib import Path; assert 'torch' not in sys.modules;"
    " ctypes.CDLL(next(Path(find_spec('torch').origin).parent.glob('lib/libgomp*')))"
)
ENTRIES = ("import headstart.base.stage", "from headstart import cli; cli.run_cleanly = lambda app: None; cli.main()")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity mask here")
def test_cores_are_those_of_the_affinity_mask() -> None:
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, everything)


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings another OpenMP here")
@pytest.mark.parametrize("entry", ENTRIES, ids=["stage", "command"])
@pytest.mark.parametrize(
    ("users", "spins"), [({}, 0), ({"GOMP_SPINCOUNT": "1000"}, 1000), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_openmp_waits_passively_unless_the_user_says_otherwise(
    entry: str, users: dict[str, str], spins: int | None
) -> None:
    """libgomp, when it is loaded, prints what it has read; without torch, which loads it and takes seconds to import."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = kept | users | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run(
        [sys.executable, "-c", f"{entry}; {LOADED}"], env=environment, capture_output=True, text=True, check=True
    )
    assert (f"GOMP_SPINCOUNT = '{spins}'" in done.stderr) is (spins is not None)
    assert ("OMP_WAIT_POLICY = 'ACTIVE'" in done.stderr) is (users == {"OMP_WAIT_POLICY": "active"})
