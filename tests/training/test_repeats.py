"""Several trainings with other seeds: an average is kept, no finished one is trained again, and the chance that they show
goes with the result to everything that compares it."""

# ruff: noqa: F811
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import stdev

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails, Kept
from headstart.data.packed import Pixels
from headstart.models.backbones import architecture
from headstart.models.classifier import FittedHead
from headstart.models.heads import MlpHead
from headstart.training import repeats
from headstart.training.checkpoint import Row
from headstart.training.finetuned import load_finetuned, load_val_logits
from headstart.training.recipe import TrainingSetup
from headstart.training.repeats import finetune_repeatedly
from tests.training.test_finetune import CPU, head, network, pictures, recipe, train  # noqa: F401

Pictures = tuple[Pixels, pd.DataFrame]
HARD = {"lr": 0.05, "head_lr": 0.05, "warmup": 0.0, "ema": 0.0}  # so that other seeds end somewhere else


class StoppedError(Exception):
    pass


def train_repeatedly(
    network: Path,
    pictures: Pictures,
    folder: Path,
    resume: Path | None = None,
    on_epoch: Callable[[Row], None] = lambda row: None,
    start: FittedHead | None = None,
    **settings: object,
) -> FinetuneFolder:
    trunk = architecture("small.py:net", network).trunk(seed=1)
    setup = TrainingSetup(trunk, start or head(), *pictures, recipe(**{"repeats": 3} | HARD | settings), CPU)  # type: ignore[arg-type]
    finetune_repeatedly(setup, folder, resume or folder.parent / f"{folder.name}-resume", on_epoch)
    return FinetuneFolder(folder)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_repeat_is_a_training_to_the_byte(network: Path, pictures: Pictures, tmp_path: Path) -> None:
    train(network, pictures, tmp_path / "plain", recipe(**HARD))
    rows: list[Row] = []
    train_repeatedly(network, pictures, tmp_path / "one", on_epoch=rows.append, repeats=1)
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "one")
    assert all("repeat" not in row for row in rows)


