"""Tuning: the present settings come first, the best is named only as far as it is better, and no trial is lost."""

# ruff: noqa: F811
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from mlflow.entities import Run

from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.tune import State, Trial, Tuning, TuningGain
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Finetune
from headstart.data.packed import Pixels
from headstart.models.backbones import architecture
from headstart.models.calibration import calibrated_losses
from headstart.models.task import SINGLE_LABEL
from headstart.studies import search_space, tuning, tuning_report
from headstart.studies.search_space import Search
from headstart.studies.tuning import Validation, tune
from headstart.studies.tuning_report import sentence
from headstart.tracking.study_runs import StudyRuns
from headstart.training import finetune, finetuned
from headstart.training.recipe import Recipe, TrainingSetup
from headstart.training.repeats import finetune_repeatedly
from tests.training.test_finetune import CPU, head, network, pictures  # noqa: F401

ROOT = Path(__file__).parents[2]
LEARNS = {"lr": [0.001, 0.1], "head_lr": [0.001, 0.1]}


@dataclass
class Bench:
    """A small network and 24 pictures to tune on, with everything in one folder.

    Attributes:
        trained: what fine-tuning was called with.
        stop: called after every epoch with (number of trainings, epoch).
    """

    folder: Path
    network: Path
    pictures: tuple[Pixels, pd.DataFrame]
    trained: list[Finetune] = field(default_factory=list)
    stop: Callable[[int, float], None] = lambda number, epoch: None

    def params(self, space: dict[str, list[Any]], trials: int | None, **settings: object) -> Params:
        given = {"epochs": 1, "views": 1, "batch_size": 8, "size_ratio": 0.5, "lr": 0.002, "head_lr": 0.002} | settings
        return Params.model_validate({"finetune": given, "tune": {"minutes": 5, "trials": trials, "space": space}})

    def train(self, settings: Finetune, folder: Path, resume: Path, on_epoch: Callable[[dict[str, float]], None]) -> None:
        self.trained.append(settings)

        def told(row: dict[str, float]) -> None:
            on_epoch(row)
            self.stop(len(self.trained), row["epoch"])

        trunk = architecture("small.py:net", self.network).trunk(seed=1)
        recipe = Recipe(settings, scratch=False, seed=3)
        kept = self.folder / "kept"
        finetune_repeatedly(TrainingSetup(trunk, head(), *self.pictures, recipe, CPU), folder, resume, told, kept)

    def tune(self, params: Params, name: str = "study") -> Tuning:
        search = Search.of(params, scratch=False, pictures=16)
        validation = Validation.of(self.pictures[1], head().classes, SINGLE_LABEL)
        return tune(self.train, validation, search, params, name, self.folder / "state", StudyRuns(params, name))

    def kept(self, name: str = "study") -> list[Path]:
        return [path for path in (self.folder / "state" / name).iterdir() if path.is_dir()]

    def runs(self) -> list[Run]:
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.fixture
def bench(checkout_with_store: Path, network: Path, pictures: tuple[Pixels, pd.DataFrame]) -> Bench:
    return Bench(checkout_with_store, network, pictures)


def outcomes(found: Tuning) -> list[tuple[Any, ...]]:
    rows = sorted(found.trials, key=lambda row: row.trial)
    return [(row.trial, row.state, row.knobs, row.val_log_loss, row.epochs) for row in rows]


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_study_starts_with_the_present_settings_and_ends_with_the_best(bench: Bench, tmp_path: Path) -> None:
    params = bench.params(LEARNS, trials=3)
    found = bench.tune(params)
    rows = found.trials
    assert [row.val_log_loss for row in rows] == sorted(row.val_log_loss for row in rows)
    assert sorted(row.trial for row in rows) == [0, 1, 2]
    first = next(row for row in rows if row.trial == 0)
    assert first.knobs == found.present == {"lr": 0.002, "head_lr": 0.002}
    assert found.best == {key: v for key, v in rows[0].knobs.items() if v != 0.002}
    assert found.command == "dvc exp run " + " ".join(f"-S finetune.{k}={v}" for k, v in found.best.items())
    gain = next(row for row in rows if row.trial == 0).val_log_loss - rows[0].val_log_loss
    assert found.gain.value == pytest.approx(gain, abs=1e-6)
    assert found.gain.low <= gain <= found.gain.high
    assert found.sentence.startswith("Better" if found.gain.low > 0 else "No better")
    bench.train(params.finetune.model_copy(update=rows[0].knobs), tmp_path / "o", tmp_path / "r", lambda row: None)
    logits = finetuned.load_val_logits(tmp_path / "o").numpy()
    labels = Validation.of(bench.pictures[1], head().classes, SINGLE_LABEL).labels
    assert calibrated_losses(logits, labels).mean() == pytest.approx(rows[0].val_log_loss)
    assert not list((tmp_path / "state").rglob("weights.safetensors"))
    assert Tuning.model_validate_json(found.model_dump_json()) == found


