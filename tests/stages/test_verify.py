"""headstart verify: a result is made again from its commit and the cache, and told to the byte."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from tests.data.pictures import everything_below
from tests.stages.conftest import Clone

pytestmark = pytest.mark.slow


def damaged(file: Path) -> None:
    """One bit of the last byte."""
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def in_cache(clone: Clone, content: bytes) -> Path:
    objects = (file for file in (clone.folder / ".dvc/cache/files/md5").rglob("*") if file.is_file())
    return next(file for file in objects if file.read_bytes() == content)


def test_a_result_is_made_again_and_one_byte_of_difference_is_named(copy_of: Clone) -> None:
    store = f"sqlite:///{copy_of.folder / 'mlflow.db'}"
    (run,) = mlflow.MlflowClient(store).search_runs(["1"], "tags.`headstart.complete` = 'true'")
    head = copy_of.run("git", "rev-parse", "HEAD").stdout.strip()
    copy_of.set(finetune={"lr": 0.123})  # what the user is at meanwhile does not matter, and stays
    before = everything_below(copy_of.folder / "data")
    identical = copy_of.run("headstart", "verify", run.info.run_id[:8])
    assert identical.stdout.startswith(f"result {run.data.tags['headstart.result'][:7]} of {head}: identical, ")
    assert identical.stdout.count("\n") == 1
    assert "verify: finetune (6 of 8)" in identical.stderr
    assert everything_below(copy_of.folder / "data") == before
    assert copy_of.run("git", "status", "--porcelain").stdout.split() == ["M", "params.yaml"]
    assert not list((copy_of.folder / ".dvc/tmp/exps").glob("verify-*"))
    assert len(mlflow.MlflowClient(store).search_runs(["1"])) == 1

    # A byte in the cache, and one in what a stage has left: the output is known by dvc.lock all the same.
    weights = copy_of.folder / "data/finetune/weights.safetensors"
    damaged(file := in_cache(copy_of, weights.read_bytes()))
    found = copy_of.run("headstart", "verify", check=False)
    assert found.returncode == 1
    first, second = found.stdout.splitlines()
    assert first.endswith(f"of {head} differs:")
    assert second.startswith(f"  data/finetune/weights.safetensors is damaged in the cache; delete {file} and run ")
    file.unlink()
    copy_of.run("git", "checkout", "-q", "params.yaml")
    copy_of.run("dvc", "commit", "--force", "finetune")
    assert file.read_bytes() == weights.read_bytes()


def test_what_cannot_be_made_again_is_one_sentence(copy_of: Clone) -> None:
    nobody = copy_of.run("headstart", "verify", "no-such-run", check=False)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "no run of the experiment 'headstart-emoji' in MLflow answers to 'no-such-run'" in nobody.stderr
    # A result whose code was never committed: only its dvc.lock was.
    module = copy_of.folder / "headstart/evaluation/figures.py"
    committed = module.read_text()
    module.write_text(committed + "\nEDITED = 1\n")
    copy_of.repro()
    copy_of.run("git", "add", "dvc.lock", "data/evaluate/metrics.json")
    copy_of.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "a result without its code")
    module.write_text(committed)
    other = copy_of.run("headstart", "verify", check=False)
    assert other.returncode == 1
    assert "made by other code than the commit has, or other libraries than are here: headstart.evaluation.figures" in (
        other.stdout
    )
    copy_of.set(finetune={"lr": 0.5})
    copy_of.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "settings without a run", "--amend")
    unlike = copy_of.run("headstart", "verify", check=False)
    assert "params.yaml is not that of the result: finetune; commit it with dvc.lock" in unlike.stdout
    copy_of.run("rm", "-r", "data/track")
    nothing = copy_of.run("headstart", "verify", check=False)
    assert "track.json is not there; run `dvc repro`" in nothing.stderr
