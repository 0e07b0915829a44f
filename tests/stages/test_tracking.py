"""What MLflow is told of a result, so that results can be compared there; the page itself is looked at in test_ui."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import mlflow
import pytest
import sqlalchemy
import sqlalchemy.orm
from mlflow.entities import Run

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.params import Params
from headstart.tracking import runs, saved_view, track
from tests.stages.conftest import Clone

pytestmark = [pytest.mark.slow]


def run_of(clone: Clone) -> tuple[mlflow.MlflowClient, Run]:
    client = mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("headstart-emoji").experiment_id])
    return client, run


def test_a_run_is_named_after_the_backbone_what_was_trained_and_the_result(finished: Clone) -> None:
    _, run = run_of(finished)
    assert run.info.run_name == f"tf_efficientnet_lite0 last {run.data.tags['headstart.result'][:7]}"


def test_runs_are_found_by_their_tags(finished: Clone) -> None:
    client, run = run_of(finished)
    metrics = json.loads(finished.read("data/evaluate/metrics.json"))
    wanted = f"tags.backbone = 'tf_efficientnet_lite0' and tags.chosen = '{metrics['chosen']}' and tags.source = 'emoji'"
    for query, found in ((f"{wanted} and tags.trained = 'last'", 1), (f"{wanted} and tags.trained = 'half'", 0)):
        assert len(client.search_runs([run.info.experiment_id], query)) == found
    assert "test accuracy" in run.data.tags["mlflow.note.content"]


def test_parameters_that_are_numbers_can_be_axes(finished: Clone) -> None:
    """Of a result only, without null, and without lists but that of the head's strengths."""
    _, run = run_of(finished)
    words = {key for key, value in run.data.params.items() if not is_number(value)}
    assert words == {
        "backbone", "weights", "data.source", "features.engine", "head.kind", "head.C", "finetune.unfreeze",
        "finetune.batch_norm", "view.frame", "view.stages", "finetune.hflip", "finetune.augment", "finetune.precision",
        "prepare.formats", "data.label_separator", "data.group", "evaluate.folds",
    }  # fmt: skip
    sections = {key.split(".")[0] for key in run.data.params}
    assert not sections & {"rank", "why", "labels", "tune", "tracking"}


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_figures_of_the_chosen_classifier_are_grouped_for_validation_and_test(finished: Clone) -> None:
    _, run = run_of(finished)
    metrics = json.loads(finished.read("data/evaluate/metrics.json"))
    for split in ("val", "test"):
        for name in ("accuracy", "accuracy_low", "accuracy_high", "log_loss", "ece"):
            assert run.data.metrics[f"{split}/chosen/{name}"] == metrics[split][metrics["chosen"]][name]
    groups = {key.rpartition("/")[0] for key in run.data.metrics}
    assert groups == {
        "val/chosen", "val/head", "val/finetune", "val/ensemble",
        "test/chosen", "test/head", "test/finetune", "test/ensemble",
        "gain/val", "gain/test", "folds", "folds/head", "leaks", "leaks/without", "leaks/added", "heat", "heat/centre",
        "subgroups", "worst_class", "ensemble", "prepare", "backbone", "head", "finetune",
    }  # fmt: skip
    assert groups - {"finetune"} <= set(saved_view.CLOSED)


