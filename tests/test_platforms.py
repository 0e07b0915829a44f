"""What differs under macOS and Windows, as far as it can be tried here; ops/github-platforms.yml tries all of it there."""

from __future__ import annotations

import ast
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.base import files
from headstart.base.sections import Finetune
from headstart.data.packed import Pixels
from headstart.models.preprocessing import View
from headstart.training import augmentation
from tests.test_house import MODULES, PROJECT
from tests.training.test_features import packed

OF_UNIX = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_no_module_needs_a_unix_to_be_imported(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & OF_UNIX, ast.unparse(node)


def test_loaders_that_are_started_afresh_make_the_views_that_forked_ones_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = packed(tmp_path / "prepare", 12, 95)
    view = View(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    rows = np.arange(len(pixels))
    views = augmentation.TrainingViews(pixels, rows, rows % 2, augmentation.augmentation(Finetune(), view), seed=5)
    made = {}
    for start in {augmentation.START, "spawn"}:
        monkeypatch.setattr(augmentation, "START", start)
        made[start] = torch.cat(list(views.all(1, 6)))
    assert all(torch.equal(one, made["spawn"]) for one in made.values())
    assert torch.equal(made["spawn"], torch.stack([views[1, n][0] for n in range(len(views))]))


def test_a_process_that_a_stage_starts_afresh_does_not_run_the_stage_again(tmp_path: Path) -> None:
    (tmp_path / "fetch.py").write_text(
        "import multiprocessing\n"
        "from headstart.base.stage import start\n"
        "def run(params, data):\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print, args=('in the child',))\n"
        "    print('the stage', flush=True)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    print(process.exitcode)\n"
        "start(__file__, run)\n"
    )
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "fetch.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["the stage", "in the child", "0"], done.stderr


def test_pictures_are_read_where_a_file_cannot_be_read_at_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = packed(tmp_path / "prepare", 5, None)
    monkeypatch.delattr(os, "preadv", raising=False)
    for row in (3, 0, 4):
        assert np.array_equal(Pixels(tmp_path / "prepare")[row], pixels[row])


def test_room_is_looked_for_where_it_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    files.reserve(tmp_path / "fits", 1000)
    assert (tmp_path / "fits").stat().st_size == 1000
    with pytest.raises(OSError, match="too-large") as refused:
        files.reserve(tmp_path / "too-large", shutil.disk_usage(tmp_path).total + 1)
    assert refused.value.errno == errno.ENOSPC


def test_the_lock_is_for_every_system() -> None:
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert re.search(r"^pywin32==\S+ ; .*sys_platform == 'win32'", lock, re.MULTILINE)
    assert not re.search(r"^(nvidia|cuda)-\S+==\S+ (?!;)", lock, re.MULTILINE)  # only where torch asks for them