def test_repeats_differ_by_chance_alone_and_the_first_is_the_only_one_there_was(
    network: Path, pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(network, pictures, tmp_path / "plain", recipe(**HARD))
    rows: list[Row] = []
    folder = train_repeatedly(network, pictures, tmp_path / "out", on_epoch=rows.append)
    assert bytes_of(folder.repeat(1))["weights.safetensors"] == bytes_of(tmp_path / "plain")["weights.safetensors"]
    weights = [folder.repeat(number).weights.read_bytes() for number in (1, 2, 3)]
    assert len(set(weights)) == 3
    assert [(row["repeat"], row["epoch"]) for row in rows] == [(n, epoch) for n in (1, 2, 3) for epoch in (1, 2)]
    curve = pd.read_csv(folder.curve)
    assert list(zip(curve["repeat"], curve["epoch"], strict=True)) == [(r["repeat"], r["epoch"]) for r in rows]
    assert "finetune, repeat 2 of 3: epoch 1/2" in capsys.readouterr().out
    found = FinetuneDetails.read(folder.details).repeats
    assert found is not None
    for number, loss in enumerate(found.val_log_loss, start=1):
        own = FinetuneDetails.read(folder.repeat(number).details)
        assert loss == pytest.approx(min(m.val_log_loss for m in own.mixtures), rel=0.2)
        assert own.repeats is None


def all_logits(folder: Path, network: Path, pictures: Pictures, start: FittedHead | None = None) -> torch.Tensor:
    model = load_finetuned(folder, architecture("small.py:net", network).trunk(seed=1), start or head())
    assert model is not None
    return torch.cat(list(model.eval().logits_of(pictures[0], list(range(16, 24)), 4, CPU))).double() / model.temperature


@pytest.mark.parametrize(("place", "kept"), [(0, "soup"), (1, "average")])
def test_what_is_kept_is_the_average(
    place: int, kept: Kept, network: Path, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_pays", lambda *_: bool(place))
    folder = train_repeatedly(network, pictures, tmp_path / "out")
    details = FinetuneDetails.read(folder.details)
    assert details.repeats is not None
    assert (details.repeats.kept, details.networks) == (kept, 1 if kept == "soup" else 3)
    each = [folder.repeat(number) for number in (1, 2, 3)]
    if kept == "soup":
        states = [load_file(home.weights) for home in each]
        for key, value in load_file(folder.weights).items():
            expected = sum(state[key] for state in states) / 3
            torch.testing.assert_close(value.float(), expected.float(), rtol=1e-5, atol=1e-6)
    else:
        mean = torch.stack([all_logits(home, network, pictures).log_softmax(1) for home in each]).mean(0)
        expected = (mean / details.temperature).log_softmax(1)
        found = all_logits(folder, network, pictures).log_softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    again = all_logits(folder, network, pictures) * details.temperature
    torch.testing.assert_close(again.softmax(1), load_val_logits(folder).double().softmax(1), rtol=1e-4, atol=1e-4)


def test_answers_are_averaged_only_where_validation_says_that_averaged_weights_are_worse(
    network: Path, pictures: Pictures, tmp_path: Path
) -> None:
    calm = FinetuneDetails.read(train_repeatedly(network, pictures, tmp_path / "calm", lr=1e-5, head_lr=1e-5).details)
    assert calm.repeats is not None
    assert calm.repeats.kept == "soup"
    assert set(calm.repeats.candidates) == {"soup", "average"}
    certain, alike = np.array([0.3, 0.2, 0.4, 0.3]), np.array([0.3, -0.2, 0.4, 0.0])
    assert repeats._pays(certain, np.arange(4))
    assert not repeats._pays(alike, np.arange(4))
    assert not repeats._pays(-certain, np.arange(4))
    two = np.repeat([0.3, 0.04], 5)
    assert repeats._pays(two, np.arange(10))
    assert not repeats._pays(two, np.repeat([0, 1], 5))  # ten pictures of two groups


def test_a_head_that_has_no_average_keeps_the_best(
    network: Path, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    start = FittedHead(MlpHead(8, 2, 4), 1.5, ("blue", "red"))
    monkeypatch.setattr(repeats, "_pays", lambda *_: True)
    folder = train_repeatedly(network, pictures, tmp_path / "out", start=start)
    details = FinetuneDetails.read(folder.details)
    assert details.repeats is not None
    assert details.repeats.kept == "best"
    best = 1 + int(np.argmin(details.repeats.val_log_loss))
    assert folder.weights.read_bytes() == folder.repeat(best).weights.read_bytes()
    assert details.best_epoch == FinetuneDetails.read(folder.repeat(best).details).best_epoch


@pytest.mark.parametrize("views", [None, 1], ids=["new views", "stored views"])
def test_stopped_and_taken_up_again_it_ends_with_the_same_bytes_and_trains_nothing_twice(
    views: int | None,
    network: Path,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = bytes_of(train_repeatedly(network, pictures, tmp_path / "whole", views=views))

    def stop(row: Row) -> None:
        if (row["repeat"], row["epoch"]) == (2, 1):
            raise StoppedError

    with pytest.raises(StoppedError):
        train_repeatedly(network, pictures, tmp_path / "out", on_epoch=stop, views=views)
    assert not (tmp_path / "out").exists()
    rows: list[Row] = []
    began: list[int] = []
    trained = repeats.finetune
    monkeypatch.setattr(repeats, "finetune", lambda own, *rest: began.append(own.recipe.repeat) or trained(own, *rest))
    capsys.readouterr()
    folder = train_repeatedly(network, pictures, tmp_path / "out", on_epoch=rows.append, views=views)
    assert began == [2, 3]
    said = capsys.readouterr().out
    assert "finetune, repeat 1 of 3: an earlier run finished it" in said
    assert "going on after epoch 1" in said
    assert "repeat 2 of 3: epoch 1/2" not in said
    assert bytes_of(folder) == expected
    assert [(row["repeat"], row["epoch"]) for row in rows] == [(n, epoch) for n in (1, 2, 3) for epoch in (1, 2)]
    assert not (tmp_path / "out-resume").exists()


def test_a_finished_repeat_that_was_damaged_is_trained_again(network: Path, pictures: Pictures, tmp_path: Path) -> None:
    expected = bytes_of(train_repeatedly(network, pictures, tmp_path / "whole"))

    def stop(row: Row) -> None:
        if row["repeat"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_repeatedly(network, pictures, tmp_path / "out", on_epoch=stop)
    home = FinetuneFolder(tmp_path, "out-resume", "repeat-1")
    home.weights.write_bytes(home.weights.read_bytes()[:-1] + b"x")
    assert bytes_of(train_repeatedly(network, pictures, tmp_path / "out")) == expected


@pytest.mark.parametrize(("views", "stored"), [(None, {"validation"}), (2, {"validation", "view-1", "view-2"})])
def test_what_frozen_layers_make_of_pictures_is_stored_once_for_all_repeats(
    views: int | None, stored: set[str], network: Path, pictures: Pictures, tmp_path: Path
) -> None:
    kept: list[set[Path]] = []

    def look(_: Row) -> None:
        kept.append({path for path in (tmp_path / "out-resume/answers").glob("*/*") if not path.name.startswith(".")})

    train_repeatedly(network, pictures, tmp_path / "out", on_epoch=look, views=views)
    assert all(files == kept[0] for files in kept)
    assert {path.name for path in kept[0]} == stored


def test_another_number_of_repeats_begins_with_the_same_ones(network: Path, pictures: Pictures, tmp_path: Path) -> None:
    two = train_repeatedly(network, pictures, tmp_path / "two", repeats=2)
    three = train_repeatedly(network, pictures, tmp_path / "three")
    for number in (1, 2):
        assert two.repeat(number).weights.read_bytes() == three.repeat(number).weights.read_bytes()
    assert stdev(FinetuneDetails.read(three.details).repeats.val_log_loss) > 0  # type: ignore[union-attr]
