"""Whatever is given to headstart, the answer is a result or one clear sentence: a hundredth of `bench/hostile.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from headstart.base.errors import HeadstartError
from headstart.data import archives
from tests.data import corpus

BENCH = Path(__file__).parents[2] / "bench"


def test_a_hundred_hostile_inputs() -> None:
    command = [sys.executable, "hostile.py", "--count", "100", "--seed", "7"]
    done = subprocess.run(command, cwd=BENCH, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 inputs, 0 failures" in done.stdout
    assert all(f"{kind}: " in done.stdout for kind in ("picture", "name", "tree", "table", "archive", "params"))


# --- the bench finds what it looks for ----------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setenv("DVC_ROOT", "")  # which the bench sets
    import hostile

    yield hostile
    del sys.modules["hostile"]


def failures(bench: ModuleType, folder: Path, run: object) -> list[str]:
    tally, decoders = bench.Tally(), bench.Decoders(1, bench.RULES)
    case = bench.Case("table", 0, folder / "case", Random(0), decoders)
    bench.judge(case, run, tally)
    return tally.failures  # type: ignore[no-any-return]


def raising(error: Exception) -> object:
    def run(_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "fails"),
    [
        (KeyError("label"), "Traceback"),
        (HeadstartError(""), "no sentence"),
        (HeadstartError("set.csv: KeyError: 'label'"), "says what only Python says"),
        (HeadstartError("set.csv has no column 'label'"), None),
        (PermissionError(13, "Permission denied", "set.csv"), None),  # run_cleanly says it in a sentence
    ],
)
def test_what_is_a_failure(bench: ModuleType, tmp_path: Path, error: Exception, fails: str | None) -> None:
    found = failures(bench, tmp_path, raising(error))
    assert len(found) == (fails is not None)
    assert all(str(fails) in failure for failure in found)


def test_what_is_written_outside_is_a_failure(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> None:
        folder = tmp_path / "case"
        archives.unpack(corpus._zip(folder / "set.zip", [("../../outside/x.png", b"x", 0)]), folder / "project/out")

    assert failures(bench, tmp_path, run) == []
    subprocess.run(["rm", "-r", tmp_path / "case"], check=True)
    monkeypatch.setattr(archives, "lands_outside", lambda path: False)
    assert "a file outside was touched" in failures(bench, tmp_path, run)[0]


@pytest.mark.parametrize("kind", [corpus.archive, corpus.table])
def test_the_same_numbers_make_the_same_input(tmp_path: Path, kind: Callable[[Random, Path], Path]) -> None:
    def made(number: int) -> bytes:
        (tmp_path / "case").mkdir()
        data = kind(Random(number), tmp_path / "case").read_bytes()
        subprocess.run(["rm", "-r", tmp_path / "case"], check=True)
        return data

    inputs = [made(number) for number in range(12)]
    assert inputs == [made(number) for number in range(12)]
    assert len(set(inputs)) > 8
