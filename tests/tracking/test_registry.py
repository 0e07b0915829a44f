"""A version per result, one champion, and nothing half done, in a real MLflow store."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from headstart.base.errors import HeadstartError
from headstart.base.files import write_json
from headstart.base.params import Params
from headstart.tracking import registry as registry_module
from headstart.tracking import saved_view, store
from headstart.tracking.model_card import LONGEST_DESCRIPTION, description
from headstart.tracking.registry import KEPT, Registry, Version


class Bench:
    """A checkout with an MLflow store of its own, and results to register in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = mlflow.MlflowClient(store.uri())
        self.registry = Registry(Params())

    def logged(self, result: str) -> tuple[str, str]:
        """A run and its model, as track leaves them: their ids."""
        with store.opened() as client:
            experiment = store.experiment_id(client, "headstart-emoji")
        run: str = self.client.create_run(experiment, tags={store.RESULT: result}).info.run_id
        manifest = self.folder / "manifest.parquet"
        pd.DataFrame({"sha256": [f"{result}-a", f"{result}-b", "c"], "split": ["train", "val", "test"]}).to_parquet(
            manifest
        )
        self.client.log_artifact(run, str(manifest), "data")
        model = self.folder / "model"
        (model / "artifacts").mkdir(parents=True, exist_ok=True)
        (model / "MLmodel").write_text(f"of {result}")
        (model / "artifacts" / "weights").write_text(result * 100)
        logged = self.client.create_logged_model(experiment, "model", source_run_id=run)
        self.client.log_model_artifacts(logged.model_id, str(model))
        return run, logged.model_id

    def registered(self, result: str) -> Version:
        run, model = self.logged(result)
        return self.registry.register(run, result, model, f"# Card of {result}", {"headstart.data": "d" * 64})

    def versions(self) -> list[int]:
        return sorted(int(version.version) for version in self.client.search_model_versions("name='headstart-emoji'"))

    def champion(self) -> int | None:
        found = self.registry.champion()
        return None if found is None else found.number

    def tags(self, number: int) -> dict[str, str]:
        tags: dict[str, str] = self.client.get_model_version("headstart-emoji", str(number)).tags
        return tags


@pytest.fixture
def bench(checkout_with_store: Path) -> Bench:
    return Bench(checkout_with_store)


# --- versions -----------------------------------------------------------------------------------------------------------


def test_a_result_is_one_version_however_often_it_is_registered(bench: Bench) -> None:
    first = bench.registered("aaa")
    assert (first.number, first.result, first.outcome) == (1, "aaa", None)
    assert bench.registered("aaa") == first
    assert bench.versions() == [1]


def test_a_version_carries_its_card_its_lineage_and_its_run(bench: Bench) -> None:
    version = bench.registered("aaa")
    found = bench.client.get_model_version("headstart-emoji", "1")
    assert found.description == "# Card of aaa"
    assert found.tags == {"headstart.result": "aaa", "headstart.data": "d" * 64}
    assert found.run_id == version.run_id
    assert bench.client.get_run(version.run_id).data.tags["headstart.result"] == "aaa"


def test_the_view_of_an_experiment_follows_headstart_and_what_people_wrote_stays(bench: Bench) -> None:
    with store.opened() as client:
        experiment = store.experiment_id(client, "headstart")
    tags = bench.client.get_experiment(experiment).tags
    without = json.dumps({"state": json.dumps({"selectedColumns": ["tags.`trained`"]})})
    theirs = {saved_view.VIEW_TAG: without, "mlflow.sharedViewState.theirs": without, "mlflow.note.content": "our words"}
    for key, value in theirs.items():
        bench.client.set_experiment_tag(experiment, key, value)
    for _ in range(2):
        with store.opened() as client:
            assert store.experiment_id(client, "headstart") == experiment
        now = bench.client.get_experiment(experiment).tags
        assert {key: now[key] for key in [*theirs][1:]} == {key: theirs[key] for key in [*theirs][1:]}
        view = json.loads(now[saved_view.VIEW_TAG])
        assert view["state"] == json.loads(tags[saved_view.VIEW_TAG])["state"]
        assert "tags.`source`" in view["state"]
        assert now == bench.client.get_experiment(experiment).tags
        theirs[saved_view.VIEW_TAG] = now[saved_view.VIEW_TAG]


