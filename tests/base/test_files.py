"""Files are written whole or not at all, and a disk that is full is one sentence, whichever library was writing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A limit on the size of files is refused by the system as a full disk is, and needs no disk to fill.
LIMITED = """
import resource, sys
from pathlib import Path
from headstart.base.errors import run_cleanly
from headstart.base import files
import numpy
from safetensors.numpy import save_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
large = numpy.random.default_rng(0).random((100, 1000))

def write(path):
    with files.replacing(path) as part:
        {}

def main():
    write(Path("output"))

run_cleanly(main)
"""


@pytest.mark.parametrize(
    "writing",
    [
        "part.write_bytes(bytes(10**6))", "files.write_text(part, 'a' * 10**6)", "files.reserve(part, 10**6)",
        "save_file({'a': large}, part)", "import torch; torch.save(large, part)",
        "import pandas; pandas.DataFrame(large).to_parquet(part)",
    ],
)  # fmt: skip
def test_a_full_disk_is_one_sentence_that_names_the_file_and_nothing_is_left(writing: str, tmp_path: Path) -> None:
    (tmp_path / "output").write_text("before")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(writing)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("headstart: ")
    assert "output" in done.stderr
    assert "File too large; free some space there and run it again" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert (tmp_path / "output").read_text() == "before"


def test_a_full_disk_beside_the_outputs_is_one_sentence_too(tmp_path: Path) -> None:
    code = LIMITED.format("pass").replace('write(Path("output"))', "save_file({'a': large}, 'elsewhere')")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "File too large; free some space" in done.stderr


def test_another_error_while_writing_is_that_error(tmp_path: Path) -> None:
    from headstart.base.files import replacing

    with pytest.raises(LookupError), replacing(tmp_path / "output") as part:
        part.write_text(str({}["wrong"]))
    assert list(tmp_path.iterdir()) == []
