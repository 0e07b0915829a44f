"""A multi-label classifier, from the package to the page: any number of classes on a picture, each by its own threshold."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.artifacts.classifier import ClassifierDetails, Threshold, Thresholds
from headstart.base.artifacts.metrics import Metrics
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, write_json
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.evaluation import report
from headstart.inference.batch import BatchPredictor
from headstart.inference.export import DESCRIPTION, FORMS, export
from headstart.inference.package import package
from headstart.inference.predictor import load_predictor
from headstart.inference.selective import thresholds_by_class
from headstart.inference.server import Limits, application, model_info
from headstart.models import weights
from headstart.models.backbones import architecture
from headstart.models.task import MultiLabel
from headstart.training import features, finetune, linear_probe
from tests import test_cli
from tests.data.pictures import CANVAS_CLASSES, write_canvases
from tests.inference.test_batch import picture, put_network
from tests.inference.test_export import put_pictures, run_readme
from tests.inference.test_predictor import CLASSES, known, png, put_model
from tests.inference.test_server import PATIENCE_S, served
from tests.stages.test_ui import BROWSERS, browser_page
from tests.test_cli import Run
from tests.training.test_finetune import SMALL

run = test_cli.run  # a fixture
THRESHOLDS = (0.5, 0.6, 0.3)
COLOURS = {
    "black": [],
    "red": ["red"],
    "magenta": ["blue", "red"],
    "white": ["blue", "green", "red"],
    "grey": ["blue", "red"],
}


def plain(name: str) -> Image.Image:
    return Image.new("RGB", (20, 30), name)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in COLOURS:
        plain(name).save(f"{name}.png")
    return known(put_model(tmp_path / "model/artifacts/classifier", thresholds=THRESHOLDS))


def test_each_class_that_reaches_its_threshold_is_an_answer(model: Path) -> None:
    predictor = load_predictor(model)
    assert predictor.model.task == MultiLabel(THRESHOLDS)
    for (name, expected), answer in zip(COLOURS.items(), predictor.predict([f"{n}.png" for n in COLOURS]), strict=True):
        assert answer.label == ";".join(expected), name
        own = [p if c in expected else 1 - p for c, p in answer.probabilities.items()]
        assert answer.probability == pytest.approx(np.prod(own))
    batched = BatchPredictor(model, threads=1)
    found = batched.probabilities([np.asarray(plain(name)) for name in COLOURS])
    np.testing.assert_allclose(
        found, [list(a.probabilities.values()) for a in predictor.predict([*map(plain, COLOURS)])], 1e-4
    )


# --- headstart predict ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_every_form_names_all_classes(run: Run) -> None:
    files = [f"{name}.png" for name in COLOURS]
    asked = ("predict", *files, "--model", "model")
    code, out, err = run(*asked)
    assert (code, err) == (0, "")
    assert [re.split(r"  +", line.strip())[1:] for line in out.splitlines()] == [
        [", ".join(names) or "(none)", f"{colour}.png"] for colour, names in COLOURS.items()
    ]
    rows = [json.loads(line) for line in run(*asked, "--format", "json")[1].splitlines()]
    assert [row["labels"] for row in rows] == list(COLOURS.values())
    assert [row["label"] for row in rows] == [";".join(names) for names in COLOURS.values()]
    assert list(rows[0]) == ["image", "label", "labels", "probability", "probabilities"]
    table = list(csv.DictReader(io.StringIO(run(*asked, "--format", "csv")[1])))
    assert list(table[0]) == ["image", "label", "probability", *CLASSES]
    assert [row["label"] for row in table] == [row["label"] for row in rows]
    assert run(*asked, "--output", "a.parquet")[0] == 0
    stored = pq.read_table("a.parquet")
    assert stored.column_names == ["image", "label", "probability", *CLASSES]
    assert stored["label"].to_pylist() == [row["label"] for row in rows]
    assert [row["red"] for row in stored.to_pylist()] == [row["probabilities"]["red"] for row in rows]


def promised(confidence: float, bound: float = 0.04) -> Thresholds:
    rows = [Threshold(confidence=0.0, answered=1.0, error=0.2, bound=0.3)]
    rows.append(Threshold(confidence=confidence, answered=0.8, error=0.01, bound=bound))
    return Thresholds(pictures=400, sure=0.95, thresholds=rows)


def with_tables(model: Path, tables: dict[str, Thresholds]) -> None:
    details = model / "artifacts/classifier/classifier.json"
    ClassifierDetails.read(details).model_copy(update={"answering_by_class": tables}).write(details)
    known(details.parent)


def test_a_class_whose_decision_is_not_confident_enough_is_named_as_unsure(run: Run, model: Path) -> None:
    with_tables(model, {"blue": promised(0.9), "green": promised(0.95), "red": promised(0.5)})
    asked = ("predict", "magenta.png", "grey.png", "--model", "model", "--max-error", "0.05")
    code, out, err = run(*asked)
    assert code == 0
    shown = [re.split(r"  +", line.strip())[1:] for line in out.splitlines()]
    assert shown == [["blue, red", "magenta.png"], ["red", "unsure: blue, green", "grey.png"]]
    assert err == (
        "headstart: 4 of 6 decisions (2 pictures, 3 classes) answered, those of probability 0.500 to 0.950, by class, and "
        "more; on validation that was 80% of the decisions, and 1.0% of these were wrong\n"
    )
    rows = [json.loads(line) for line in run(*asked, "--format", "json")[1].splitlines()]
    assert [(row["label"], row["labels"], row["unsure"]) for row in rows] == [
        ("blue;red", ["blue", "red"], []),
        ("red", ["red"], ["blue", "green"]),
    ]
    table = list(csv.DictReader(io.StringIO(run(*asked, "--format", "csv")[1])))
    assert list(table[0]) == ["image", "label", "probability", "unsure", *CLASSES]
    assert [(row["label"], row["unsure"]) for row in table] == [("blue;red", ""), ("red", "blue;green")]
    assert run(*asked, "--output", "a.parquet")[0] == 0
    stored = pq.read_table("a.parquet").to_pylist()
    assert [(row["label"], row["unsure"]) for row in stored] == [("blue;red", ""), ("red", "blue;green")]
    everything = run(*asked[:-1], "0.5", "--format", "json")[1].splitlines()
    assert [json.loads(line)["unsure"] for line in everything] == [[], []]


def test_the_class_that_can_promise_least_is_named_with_what_it_can(run: Run, model: Path) -> None:
    code, out, err = run("predict", "red.png", "--model", "model", "--max-error", "0.05")
    assert (code, out) == (1, "")
    assert err.startswith("headstart: this model was packaged without thresholds for --max-error")
    with_tables(model, {"blue": promised(0.9), "green": promised(0.9, 0.21), "red": promised(0.9, 0.11)})
    code, out, err = run("predict", "red.png", "--model", "model", "--max-error", "0.05")
    assert (code, out) == (1, "")
    promise = "headstart: --max-error 0.05: no threshold can promise that for 'green' after 400 validation pictures."
    assert err.startswith(f"{promise} The least is 0.210,")
    assert run("predict", "red.png", "--model", "model", "--max-error", "0.21")[0] == 0
    with pytest.raises(HeadstartError, match=r"--max-error 1\.5; give a share"):
        thresholds_by_class(1.5, {"a": promised(0.5)})


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_the_server_and_its_page_name_all_classes(tmp_path: Path) -> None:
    folder = known(put_model(tmp_path / "data/package/model/artifacts/classifier", thresholds=THRESHOLDS))
    figures = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "n": 70}
    measured = {"chosen": "head", "val": {}, "test": {"chosen": figures}, "thresholds": THRESHOLDS}
    write_json(DataFolder(tmp_path, "data").evaluate.metrics, measured)
    batched = BatchPredictor(folder)
    about = model_info(folder, batched, Limits())
    with TestClient(application(batched, about, Limits(), "ready")) as client:
        assert client.get("/model").json()["task"] == "multi-label"
        page = client.get("/").text
        assert 'all labels right on\n<span class="whole">90.0% (80.0–95.0)</span> of 70 test pictures' in page
        assert "It answers with any number of: blue, green, red." in page
        for name, expected in COLOURS.items():
            answer = client.post("/predict", content=png(plain(name))).json()
            assert (answer["label"], answer["labels"]) == (";".join(expected), expected)
            assert list(answer) == ["label", "labels", "probability", "probabilities"]
        explained = client.post("/explain", content=png(plain("#000010"))).json()
        assert (explained["labels"], explained["explained"]) == ([], "blue")
    single = BatchPredictor(known(put_model(tmp_path / "single/artifacts/classifier")))
    with TestClient(application(single, model_info(tmp_path / "single", single, Limits()), Limits(), "ready")) as client:
        assert client.get("/model").json()["task"] == "single-label"
        assert list(client.post("/predict", content=png(plain("red"))).json()) == ["label", "probability", "probabilities"]


@pytest.mark.browser
def test_the_page_shows_all_classes(tmp_path: Path) -> None:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    folder = put_model(tmp_path / "model/artifacts/classifier", thresholds=THRESHOLDS).parents[1]
    with served(folder) as server, browser_page(tmp_path / "profile") as page:
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(server.address)
        for name, said in (("magenta", "blue, red"), ("black", "(none)")):
            plain(name).save(tmp_path / f"{name}.png")
            page.set_input_files("#file", tmp_path / f"{name}.png")
            page.get_by_role("status").filter(has_text=said).wait_for()
            assert page.get_by_role("status").inner_text() == said
            assert page.locator("#bars button").count() == len(CLASSES)


# --- exports ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged multi-label model with a real, small network, and pictures as prepare leaves them."""
    folder = tmp_path_factory.mktemp("project")
    put_network(folder / "model")
    details = folder / "model/artifacts/classifier/classifier.json"
    write_json(details, read_json(details) | {"task": "multi-label", "thresholds": [0.4, 0.5, 0.6]})
    (folder / "data").mkdir()
    manifest = put_pictures(folder / "data")
    manifest["labels"] = [list(CLASSES[: n % 4]) for n in range(len(manifest))]
    manifest["label"] = manifest["labels"].map(";".join)
    manifest.to_parquet(DataFolder(folder, "data").prepare.manifest)
    return folder