def test_every_figure_is_an_image_that_charts_can_show(finished: Clone) -> None:
    client, run = run_of(finished)
    files = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
    drawn = sorted(path.stem for path in (finished.folder / "data/evaluate/figures").glob("*.png"))
    assert sorted(name.split("+")[0] for name in files if name.endswith(".png")) == [f"figures~{name}" for name in drawn]
    assert set(saved_view.FIGURES) <= set(drawn)
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_the_experiment_has_a_view_whose_columns_and_charts_exist(finished: Clone) -> None:
    client, run = run_of(finished)
    tags = client.get_experiment(run.info.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.headstart"])
    assert view["name"] == saved_view.NAME
    state = json.loads(view["state"])
    for column in (*state["selectedColumns"], state["orderByKey"]):
        kind, _, name = column.partition(".")
        assert name.strip("`") in getattr(run.data, kind), column
    for chart in state["compareRunCharts"]:
        for key in (
            *chart.get("selectedMetrics", ()),
            *(axis["key"] for name, axis in chart.items() if name.endswith("axis")),
        ):
            assert key in run.data.metrics
        assert set(chart.get("selectedParams", ())) <= run.data.params.keys()
    assert [found.info.run_id for found in client.search_runs([run.info.experiment_id], state["searchFilter"])] == [
        run.info.run_id
    ]


def test_what_a_user_makes_of_the_experiments_page_stays(copy_of: Clone) -> None:
    client, run = run_of(copy_of)
    client.set_experiment_tag(run.info.experiment_id, "mlflow.note.content", "our own words")
    copy_of.run("headstart", "track")
    tags = client.get_experiment(run.info.experiment_id).tags
    assert tags["mlflow.note.content"] == "our own words"
    assert "mlflow.sharedViewState.headstart" in tags


def test_a_run_that_was_killed_while_its_figures_were_logged_gets_each_once(copy_of: Clone) -> None:
    (copy_of.folder / "mlflow.db").unlink()  # a copy's runs have their files where the original's are
    copy_of.run("headstart", "track")
    client, run = run_of(copy_of)
    folder = copy_of.folder / "mlartifacts" / run.info.run_id / "artifacts" / "images"
    for file in folder.glob("figures~mistakes+*"):
        file.unlink()
    before = {file.name for file in folder.iterdir()}
    client.delete_tag(run.info.run_id, "headstart.complete")
    copy_of.run("headstart", "track")
    after = {file.name for file in folder.iterdir()}
    drawn = sorted(path.stem for path in (copy_of.folder / "data/evaluate/figures").glob("*.png"))
    assert before < after
    assert sorted(name.split("+")[0] for name in after if name.endswith(".png")) == [f"figures~{name}" for name in drawn]


@pytest.mark.parametrize("how", ["run", "gc", "files"])
def test_what_was_deleted_in_mlflow_is_logged_again_and_the_gate_goes_on(copy_of: Clone, how: str) -> None:
    (copy_of.folder / "mlflow.db").unlink()  # a copy's runs have their files where the original's are
    copy_of.run("headstart", "track")
    copy_of.run("headstart", "gate")
    client, run = run_of(copy_of)
    before = artifacts_of(client, run.info.run_id)
    if how == "files":
        shutil.rmtree(copy_of.folder / "mlartifacts")
    else:
        client.delete_run(run.info.run_id)
    if how == "gc":
        store = f"sqlite:///{copy_of.folder / 'mlflow.db'}"
        copy_of.run("mlflow", "gc", "--backend-store-uri", store, "--tracking-uri", store)
    shutil.rmtree(copy_of.folder / ".headstart/models", ignore_errors=True)
    told = copy_of.run("headstart", "gate", check=False)
    assert (told.returncode, told.stderr.count("\n")) == (1, 1), told.stderr
    assert "were deleted in MLflow; run `headstart track`" in told.stderr
    says = "was deleted in MLflow and is back" if how == "run" else "logged result"
    assert says in copy_of.run("headstart", "track").stdout
    assert "nothing logged twice" in copy_of.run("headstart", "track").stdout
    client, run = run_of(copy_of)
    assert (run.data.tags["headstart.complete"], run.info.status) == ("true", "FINISHED")
    assert artifacts_of(client, run.info.run_id) >= {path for path in before if not path.startswith(("images", "gate"))}
    kept = "is the first champion" if how == "run" else "was promoted"  # the decision's file is back with the run, or gone
    assert kept in copy_of.run("headstart", "gate").stdout
    version = client.get_model_version_by_alias("headstart-emoji", "champion")
    assert version.run_id == run.info.run_id


def artifacts_of(client: mlflow.MlflowClient, run: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for file in client.list_artifacts(run, folder):
        found |= artifacts_of(client, run, file.path) if file.is_dir else {file.path}
    return found


def test_a_store_that_goes_away_while_it_trains_is_a_word_and_no_more(
    copy_of: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_of.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    send = runs.live(DATA, Params.load())
    send({"epoch": 1, "train_loss": 0.7})
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("headstart-emoji").experiment_id])
    assert run.data.metrics == {"finetune/train_loss": 0.7}
    (tmp_path / "store.db").write_bytes(b"no longer a database" * 1000)
    capsys.readouterr()
    send({"epoch": 2, "train_loss": 0.6})
    send({"epoch": 3, "train_loss": 0.5})
    assert capsys.readouterr().out.count("the curve is not shown live: MLflow at sqlite") == 1


@contextmanager
def another_enters_first(database: Path, table: str, **theirs: str) -> Iterator[None]:
    """What MLflow is about to insert into ``table`` is there just before it does: it has looked, and found nothing."""
    entered: list[str] = []

    def between(session: sqlalchemy.orm.Session, *_: object) -> None:
        for row in session.new:
            if row.__tablename__ == table and not entered:
                entered.append(table)
                with sqlite3.connect(database) as other:
                    columns = {column.name: getattr(row, column.name) for column in row.__table__.columns} | theirs
                    marks = ", ".join("?" * len(columns))
                    insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
                    other.execute(insert, [*columns.values()])

    sqlalchemy.event.listen(sqlalchemy.orm.Session, "before_flush", between)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.orm.Session, "before_flush", between)
    assert entered


@pytest.fixture
def tracker(tmp_path: Path, empty_store: Path) -> track.Tracker:
    """Of a run in a store of its own."""
    shutil.copy(empty_store, tmp_path)
    made = track.Tracker.__new__(track.Tracker)
    made.client, made.params = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), Params()
    made.run_id = made.client.create_run("0").info.run_id
    return made


def test_pictures_that_another_checkout_enters_at_the_same_moment_are_the_runs_too(
    finished: Clone, tracker: track.Tracker, tmp_path: Path
) -> None:
    with another_enters_first(tmp_path / "mlflow.db", "datasets", dataset_uuid="theirs"):
        tracker._log_dataset(DataFolder(finished.folder, "data"))
    (used,) = tracker.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert used.dataset.name == "emoji"
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        assert other.execute("SELECT dataset_uuid FROM datasets").fetchall() == [("theirs",)]


def test_parameters_that_another_checkout_enters_at_the_same_moment_are_no_error(
    finished: Clone, tracker: track.Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "stage_metrics", stop)  # what is logged next
    with another_enters_first(tmp_path / "mlflow.db", "params"), pytest.raises(KeyboardInterrupt):
        tracker.log_result(DataFolder(finished.folder, "data"))
    assert tracker.client.get_run(tracker.run_id).data.params == track.comparable(Params())


def stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_a_tag_that_another_checkout_sets_at_the_same_moment_is_no_error(tracker: track.Tracker, tmp_path: Path) -> None:
    with another_enters_first(tmp_path / "mlflow.db", "tags", value="theirs"):
        tracker._tag({"chosen": "head"})
    assert tracker.client.get_run(tracker.run_id).data.tags["chosen"] == "head"