def test_repeats_widen_the_interval_of_the_gain_by_the_chance_in_training(bench: Bench) -> None:
    space = {"lr": [0.001, 0.1], "head_lr": [0.001, 0.1]}
    found = bench.tune(bench.params(space, trials=2, repeats=3, epochs=2))
    assert found.gain is not None
    assert found.gain.repeats == 3
    assert [row.epochs for row in found.trials] == [2, 2]
    assert "Chance in training" not in found.sentence
    once = bench.tune(bench.params(space, trials=2, epochs=2), "once")
    assert once.gain is not None
    assert once.gain.repeats == 1
    assert once.sentence.endswith("Chance in training is not counted: see finetune.repeats.")
    metrics = {key for run in bench.runs() for key in run.data.metrics}
    assert {"finetune/val_log_loss", "finetune/repeat-2/val_log_loss", "finetune/repeat-3/val_log_loss"} <= metrics


def test_stopped_and_taken_up_again_it_tries_the_rest_and_nothing_twice(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    params = bench.params(LEARNS, trials=3, epochs=2)
    whole = outcomes(bench.tune(params, "whole"))
    assert len(bench.trained) == 3

    def stop(number: int, epoch: float) -> None:
        if (number, epoch) == (2, 1):
            raise KeyboardInterrupt

    bench.trained, bench.stop = [], stop
    with pytest.raises(KeyboardInterrupt):
        bench.tune(params)
    bench.stop = lambda number, epoch: None
    capsys.readouterr()
    assert outcomes(bench.tune(params)) == whole
    assert "going on after epoch 1" in capsys.readouterr().out
    assert [settings.lr for settings in bench.trained] == [whole[n][2]["lr"] for n in (0, 1, 1, 2)]
    assert outcomes(bench.tune(params)) == whole
    assert len(bench.trained) == 4


def test_a_trial_that_was_trained_but_not_noted_is_not_trained_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    params = bench.params(LEARNS, trials=2, epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr(tuning._Study, "_accuracy", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.tune(params)
    found = bench.tune(params)
    assert len(found.trials) == len(bench.trained) == 2
    assert {row.epochs for row in found.trials} == {2}


@pytest.mark.parametrize("damage", [b"", b"junk", None], ids=["empty", "junk", "flipped"])
def test_a_study_that_is_damaged_is_made_again(
    damage: bytes | None, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    params = bench.params(LEARNS, trials=2)
    whole = outcomes(bench.tune(params))
    kept = bench.folder / "state/study/study.kept"
    (bench.folder / "state/study/study.db").write_bytes(b"junk")  # which Optuna works in, and nobody reads again
    assert outcomes(bench.tune(params)) == whole
    assert len(bench.trained) == 2
    content = kept.read_bytes()
    kept.write_bytes(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:] if damage is None else damage)
    capsys.readouterr()
    assert outcomes(bench.tune(params)) == whole
    assert len(bench.trained) == 4
    assert f"headstart: {kept} is damaged" in capsys.readouterr().err


def test_a_trial_whose_files_are_damaged_before_it_was_noted_is_trained_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    params = bench.params(LEARNS, trials=1)
    whole = outcomes(bench.tune(params, "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(tuning._Study, "_accuracy", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.tune(params)
    (home,) = bench.kept()
    logits = home / "val_logits.safetensors"
    logits.write_bytes(logits.read_bytes()[:-1] + b"?")
    assert outcomes(bench.tune(params)) == whole
    assert len(bench.trained) == 3


def test_a_larger_budget_and_other_present_settings_go_on_with_the_same_study(bench: Bench) -> None:
    params = bench.params(LEARNS, trials=None)
    short = params.model_copy(update={"tune": params.tune.model_copy(update={"minutes": 1e-4})})
    assert len(bench.tune(short).trials) == 1
    assert len(bench.tune(bench.params(LEARNS, trials=2)).trials) == 2
    changed = bench.params(LEARNS, trials=2, lr=0.005)
    found = bench.tune(changed)
    assert len(bench.trained) == len(found.trials) == 3
    assert found.present in [row.knobs for row in found.trials]
    keys = [
        Search.of(p, scratch=False, pictures=16).key("data")
        for p in (params, short, changed, bench.params(LEARNS, 2, ema=0.5))
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert Search.of(params, scratch=False, pictures=16).key("other data") != keys[0]


def test_how_many_trials_fitted_into_the_minutes_is_decided_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    params = bench.params(LEARNS, trials=None)
    for minutes, lie, trials in ((1e-4, 1.0, 1), (1e-4, 1e-9, 1), (5e-5, 1e-9, 1)):
        monkeypatch.setattr(tuning, "_minutes", lambda trial, lie=lie: lie * trial.duration.total_seconds() / 60)
        budget = params.model_copy(update={"tune": params.tune.model_copy(update={"minutes": minutes})})
        assert len(bench.tune(budget).trials) == trials
    assert len(bench.tune(bench.params(LEARNS, trials=3)).trials) == 3  # more minutes
    assert len(bench.tune(bench.params(LEARNS, trials=4)).trials) == 4  # more trials
    assert len(bench.tune(bench.params(LEARNS, trials=2)).trials) == 4


def test_a_choice_that_is_exhausted_ends_the_study(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "REPEATS", 10)
    found = bench.tune(bench.params({"unfreeze": ["half", "all"]}, trials=None))
    assert sorted(row.knobs["unfreeze"] for row in found.trials) == ["all", "half"]
    assert "nothing new to try" in capsys.readouterr().out


def test_a_hopeless_trial_is_stopped_early_and_leaves_nothing_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "STARTUP", 1)
    learns_nothing = {"head_lr": [1e-7, 2e-7, 0.05]}
    found = bench.tune(bench.params(learns_nothing, trials=2, epochs=4, lr=1e-7, head_lr=0.05))
    (pruned,) = [row for row in found.trials if row.state == "pruned"]
    assert pruned.epochs == 2
    assert "above the median" in pruned.note
    assert found.trials[0].trial == 0
    assert found.sentence.startswith("No better than what you have")
    assert not bench.kept()


def test_no_trial_is_stopped_where_the_number_of_epochs_is_searched(bench: Bench) -> None:
    assert Search.of(bench.params({"lr": [0.001, 0.1]}, 1), scratch=False, pictures=16).prunes
    assert not Search.of(bench.params({"epochs": [1, 9]}, 1), scratch=False, pictures=16).prunes


def test_a_trial_that_diverges_is_told_and_the_study_goes_on(bench: Bench) -> None:
    found = bench.tune(bench.params({"lr": [0.002, 1e8, 1e9]}, trials=2, warmup=0.0, unfreeze="all"))
    (failed,) = [row for row in found.trials if row.state == "failed"]
    assert failed.note.startswith("training diverged in epoch 1")
    assert found.trials[0].state == "complete"
    assert not bench.kept()


def test_two_processes_do_not_work_on_one_study(bench: Bench) -> None:
    (bench.folder / "state/study").mkdir(parents=True)
    with FileLock(bench.folder / "state/study/lock"), pytest.raises(HeadstartError, match="another process is tuning"):
        bench.tune(bench.params(LEARNS, trials=1))


# --- what is searched -------------------------------------------------------------------------------------------------


def test_ranges_are_searched_by_their_logarithm_where_they_span_a_factor_of_ten(bench: Bench) -> None:
    space = {"lr": [0.001, 0.01], "crop_min": [0.3, 1], "batch_size": [4, 64], "unfreeze": ["half", "all"]}
    lr, crop, batch, unfreeze = Search.of(bench.params(space, 1), scratch=False, pictures=16).distributions.values()
    assert (lr.log, crop.log, batch.log) == (True, False, True)  # type: ignore[attr-defined]
    assert (type(crop).__name__, type(batch).__name__) == ("FloatDistribution", "IntDistribution")
    assert unfreeze.choices == ("half", "all")  # type: ignore[attr-defined]


def test_numbers_drawn_are_short_and_stay_in_their_range_and_the_present_ones_stay_exact(bench: Bench) -> None:
    search = Search.of(
        bench.params({"ema": [0.9, 0.9999], "lr": [0.001, 0.1]}, 1, lr=0.00123456), scratch=False, pictures=16
    )
    assert search.knobs({"ema": 0.99988, "lr": 0.0123456}) == {"ema": 0.9999, "lr": 0.0123}
    assert search.knobs(search.present)["lr"] == 0.00123456


def test_knobs_without_effect_are_left_out_and_that_is_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    params = bench.params({"lr": [0.001, 0.1], "scratch_lr": [0.0001, 0.1], "augment": ["none", "light"]}, 1)
    assert list(Search.of(params, scratch=False, pictures=16).space) == ["lr", "augment"]
    assert list(Search.of(params, scratch=True, pictures=16).space) == ["scratch_lr", "augment"]
    assert "no effect with this network and random weights: lr" in capsys.readouterr().out


def test_sizes_are_searched_only_where_the_network_takes_them(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    params = bench.params({"lr": [0.001, 0.1], "size_ratio": [0.5, 1.5]}, 1)
    searched = {}
    for name, file in (("small.py:net", bench.network), ("vit_tiny_patch16_224", None)):
        one_size = search_space.is_one_size(params, False, architecture(name, file).trunk())
        searched[name] = list(Search.of(params, False, 16, one_size).space)
    assert searched == {"small.py:net": ["lr", "size_ratio"], "vit_tiny_patch16_224": ["lr"]}
    assert "no effect with this network and pre-trained weights: size_ratio" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "scratch", "message"),
    [
        ({"lr": 0.5}, False, "tune.space.lr does not hold the present finetune.lr, 0.5; widen it"),
        ({"unfreeze": "none"}, False, "finetune.unfreeze is none, so there is no fine-tuning to tune"),
        ({}, True, "with random weights no knob in tune.space has an effect (lr); add one"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    bench: Bench, settings: dict[str, Any], scratch: bool, message: str
) -> None:
    with pytest.raises(HeadstartError, match=re.escape(message)):
        Search.of(bench.params({"lr": [0.001, 0.1]}, 1, **settings), scratch, pictures=16)


# --- in MLflow --------------------------------------------------------------------------------------------------------


def test_every_trial_is_a_nested_run_and_there_is_one_of_each(bench: Bench) -> None:
    def stop(number: int, epoch: float) -> None:
        if (number, epoch) == (2, 1):
            raise KeyboardInterrupt

    bench.stop = stop
    with pytest.raises(KeyboardInterrupt):
        bench.tune(bench.params(LEARNS, trials=2, epochs=2))
    bench.stop = lambda number, epoch: None
    for trials in (2, 3):
        found = bench.tune(bench.params(LEARNS, trials=trials, epochs=2))
    (parent,) = [run for run in bench.runs() if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in bench.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(bench.runs()) == 4
    assert parent.data.tags["mlflow.note.content"] == found.sentence
    assert parent.data.metrics["val_log_loss"] == found.trials[0].val_log_loss
    assert {run.info.status for run in (parent, *nested)} == {"FINISHED"}
    assert sorted(run.data.tags["mlflow.runName"] for run in nested) == ["trial 0", "trial 1", "trial 2"]
    client = mlflow.MlflowClient(f"sqlite:///{bench.folder / 'mlflow.db'}")
    for run in nested:
        row = next(r for r in found.trials if run.data.tags["mlflow.runName"] == f"trial {r.trial}")
        assert run.data.params == {f"finetune.{key}": str(value) for key, value in row.knobs.items()}
        assert run.data.metrics["val_log_loss"] == row.val_log_loss
        assert run.data.metrics["val_accuracy"] == row.val_accuracy
        history = client.get_metric_history(run.info.run_id, "finetune/val_log_loss")
        assert [metric.step for metric in history] == [1, 2]


def test_a_store_that_does_not_answer_loses_no_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    params = bench.params(LEARNS, trials=2)
    found = bench.tune(params)
    assert [row.state for row in found.trials] == ["complete", "complete"]
    assert "not shown in MLflow for now: MLflow at http://127.0.0.1:9 does not answer" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert outcomes(bench.tune(params)) == outcomes(found)
    assert len(bench.trained) == 2
    assert len([run for run in bench.runs() if "mlflow.parentRunId" in run.data.tags]) == 2


# --- the outcome in words, and taken over -----------------------------------------------------------------------------


def row_of(trial: int, loss: float | None, state: State = "complete", lr: float = 0.001) -> Trial:
    return Trial(
        trial=trial, state=state, val_log_loss=loss, val_accuracy=loss and 0.8, epochs=4, minutes=1.5,
        knobs={"lr": lr, "unfreeze": "half", "hflip": False}, note=None if state == "complete" else "it is <so>",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "low", "expected"),
    [
        (
            [row_of(3, 0.6, lr=0.01), row_of(0, 0.7)],
            0.02,
            "Better than what you have: trial 3 (lr 0.01, unfreeze half, hflip",
        ),
        ([row_of(3, 0.6), row_of(0, 0.7)], 0.02, "lower by 0.100 (+0.020 to +0.200) on 90 validation pictures"),
        (
            [row_of(3, 0.6), row_of(0, 0.7)],
            -0.02,
            "No better than what you have: the lowest log-loss of 2 trials, 0.600 of",
        ),
        ([row_of(3, 0.6), row_of(0, 0.7)], -0.02, "by 0.100 (-0.020 to +0.200) on 90 validation pictures, which includes"),
        ([row_of(0, 0.6), row_of(1, 0.7)], None, "No better than what you have: of 2 trials none is below"),
        ([row_of(0, 0.6)], None, "No better than what you have: nothing else was tried"),
        ([row_of(1, 0.7), row_of(0, None, "failed")], None, "The present settings cannot be compared: it is <so>."),
        ([row_of(0, None, "failed")], None, "No trial was trained to the end. The present settings: it is <so>."),
    ],
)
def test_the_words_fit_the_numbers(rows: list[Trial], low: float | None, expected: str) -> None:
    gain = None if low is None else TuningGain(value=0.1, low=low, high=0.2, pictures=90)
    assert expected in sentence(rows, next(row for row in rows if row.trial == 0), gain)


def found_of(*rows: Trial) -> Tuning:
    best = {"lr": rows[0].knobs["lr"]}
    return Tuning(
        best=best, sentence="It is so.", command=tuning_report.command(best), gain=None, by_logarithm=["lr"],
        choices={"unfreeze": ["last", "half"], "hflip": [False, True]}, present=row_of(0, 0.7).knobs, trials=list(rows),
    )  # fmt: skip


def test_the_best_settings_are_written_into_params_and_every_other_line_stays(tmp_path: Path) -> None:
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(shipped, encoding="utf-8")
    found = found_of(row_of(3, 0.6, lr=0.00031), row_of(0, 0.7))
    found.trials[0].knobs.update({"hflip": True, "augment": "trivial"})
    assert (
        tuning_report.apply(found, path) == f"{path}: finetune.lr: 0.00031, finetune.hflip: true, finetune.augment: trivial"
    )
    before, after = shipped.splitlines(), path.read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 3
    assert all(old.partition("#")[2] == new.partition("#")[2] != "" for old, new in changed)
    expected = Params().finetune.model_copy(update={"lr": 0.00031, "hflip": True, "augment": "trivial"})
    assert Params.load(path).finetune == expected
    assert tuning_report.apply(found, path) == f"{path} has the best settings already"
    with pytest.raises(HeadstartError, match="nothing to apply"):
        tuning_report.apply(found_of(row_of(0, None, "failed")), path)


def test_the_table_and_the_page_show_every_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = found_of(row_of(3, 0.6, lr=0.00031), row_of(0, 0.7), row_of(1, 0.9, "pruned"), row_of(2, None, "failed"))
    tuning_report.show(found)
    printed = capsys.readouterr().out
    for words in ("0.00031", "pruned", "trial 2: it is <so>", "It is so.", "dvc exp run -S finetune.lr=0.00031\n"):
        assert words in printed
    tuning_report.write_page(found, tmp_path / "tune.html")
    page = (tmp_path / "tune.html").read_text()
    assert page.count("<svg") == 1 + len(found.present)
    assert "it is &lt;so&gt;" in page
    assert "://" not in page
    tuning_report.write_page(found_of(row_of(0, None, "failed")), tmp_path / "tune.html")


def test_without_a_tuning_the_command_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=re.escape("dvc repro studies/dvc.yaml:tune")):
        Tuning.read(tmp_path / "tune.json")


def test_labels_are_in_the_order_of_the_logits() -> None:
    manifest = pd.DataFrame(
        {"label": ["b", "a", "b", "c"], "split": ["val", "train", "test", "val"], "group": ["x", "y", "z", "x"]}
    )
    validation = Validation.of(manifest, ("a", "b", "c"), SINGLE_LABEL)
    assert np.array_equal(validation.labels, [1, 2])
    assert validation.groups is not None
    assert np.array_equal(validation.groups, [0, 0])


@pytest.mark.usefixtures("checkout_with_store")
def test_the_pipelines_training_is_known_by_what_it_was_made_from_and_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then trial 0 is not trained again (tests/stages/test_tune.py)."""
    monkeypatch.setattr(finetune, "key_of", lambda params: f"seed {params.seed}")
    folder = FinetuneFolder("data/finetune")
    folder.mkdir(parents=True)
    folder.curve.write_text("epoch,train_loss\n1,0.5\n")
    assert not finetune.trained_already(Params(), folder)
    finetune.note_trained("seed 0", folder)
    assert finetune.trained_already(Params(), folder)
    assert not finetune.trained_already(Params(seed=1), folder)
    folder.curve.write_text("epoch,train_loss\n1,0.6\n")
    assert not finetune.trained_already(Params(), folder)