def test_the_newest_result_is_the_challenger(bench: Bench) -> None:
    assert bench.registry.challenger() is None
    bench.registered("aaa")
    newest = bench.registered("bbb")
    assert bench.registry.challenger() == newest
    assert bench.registry.champion() is None


def test_a_result_that_is_decided_is_no_challenger_again(bench: Bench) -> None:
    old = bench.registered("aaa")
    bench.registry.decide(old, "refused", "too slow")
    newest = bench.registered("bbb")
    bench.registered("aaa")
    assert bench.registry.challenger() == newest


def test_a_version_is_found_by_its_result_and_by_its_number(bench: Bench) -> None:
    version = bench.registered("aaa")
    assert bench.registry.by_result("aaa") == bench.registry.version(1) == version
    assert bench.registry.by_result("zzz") is None


def test_a_version_that_is_not_there_is_said_with_those_that_are(bench: Bench) -> None:
    with pytest.raises(HeadstartError, match=r"no version 7 in the registry; it has none; run `headstart track`"):
        bench.registry.version(7)
    bench.registered("aaa")
    bench.registered("bbb")
    with pytest.raises(HeadstartError, match=r"no version 7 in the registry; it has 1, 2$"):
        bench.registry.version(7)


def test_a_twin_that_another_checkout_registered_at_the_same_moment_goes(bench: Bench) -> None:
    bench.registered("aaa")
    bench.client.create_model_version("headstart-emoji", "file:///elsewhere", tags={store.RESULT: "aaa"})
    bench.client.create_model_version("headstart-emoji", "file:///elsewhere", tags={store.RESULT: "bbb"})
    assert bench.registered("aaa").number == 1
    assert bench.versions() == [1, 3]