@pytest.mark.parametrize("to", FORMS)
def test_an_export_answers_with_the_classes_at_or_above_their_thresholds(to: str, project: Path, tmp_path: Path) -> None:
    export(project / "model", to, DataFolder(project, "data"), tmp_path / "out", 0.99)
    about = read_json(tmp_path / "out" / DESCRIPTION)
    assert about["thresholds"] == [0.4, 0.5, 0.6]
    if to == "int8":
        assert 0 < about["checked"]["same_answer"] <= 1
        return
    assert about["checked"]["largest_difference"] <= 1e-3
    predictor, counts = load_predictor(project / "model"), set()
    for number in range(4):
        picture(number, 200, 300).save(tmp_path / "out/picture.jpg", quality=95)
        done = run_readme(tmp_path / "out")
        assert done.returncode == 0, done.stderr
        (answer,) = predictor.predict([tmp_path / "out/picture.jpg"])
        printed = {name: float(p) for name, p in (line.split() for line in done.stdout.splitlines())}
        counts.add(len(printed))
        for (name, p), least in zip(answer.probabilities.items(), about["thresholds"], strict=True):
            if abs(p - least) > 0.02:  # Pillow resizes there and torch does here
                assert (name in printed) == (p >= least)
            assert printed.get(name, p) == pytest.approx(p, abs=0.02)
    assert len(counts) > 1


