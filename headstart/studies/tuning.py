"""tune: which settings of fine-tuning are best for these pictures? Tried one after the other within a budget of time.

Optuna (Akiba et al. 2019, "Optuna: a next-generation hyperparameter optimization framework") chooses what is tried: the
present settings, then a few at random, then what a tree-structured Parzen estimator expects most of (Bergstra et al. 2011,
"Algorithms for hyper-parameter optimization"). A trial whose validation log-loss is above the median of the others after as
many epochs is stopped (Golovin et al. 2017, "Google Vizier", 3.2.2). The objective is the calibrated validation log-loss of
what fine-tuning ends with; test pictures are never looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import optuna
import pandas as pd
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from headstart.base.arrays import Ints
from headstart.base.artifacts import DataFolder, FinetuneFolder
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.metrics import chance_of
from headstart.base.artifacts.tune import Knobs, State, Trial, Tuning, TuningGain
from headstart.base.device import derived_seed, set_up
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, sha256_of_files
from headstart.base.identity import code_of, inputs_of
from headstart.base.kept import SEAL, is_whole, read_kept, say_damaged, seal, write_kept
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.safe_text import shortened
from headstart.base.sections import Finetune, Tune, is_range
from headstart.base.terminal import say
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation.intervals import mean, numbered, with_training
from headstart.models.backbones import load_first
from headstart.models.calibration import calibrated_losses
from headstart.models.task import SINGLE_LABEL, Task
from headstart.studies import tuning_report
from headstart.studies.search_space import STARTUP, Search, is_one_size
from headstart.tracking.study_runs import StudyRuns
from headstart.training.finetune import trained_already
from headstart.training.finetuned import curve_of, load_val_logits
from headstart.training.head_files import load_start
from headstart.training.recipe import TrainingSetup
from headstart.training.repeats import finetune_repeatedly

FIRST_CUT = 2  # the first epoch after which a trial may be stopped
REPEATS = 50  # draws in a row that were tried before: there is nothing new to be found
STUDY = "study.db"  # Optuna works in it
KEPT = "study.kept"  # its copy after the last trial that came to an end, sealed
TRAINED = "trained.json"  # the digest of what a trial that was trained to the end has left behind
SPENT = "budget"  # an attribute of a study that has ended: the budget that it was given
Row = dict[str, float]
# (settings, where the result goes, where a half-finished training is kept, called with each epoch's row of the curve)
Train = Callable[[Finetune, FinetuneFolder, Path, Callable[[Row], None]], None]


@dataclass(frozen=True)
class Validation:
    """The validation pictures, in the order of ``load_val_logits``.

    Attributes:
        labels: (N, ...), encoded.
        groups: (N,) numbers of the groups that they belong to; None where each is on its own.
    """

    labels: Ints
    task: Task = SINGLE_LABEL
    groups: Ints | None = None

    @classmethod
    def of(cls, manifest: pd.DataFrame, classes: tuple[str, ...], task: Task) -> Self:
        rows = manifest[manifest["split"] == "val"]
        return cls(task.labels_of(rows, classes), task, numbered(rows["group"].to_numpy(str)))


def tune(
    train: Train, validation: Validation, search: Search, params: Params, key: str, state: Path, runs: StudyRuns
) -> Tuning:
    """Try settings until the budget is spent: what tune.json holds.

    A trial that has begun is finished. A study that was stopped goes on: its finished trials are kept, the one that was
    being trained is tried again, and draws are those of a study that was never stopped. How many trials fit into the
    minutes is decided once: a study that has ended goes on only with a larger budget.

    Args:
        key: the study's name.
        state: folder of what is kept from run to run.

    Raises:
        HeadstartError: another process is at work on this study.
    """
    folder = state / key
    with _alone(folder):
        study = _Study(train, validation, search, params.seed, folder, runs)
        study.prepare()
        again, ended = 0, study.has_ended(params.tune)
        while study.waiting or (
            not ended
            and again < REPEATS
            and study.minutes_spent < params.tune.minutes
            and (params.tune.trials is None or len(study.rows) < params.tune.trials)
        ):
            if study.try_next():
                again = 0
                say(f"tune: {study.minutes_spent:.1f} of {params.tune.minutes:g} minutes", flush=True)
            else:
                again += 1
        if again == REPEATS:
            say(f"tune: the last {REPEATS} draws had been tried before, so there is nothing new to try")
        study.end(params.tune)
        tuning = study.outcome()
        runs.finish(tuning, study.curves)
        return tuning


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise HeadstartError("another process is tuning these settings on these pictures; wait for it or end it") from None


class _Study:
    """Optuna's study. What is known of a trial that came to an end, losses of the validation pictures included, is in it.

    Of Optuna's trials draws that had been tried before (``repeats``) do not count. One that was interrupted is not on
    record: the study goes on as it was before that trial, draws the same settings and finds its half-finished training.
    """

    def __init__(
        self, train: Train, validation: Validation, search: Search, seed: int, folder: Path, runs: StudyRuns
    ) -> None:
        self.train, self.validation, self.search = train, validation, search
        self.seed, self.folder, self.runs = seed, folder, runs
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._restore()
        pruner = optuna.pruners.MedianPruner(STARTUP, FIRST_CUT) if search.prunes else optuna.pruners.NopPruner()
        self.study = optuna.create_study(
            storage=f"sqlite:///{quote(str(folder / STUDY))}", study_name=folder.name, load_if_exists=True, pruner=pruner
        )

    def prepare(self) -> None:
        """Queue the present settings unless they were tried."""
        if self.search.present not in [row.knobs for row in self.rows]:
            self.study.enqueue_trial(self.search.present, skip_if_exists=bool(self.waiting))

    def has_ended(self, budget: Tune) -> bool:
        """Whether it has ended with a budget that was as large, and nothing is left to decide by the clock."""
        spent = self.study.user_attrs.get(SPENT)
        return spent is not None and budget.minutes <= spent["minutes"] and _most(budget.trials) <= _most(spent["trials"])

    def end(self, budget: Tune) -> None:
        if not self.has_ended(budget):
            self.study.set_user_attr(SPENT, {"minutes": budget.minutes, "trials": budget.trials})
            self._keep()

    def _restore(self) -> None:
        """Put Optuna's database back to where it was after the last trial that came to an end."""
        for left in self.folder.glob(f"{STUDY}*"):  # SQLite's journal too, which belongs to the database of before
            left.unlink()
        if is_whole(kept := self.folder / KEPT):
            (self.folder / STUDY).write_bytes(kept.read_bytes()[:-SEAL])

    def _keep(self) -> None:
        with replacing(self.folder / KEPT) as part:
            shutil.copyfile(self.folder / STUDY, part)
            seal(part)

    def try_next(self) -> bool:
        """Train with the next settings; False where they had been tried before."""
        rows, trials = self.rows, self._trials()
        # Each draw has a seed of its own, so that a study that goes on does not draw again what it drew at first.
        seed = derived_seed(self.seed, len(trials)) % 2**32
        if trials and "repeats" in trials[-1].user_attrs:  # the estimator likes few values best; chance finds those it left
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        trial = self.study.ask(self.search.distributions)
        knobs = self.search.knobs(trial.params)
        trial.set_user_attr("knobs", knobs)
        if knobs in [row.knobs for row in rows]:
            trial.set_user_attr("repeats", True)
            self._failed(trial, "tried before")
            return False
        say(f"tune: trial {len(rows)}: {tuning_report.in_words(knobs)}", flush=True)
        self._run(trial, knobs, len(rows))
        row = self.rows[-1]
        ended = "" if row.val_log_loss is None else f", log-loss {row.val_log_loss:.3f}"
        say(f"tune: trial {row.trial}: {row.state}{ended}" + (f"; {row.note}" if row.note else ""))
        self.runs.log(row, self.curves[row.trial])
        return True

    def _run(self, trial: optuna.Trial, knobs: Knobs, number: int) -> None:
        home = self._home(knobs)
        settings = self.search.with_knobs(knobs)
        epochs = self.search.recipe(settings).epochs
        live = self.runs.live(number, knobs)
        curve: list[Row] = []

        def on_epoch(row: Row) -> None:
            curve.append(row)
            live(row)
            if row.get("repeat", 1) > 1:
                return
            trial.report(row["val_log_loss"], int(row["epoch"]))
            if row["epoch"] < epochs and knobs != self.search.present and trial.should_prune():
                raise optuna.TrialPruned

        try:
            if self._was_trained(home):  # to the end, and then there was no time to tell
                for row in curve_of(home):
                    on_epoch(row)
            else:
                self.train(settings, home, home / "resume", on_epoch)
                home.weights.unlink(missing_ok=True)  # the settings give them again
                write_kept(home / TRAINED, sha256_of_files(home))
        except optuna.TrialPruned:
            trial.set_user_attr("curve", curve)
            trial.set_user_attr("note", f"stopped after epoch {len(curve)}: above the median of the others")
            self.study.tell(trial, state=TrialState.PRUNED)
        except (HeadstartError, MemoryError, torch.OutOfMemoryError) as error:
            trial.set_user_attr("curve", curve)
            self._failed(trial, shortened(str(error), 200) or type(error).__name__)
        else:
            trial.set_user_attr("curve", curve)
            trial.set_user_attr("accuracy", self._accuracy(home))
            losses = calibrated_losses(load_val_logits(home).numpy(), self.validation.labels, self.validation.task)
            trial.set_user_attr("losses", losses.tolist())
            repeats = FinetuneDetails.read(home.details).repeats
            trial.set_user_attr("repeats_log_loss", repeats.val_log_loss if repeats else [])
            self.study.tell(trial, float(losses.mean()))
        self._keep()
        self._forget(home)

    def _was_trained(self, home: FinetuneFolder) -> bool:
        """Whether ``home`` holds all that a training leaves behind; what is damaged is removed."""
        known = read_kept(home / TRAINED)
        whole = known is not None and known == sha256_of_files(home, leave_out=(TRAINED,))
        if known is not None and not whole:
            say_damaged(home)
            self._forget(home)
        return whole

    def _forget(self, home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)

    def _failed(self, trial: optuna.Trial, note: str) -> None:
        trial.set_user_attr("note", note)
        self.study.tell(trial, state=TrialState.FAIL)

    def _home(self, knobs: Knobs) -> FinetuneFolder:
        return FinetuneFolder(self.folder, hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:20])

    def _losses(self, knobs: Knobs) -> NDArray[Any]:
        """(N,) log-losses of the validation pictures after calibration, of a trial that is complete."""
        return np.array(self._trial(knobs).user_attrs["losses"])

    def _trial(self, knobs: Knobs) -> FrozenTrial:
        return next(trial for trial in self.counted if trial.user_attrs["knobs"] == knobs)

    def _accuracy(self, home: Path) -> float:
        predicted = self.validation.task.predict(load_val_logits(home).numpy())
        return float(self.validation.task.correct(predicted, self.validation.labels).mean())

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """In the order they were asked for; of all states where none is named."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    @property
    def waiting(self) -> bool:
        return bool(self._trials(TrialState.WAITING))

    @property
    def counted(self) -> list[FrozenTrial]:
        """Optuna's trials that came to an end, in the order they were tried."""
        ended = self._trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        failed = TrialState.FAIL
        return [t for t in ended if "repeats" not in t.user_attrs and (t.state != failed or "note" in t.user_attrs)]

    @property
    def minutes_spent(self) -> float:
        return sum(_minutes(trial) for trial in self.counted)

    @property
    def curves(self) -> dict[int, list[Row]]:
        return {number: trial.user_attrs["curve"] for number, trial in enumerate(self.counted)}

    @property
    def rows(self) -> list[Trial]:
        """The rows of tune.json, in the order they were tried."""
        return [
            Trial(
                trial=number,
                state=STATES[trial.state],
                val_log_loss=trial.value if trial.state != TrialState.FAIL else None,
                val_accuracy=trial.user_attrs.get("accuracy"),
                epochs=sum(row.get("repeat", 1) == 1 for row in trial.user_attrs["curve"]),
                minutes=round(_minutes(trial), 2),
                knobs=trial.user_attrs["knobs"],
                note=trial.user_attrs.get("note"),
            )
            for number, trial in enumerate(self.counted)
        ]

    def outcome(self) -> Tuning:
        """What tune.json holds. Trials that were trained to the end come first, the lowest log-loss before others."""
        order = list(STATES.values())
        rows = sorted(self.rows, key=lambda row: (order.index(row.state), row.val_log_loss or 0.0, row.trial))
        complete = [row for row in rows if row.state == "complete"]
        present = next(row for row in rows if row.knobs == self.search.present)
        gain = None
        if complete and present.state == "complete" and complete[0] is not present:
            sides, groups = (present.knobs, complete[0].knobs), self.validation.groups
            before, after = (self._losses(knobs) for knobs in sides)
            repeats = [self._trial(knobs).user_attrs["repeats_log_loss"] for knobs in sides]
            chances = [chance_of(found) for found in repeats if found]
            lower_by = with_training(mean(before - after, groups=groups), chances, groups)
            gain = TuningGain(
                value=lower_by.value, low=lower_by.low, high=lower_by.high, pictures=len(before),
                repeats=max(1, len(repeats[0])),
            )  # fmt: skip
        best = _changed(complete[0].knobs, self.search.present) if complete else None
        return Tuning(
            best=best,
            sentence=tuning_report.sentence(rows, present, gain),
            command=tuning_report.command(best) if best else None,
            gain=gain,
            present=self.search.present,
            choices={key: values for key, values in self.search.space.items() if not is_range(values)},
            by_logarithm=[key for key, found in self.search.distributions.items() if getattr(found, "log", False)],
            trials=rows,
        )


