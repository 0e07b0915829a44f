"""What was measured once is read ever after, also where two processes write and where the file is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart.base.kept import read_kept
from headstart.base.measurements import Measurements, machine, seconds


def test_a_value_is_measured_once_and_read_by_whoever_comes_later(tmp_path: Path) -> None:
    file, asked = tmp_path / "values.json", []
    key = Measurements.key(machine(), "resnet18")
    for _ in range(3):
        assert Measurements(file).known_or(key, lambda: asked.append(1) or {"ms": 2.5}) == {"ms": 2.5}
    assert asked == [1]


def test_a_value_may_be_that_there_is_none(tmp_path: Path) -> None:
    kept = Measurements(tmp_path / "values.json")
    kept["a"] = None
    assert "a" in Measurements(tmp_path / "values.json")
    assert Measurements(tmp_path / "values.json").get("a", 5) is None
    assert Measurements(tmp_path / "values.json").get("b", 5) == 5


def test_what_another_process_has_kept_meanwhile_stays(tmp_path: Path) -> None:
    mine, theirs = Measurements(tmp_path / "values.json"), Measurements(tmp_path / "values.json")
    theirs["b"] = 2
    mine["a"] = 1
    assert read_kept(tmp_path / "values.json") == {"a": 1, "b": 2}
    assert "b" in mine


@pytest.mark.parametrize("content", [b"", b"{half", b"\xff", b"[1]"])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "values.json").write_bytes(content)
    assert Measurements(tmp_path / "values.json").known_or("a", lambda: 1) == 1
    assert read_kept(tmp_path / "values.json") == {"a": 1}


@pytest.mark.usefixtures("tmp_path")
def test_without_a_file_values_last_for_the_run() -> None:
    kept = Measurements(None)
    assert kept.known_or("a", lambda: 1) == kept.known_or("a", lambda: 2) == 1
    assert "a" not in Measurements(None)


def test_keys_tell_apart_what_values_are_of() -> None:
    assert Measurements.key("a", (1, 2)) == Measurements.key("a", (1, 2))
    assert (
        len({Measurements.key("a"), Measurements.key("a", "b"), Measurements.key(("a", "b")), Measurements.key("ab")}) == 4
    )


def test_seconds_are_those_of_the_work_and_not_of_its_first_time() -> None:
    import time

    waits = iter([0.2, 0.01, 0.03])
    assert 0.01 <= seconds(lambda: time.sleep(next(waits))) < 0.03
