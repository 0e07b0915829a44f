"""Training in several processes: what comes out is what one process makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.training import distributed
from tests.training import together
from tests.training.test_finetune import packed

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings, by one process."""
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    given(folder)
    together.train(folder, *together.TRAININGS)
    torch.set_num_threads(threads)
    return folder


def given(folder: Path) -> None:
    _, manifest = packed(folder / "pictures")
    manifest.to_csv(folder / "manifest.csv", index=False)
    (folder / "net.py").write_text(together.NETWORK)


def torchrun(folder: Path, *names: str, check: bool = True, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, f"--max-restarts={restarts}", "tests/training/together.py", str(folder), *names],
        cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def same(found: Path, expected: Path, name: str, tolerance: float = 1e-3) -> None:
    """The curve, the choice, and what the weights make of the validation pictures."""
    ours, theirs = (FinetuneFolder(folder, name) for folder in (found, expected))
    pd.testing.assert_frame_equal(pd.read_csv(ours.curve), pd.read_csv(theirs.curve), atol=tolerance, rtol=0)
    details, alone = (FinetuneDetails.read(folder.details) for folder in (ours, theirs))
    for choice in ("best_epoch", "averaged_epochs", "trained_share", "size", "blocks_unfrozen"):
        assert getattr(details, choice) == getattr(alone, choice), choice
    logits, reference = (load_file(folder.val_logits)["logits"] for folder in (ours, theirs))
    assert torch.allclose(logits, reference, atol=tolerance, rtol=0)


@pytest.mark.slow
def test_two_processes_train_as_one_does(alone: Path, tmp_path: Path) -> None:
    given(tmp_path)
    said = torchrun(tmp_path, *together.TRAININGS).stdout
    for name in together.TRAININGS:
        same(tmp_path, alone, name)
        assert json.loads(FinetuneFolder(tmp_path, name).details.read_text())["processes"] == 2
    lines = [line for line in said.splitlines() if line.startswith("finetune: epoch ")]
    assert len(lines) == sum(how.epochs for how in together.TRAININGS.values() if how.settings.repeats == 1)
    assert said.count("finetune, repeat 2 of 2: epoch 1/1, ") == 1


@pytest.mark.slow
def test_where_a_process_is_killed_in_mid_epoch_training_goes_on_from_the_last_one(alone: Path, tmp_path: Path) -> None:
    """When torchrun restarts it; when it is started again, as headstart itself does, in tests/stages/test_processes.py."""
    given(tmp_path)
    (tmp_path / "kill").write_text("2")
    said = torchrun(tmp_path, together.KILLED, restarts=1).stdout
    assert not (tmp_path / "kill").exists()
    assert said.count("finetune: going on after epoch 1, which an earlier run finished") == 1
    same(tmp_path, alone, together.KILLED)


@pytest.mark.slow
def test_more_processes_than_a_batch_has_pictures_are_told_so_once(tmp_path: Path) -> None:
    given(tmp_path)
    manifest = pd.read_csv(tmp_path / "manifest.csv")
    manifest.loc[(manifest["split"] == "train") & (manifest.index > 0), "split"] = "test"
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    done = torchrun(tmp_path, together.KILLED, check=False)
    assert done.returncode
    assert (
        done.stderr.count("headstart: finetune: 2 processes cannot share batches of 1 pictures; start at most 1, or") == 1
    )
    assert "together.py" not in done.stderr.partition("torch.distributed")[0], "a traceback"


def test_one_process_says_nothing_of_processes(alone: Path) -> None:
    assert "processes" not in json.loads(FinetuneFolder(alone, together.KILLED).details.read_text())


def test_a_rank_draws_of_the_whole_batch_what_one_process_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 3)
    pictures = torch.ones(7, 6, 4, 4).to(memory_format=torch.channels_last)
    tokens = torch.ones(14, 5)  # two rows a picture
    for draw, given in (
        (nn.Dropout(0.5), pictures), (nn.Dropout2d(0.5), pictures), (nn.Dropout(0.3), tokens),
        (StochasticDepth(0.5, "row"), pictures), (DropPath(0.5), pictures),
    ):  # fmt: skip
        torch.manual_seed(0)
        whole = draw(given).reshape(7, -1)
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            torch.manual_seed(0)
            own = given.reshape(7, -1)[rank::3].reshape(-1, *given.shape[1:])
            if given.ndim == 4:
                own = own.to(memory_format=torch.channels_last)
            with distributed.WholeBatch(7, len(range(rank, 7, 3))):
                assert torch.equal(draw(own).reshape(-1, whole.shape[1]), whole[rank::3])