STATES: dict[TrialState, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def _changed(knobs: Knobs, present: Knobs) -> Knobs:
    return {key: value for key, value in knobs.items() if value != present[key]}


def _most(trials: int | None) -> float:
    return math.inf if trials is None else trials


def _minutes(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() / 60 if trial.duration else 0.0


def run(params: Params, data: DataFolder) -> None:
    """The stage tune: try settings within a budget of time, and say whether any is better than the present ones."""
    manifest = read_manifest(data.prepare)
    scratch, pictures = not Card.read(data.backbone.card).pretrained, int((manifest["split"] == "train").sum())
    trunk, _ = load_first(data.backbone, data.fetch.network)
    search = Search.of(params, scratch, pictures, is_one_size(params, scratch, trunk))
    device = set_up(params.threads)
    head, pixels = load_start(data.head), Pixels(data.prepare)

    def train(
        settings: Finetune, folder: FinetuneFolder, resume: Path, on_epoch: Callable[[dict[str, float]], None]
    ) -> None:
        if settings == params.finetune and trained_already(params, data.finetune):
            say("tune: the pipeline has trained with these settings")
            shutil.copytree(data.finetune, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
            for row in curve_of(folder):
                on_epoch(row)
            return
        trunk, _ = load_first(data.backbone, data.fetch.network)
        recipe = search.recipe(settings)
        setup = TrainingSetup(trunk, head, pixels, manifest, recipe, device, params.features.engine)
        finetune_repeatedly(setup, folder, resume, on_epoch, state_folder("answers"))

    made_by = code_of("headstart.training.repeats")
    study = search.key(made_by, inputs_of("finetune"), params.features, params.seed, params.threads)
    validation = Validation.of(manifest, head.classes, head.task)
    tuning = tune(train, validation, search, params, study, state_folder("tune"), StudyRuns(params, study))
    tuning_report.write_page(tuning, data.tune.page)
    tuning.write(data.tune.details)
    tuning_report.show(tuning)