def test_many_who_register_the_same_at_once_end_with_one_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lock of the checkout, as from several machines."""
    logged = bench.logged("aaa")
    monkeypatch.setattr("filelock.FileLock", lambda path: threading.Lock())
    found: list[int] = []

    def register() -> None:
        found.append(bench.registry.register(logged[0], "aaa", logged[1], "card", {}).number)

    bench.client.create_registered_model("headstart-emoji")
    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4
    assert bench.versions() == [found[0]]


def test_without_a_name_there_is_no_registry() -> None:
    with pytest.raises(HeadstartError, match=r"registry.model is null.*run `headstart track`"):
        Registry(Params.model_validate({"registry": {"model": None}}))


# --- files --------------------------------------------------------------------------------------------------------------


def test_a_version_is_downloaded_whole_and_once(bench: Bench) -> None:
    version = bench.registered("aaa")
    folder = bench.registry.download(version)
    assert folder.parent == bench.folder / ".headstart" / "models"
    assert folder.name.startswith("headstart-emoji-1")
    assert (folder / "MLmodel").read_text() == "of aaa"
    assert (folder / "artifacts" / "weights").read_text() == "aaa" * 100
    (folder / "MLmodel").write_text("kept")
    assert bench.registry.download(version) == folder
    assert (folder / "MLmodel").read_text() == "kept"


def test_what_a_killed_download_left_behind_goes_and_is_never_taken_for_a_model(bench: Bench) -> None:
    version = bench.registered("aaa")
    half = bench.folder / ".headstart" / "models" / ".half"
    half.mkdir(parents=True)
    (half / "MLmodel").write_text("half")
    assert (bench.registry.download(version) / "MLmodel").read_text() == "of aaa"
    assert not half.exists()


def test_a_download_that_fails_leaves_nothing(bench: Bench) -> None:
    version = bench.registered("aaa")
    shutil.rmtree(bench.folder / "mlartifacts")
    with pytest.raises(HeadstartError):
        bench.registry.download(version)
    assert not list((bench.folder / ".headstart" / "models").iterdir())


def test_the_models_on_disk_are_the_last_ones_used(bench: Bench) -> None:
    models = bench.folder / ".headstart" / "models"
    for result in "abcdef"[: KEPT + 2]:
        folder = bench.registry.download(bench.registered(result * 3))
        write_json(models / "counted.json", {})  # of `headstart models`, newer than any
    kept = [path for path in models.iterdir() if path.is_dir()]
    assert len(kept) == KEPT
    assert folder in kept


def test_a_version_knows_its_pictures_and_which_it_learned_from(bench: Bench) -> None:
    version = bench.registered("aaa")
    assert bench.registry.pictures(version) == {"aaa-a", "aaa-b", "c"}
    assert bench.registry.learned(version) == {"aaa-a", "aaa-b"}


def test_a_model_from_elsewhere_does_not_say_its_pictures(bench: Bench) -> None:
    bench.registered("aaa")
    run = bench.client.create_run("0").info.run_id
    bench.client.create_model_version("headstart-emoji", "file:///elsewhere", run)
    with pytest.raises(HeadstartError, match=r"run of version 2 of headstart-emoji does not say which pictures"):
        bench.registry.pictures(bench.registry.version(2))


# --- the champion -------------------------------------------------------------------------------------------------------


def test_a_promotion_is_recorded_on_the_version_and_on_the_model(bench: Bench) -> None:
    first, second = bench.registered("aaa"), bench.registered("bbb")
    bench.registry.promote(first, "the first")
    bench.registry.promote(second, "better on   the new\ncamera")
    assert bench.champion() == 2
    record = json.loads(bench.tags(2)["headstart.promotion"])
    assert (record["before"], record["champion"], record["why"]) == (1, 2, "better on the new camera")
    assert "@" in record["who"]
    assert record["when"].endswith("+00:00")
    assert json.loads(bench.client.get_registered_model("headstart-emoji").tags["headstart.champion"]) == record
    assert bench.registry.champion() == Version(2, second.run_id, "bbb", "promoted", "better on the new camera")


def test_the_champion_is_not_promoted_again(bench: Bench) -> None:
    version = bench.registered("aaa")
    bench.registry.promote(version, "the first")
    with pytest.raises(HeadstartError, match="version 1 of headstart-emoji is the champion already"):
        bench.registry.promote(version, "again")


@pytest.mark.parametrize(("why", "sentence"), [("", "say why"), (" \n", "say why"), ("x" * 1001, "1001 characters")])
def test_a_change_by_hand_needs_a_reason(bench: Bench, why: str, sentence: str) -> None:
    version = bench.registered("aaa")
    with pytest.raises(HeadstartError, match=sentence):
        bench.registry.promote(version, why)
    with pytest.raises(HeadstartError, match=sentence):
        bench.registry.rollback(why)
    assert bench.champion() is None


def test_a_rollback_goes_to_the_champion_before_and_is_recorded(bench: Bench) -> None:
    for result in ("aaa", "bbb", "ccc"):
        bench.registry.promote(bench.registered(result), f"for {result}")
    assert bench.registry.rollback("customers complain").number == 2
    assert bench.champion() == 2
    assert bench.registry.version(3).outcome == "rolled back"
    assert bench.registry.version(3).decision == "customers complain"
    assert bench.registry.version(2).outcome == "promoted"
    record = json.loads(bench.client.get_registered_model("headstart-emoji").tags["headstart.champion"])
    assert (record["outcome"], record["champion"], record["before"]) == ("rolled back", 2, 3)
    assert bench.registry.rollback("they still do").number == 1
    with pytest.raises(HeadstartError, match="no champion before version 1 of headstart-emoji is on record"):
        bench.registry.rollback("and still")
    assert bench.champion() == 1


def test_a_rollback_passes_over_what_was_rolled_back_before(bench: Bench) -> None:
    first, second, third = (bench.registered(result) for result in ("aaa", "bbb", "ccc"))
    bench.registry.promote(first, "one")
    bench.registry.promote(second, "two")
    bench.registry.rollback("two is bad")
    bench.registry.promote(third, "three")
    assert bench.registry.rollback("three is bad too").number == 1


def test_two_that_were_promoted_in_turn_are_not_rolled_back_for_ever(bench: Bench) -> None:
    first, second = bench.registered("aaa"), bench.registered("bbb")
    for version in (first, second, first):
        bench.registry.promote(version, "in turn")
    assert bench.registry.rollback("bad").number == 2
    with pytest.raises(HeadstartError, match="no champion before version 2"):
        bench.registry.rollback("bad too")


def test_without_a_champion_there_is_nothing_to_roll_back(bench: Bench) -> None:
    with pytest.raises(HeadstartError, match="has no champion that could be rolled back"):
        bench.registry.rollback("why not")


def test_an_alias_that_was_moved_in_mlflow_counts(bench: Bench) -> None:
    first, second = bench.registered("aaa"), bench.registered("bbb")
    bench.registry.promote(first, "one")
    bench.client.set_registered_model_alias("headstart-emoji", "champion", "2")
    assert bench.champion() == 2
    third = bench.registered("ccc")
    bench.registry.promote(third, "three")
    assert bench.registry.rollback("bad").number == second.number


STEPS = ("set_registered_model_tag", "set_model_version_tag", "set_registered_model_alias", "delete_registered_model_tag")


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", ["promote", "rollback"])
def test_a_change_that_is_killed_anywhere_is_whole_or_was_not_begun(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str, step: str, nth: int
) -> None:
    for result in ("aaa", "bbb"):
        bench.registry.promote(bench.registered(result), f"for {result}")
    third = bench.registered("ccc")
    real, calls = getattr(mlflow.MlflowClient, step), 0

    def killed(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, step, killed)
        with suppress(KeyboardInterrupt):
            bench.registry.promote(third, "better") if change == "promote" else bench.registry.rollback("worse")
    begun = (step, nth) != ("set_registered_model_tag", 1)
    after, judged, outcome = (3, 3, "promoted") if change == "promote" else (1, 2, "rolled back")
    assert bench.champion() == (after if begun else 2)
    assert "headstart.changing" not in bench.client.get_registered_model("headstart-emoji").tags
    assert bench.registry.version(judged).outcome == (outcome if begun else {2: "promoted", 3: None}[judged])
    last = json.loads(bench.client.get_registered_model("headstart-emoji").tags["headstart.champion"])
    assert last["champion"] == bench.champion()


def test_a_change_to_a_version_that_was_deleted_since_is_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.promote(bench.registered("aaa"), "one")
    second = bench.registered("bbb")
    with monkeypatch.context() as patch:
        patch.setattr(registry_module.Registry, "_carry_through", lambda *_: None)  # killed right after it was written down
        bench.registry.promote(second, "two")
    bench.client.delete_model_version("headstart-emoji", "2")
    assert bench.champion() == 1
    assert "headstart.changing" not in bench.client.get_registered_model("headstart-emoji").tags


# --- the store ----------------------------------------------------------------------------------------------------------


def test_a_store_that_does_not_answer_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(HeadstartError, match=r"MLflow at http://127.0.0.1:9 does not answer .*unset MLFLOW_TRACKING_URI"):
        bench.registry.champion()


@pytest.mark.parametrize("scheme", ["postgresql+psycopg2", "http", "sqlite"])
def test_a_store_that_is_out_of_reach_is_said_at_once_without_its_password(
    scheme: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow itself asks a database ten times, for 102 seconds. Here nobody ever takes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"anna:Geheim7@127.0.0.1:{server.getsockname()[1]}"
        (bench.folder / "junk.db").write_bytes(b"no database" * 1000)
        address = f"sqlite:///{bench.folder}/junk.db" if scheme == "sqlite" else f"{scheme}://{there}/mlflow"
        monkeypatch.setattr(store, "WAIT", 2)
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begun = time.monotonic()
        with pytest.raises(HeadstartError, match=r"MLflow at .* does not answer") as caught:
            bench.registry.champion()
    assert time.monotonic() - begun < 60
    assert "Geheim7" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///runs.db", "sqlite:///{}/runs.db"),
        ("sqlite:///sub/runs.db", "sqlite:///{}/sub/runs.db"),
        ("sqlite:////srv/runs.db", "sqlite:////srv/runs.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("mlruns", "file://{}/mlruns"),
        ("./mlruns", "file://{}/mlruns"),
        ("file:mlruns", "file://{}/mlruns"),
        ("file:///srv/mlruns", "file:///srv/mlruns"),
        ("/srv/mlruns", "file:///srv/mlruns"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        (None, "sqlite:///{}/mlflow.db"),
    ],
)
@pytest.mark.parametrize("below", [".", ".dvc/tmp/exps/tmp1"])
def test_a_relative_store_is_the_checkouts_also_in_an_experiments_folder(
    given: str | None, meant: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / below)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / below))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given or "")
    assert store.uri() == meant.format(tmp_path)


@pytest.mark.parametrize("below", [".", ".dvc/tmp/exps/tmp1"])
def test_a_checkout_may_have_any_name(below: str, tmp_path: Path, empty_store: Path) -> None:
    """In a process of its own: MLflow keeps what it has opened by the address, which is relative here."""
    folder = tmp_path / "a%20b c#d?e&f=50% (ü) @ 猫;+"
    (folder / below).mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    variables = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    code = "import sys; from tests.tracking.test_registry import in_any_folder; in_any_folder(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=folder / below, capture_output=True, text=True,
        env=variables | {"DVC_ROOT": str(folder / below), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]  # nothing was written beside it
    assert {path.name for path in folder.iterdir()} <= {
        ".dvc", ".headstart", "manifest.parquet", "mlartifacts", "mlflow.db", "model"
    }  # fmt: skip


def in_any_folder(folder: str) -> None:
    bench = Bench(Path(folder))
    version = bench.registered("aaa")
    assert (bench.registry.download(version) / "MLmodel").read_text() == "of aaa"
    assert bench.registry.learned(version) == {"aaa-a", "aaa-b"}


# --- what was deleted ---------------------------------------------------------------------------------------------------


def lose(bench: Bench, version: Version, how: str) -> None:
    """Delete in MLflow what a version was made from: its run, its run for good, its files, or its model."""
    if how == "files":
        shutil.rmtree(bench.folder / "mlartifacts")
    elif how == "model":
        experiment = bench.client.get_experiment_by_name("headstart-emoji").experiment_id
        for model in bench.client.search_logged_models([experiment]):
            bench.client.delete_logged_model(model.model_id)
        shutil.rmtree(bench.folder / "mlartifacts/models")
    else:
        bench.client.delete_run(version.run_id)
    if how == "gc":
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store.uri(), "--tracking-uri", store.uri()]
        subprocess.run(command, check=True, capture_output=True, cwd=bench.folder)


@pytest.mark.parametrize("how", ["run", "gc", "files", "model"])
def test_a_version_that_was_deleted_in_part_is_replaced_and_keeps_its_place(bench: Bench, how: str) -> None:
    old = bench.registered("aaa")
    bench.registry.promote(old, "the first")
    assert not bench.registry.is_lost(old)
    lose(bench, old, how)
    assert bench.registry.is_lost(old)
    with pytest.raises(HeadstartError, match=r"deleted in MLflow; .* `headstart track` logs it again; .*promote VERSION"):
        bench.registry.download(old)
    new = bench.registered("aaa")
    assert bench.registry.champion() == new
    assert (new.outcome, new.decision, bench.versions()) == ("promoted", "the first", [2])
    assert not bench.registry.is_lost(new)
    assert (bench.registry.download(new) / "MLmodel").read_text() == "of aaa"
    assert bench.registry.pictures(new) == {"aaa-a", "aaa-b", "c"}


def test_a_champion_that_was_deleted_in_part_can_be_replaced_by_another(bench: Bench) -> None:
    bench.registry.promote(bench.registered("aaa"), "the first")
    lose(bench, bench.registry.version(1), "gc")
    second = bench.registered("bbb")
    with bench.registry.artifact(bench.registry.version(1), "data/manifest.parquet") as file:
        assert file is None
    bench.registry.promote(second, "the first is gone")
    assert bench.registry.champion() == bench.registry.version(2)


@pytest.mark.parametrize(
    ("uri", "beside"),
    [
        (None, True),
        ("sqlite:////srv/mlflow.db", True),
        ("postgresql://anna@db/mlflow", True),
        ("https://mlflow.example.org", False),
    ],
)
def test_artifacts_of_a_database_are_in_the_checkout_and_a_server_decides_for_itself(
    uri: str | None, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    queued.mkdir(parents=True)
    monkeypatch.chdir(queued)
    monkeypatch.setenv("DVC_ROOT", str(queued))
    if uri is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.artifacts() == ((tmp_path.resolve() / "mlartifacts").as_uri() if beside else None)


@pytest.mark.parametrize("lines", [3, 400])
def test_a_card_fits_into_a_versions_description_in_whole_lines(lines: int) -> None:
    card = "".join(f"- line {n} of the card\n" for n in range(lines))
    text = description(card)
    assert len(text) <= LONGEST_DESCRIPTION
    assert text == card if lines == 3 else text.endswith("of the card\n\n(The whole card is MODEL_CARD.md of the run.)\n")