def test_what_int8_costs_is_not_measured_on_pictures_of_another_task(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    put_pictures(tmp_path / "data")
    with pytest.raises(HeadstartError, match="which are single-label, and the model is multi-label"):
        export(project / "model", "int8", DataFolder(tmp_path, "data"), tmp_path / "out", 0.99)


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every stage up to package was run on a small multi-label set."""
    folder = tmp_path_factory.mktemp("packaged")
    table = write_canvases(folder / "pictures", 80, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("small.py").write_text(SMALL)
        torch.manual_seed(0)
        save_file(architecture("small.py:net", Path("small.py")).whole().state_dict(), "small.safetensors")
        params = Params.model_validate(
            {
                "backbone": "small.py:net", "weights": "small.safetensors", "data": {"source": str(table)},
                "split": {"val": 0.3, "test": 0.3, "near_duplicate_bits": 0}, "finetune": {"unfreeze": "none"},
                "evaluate": {"bootstrap": 100, "mistakes": 0},
            }
        )  # fmt: skip
        for step in (fetch.run, prepare.run, weights.run, features.run, linear_probe.run):
            step(params, DATA)
        finetune.run(params, DATA, lambda data, params: lambda row: None)
        report.run(params, DATA)
        package(DATA, params, DATA.package)
    return folder


def test_the_package_holds_task_thresholds_and_a_table_for_each_class(packaged: Path) -> None:
    data = DataFolder(packaged, "data")
    details, measured = ClassifierDetails.read(data.package.model.classifier.details), Metrics.read(data.evaluate.metrics)
    assert details.task == "multi-label"
    assert details.thresholds == list(measured.thresholds or ())
    assert details.answering is None
    assert details.answering_by_class is not None
    assert list(details.answering_by_class) == details.classes == sorted(CANVAS_CLASSES)
    table = pd.read_parquet(data.evaluate.predictions)
    val = table[table["split"] == "val"]
    for name, least in zip(details.classes, details.thresholds, strict=True):
        is_there = val["label"].str.split(";").map(lambda names, name=name: name in names)
        everything = details.answering_by_class[name].thresholds[0]
        assert everything.answered == 1
        assert everything.error == pytest.approx(((val[name] >= least) != is_there).mean())
        said = val["predicted"].str.split(";").map(lambda names, name=name: name in names)
        assert ((val[name] >= least) == said).all()


def test_the_packaged_model_answers_as_evaluation_did_in_mlflow_too(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packaged)
    data = DataFolder(packaged, "data")
    table = pd.read_parquet(data.evaluate.predictions)
    test = table[table["split"] == "test"].head(12)
    files = [str(packaged / "pictures" / name) for name in test["image"]]
    answers = load_predictor(data.package.model).predict(files)
    names = ClassifierDetails.read(data.package.model.classifier.details).classes
    for answer, (_, row) in zip(answers, test.iterrows(), strict=True):
        assert [*answer.probabilities.values()] == pytest.approx([row[name] for name in names], abs=0.02)
    by_mlflow = mlflow.pyfunc.load_model(str(data.package.model)).predict(files)
    assert list(by_mlflow.columns) == ["label", "probability", "unfamiliar", "nearest", *names]
    assert by_mlflow["unfamiliar"].tolist() == [answer.unfamiliar for answer in answers]
    assert by_mlflow["label"].tolist() == [answer.label for answer in answers]
    code = "import sys, mlflow\nprint(*mlflow.pyfunc.load_model(sys.argv[1]).predict(sys.argv[2:])['label'], sep='\\n')"
    environment: dict[str, Any] = {"PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(data.package.model), *files],
        cwd=packaged, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == by_mlflow["label"].tolist()
