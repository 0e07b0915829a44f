"""A classifier answers the same wherever it is: in training, in evaluation, in the package."""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image
from safetensors.torch import load_file, save_file

from headstart.base.artifacts import DATA, DataFolder, ModelFolder, PackageFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.head import HeadDetails
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.identity import code_used_by
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation import report
from headstart.inference.package import MODEL, REQUIREMENTS, package
from headstart.inference.predictor import Predictor, load_predictor
from headstart.inference.provenance import write_sums
from headstart.models import weights
from headstart.models.backbones import architecture
from headstart.models.heads import MlpHead
from headstart.training import features, finetune, linear_probe
from headstart.training.feature_files import load_features
from headstart.training.finetuned import load_val_logits
from headstart.training.head_files import load_head
from tests.training.test_finetune import SMALL

PROJECT = Path(__file__).parents[2]
PARAMS = {
    "backbone": "small.py:net",
    "weights": "small.safetensors",
    "data": {"source": "pictures"},
    "split": {"val": 0.3, "test": 0.3, "near_duplicate_bits": 0},
    "head": {"kind": "mlp", "C": [0.1, 10.0]},
    "finetune": {"unfreeze": "last", "epochs": 2, "batch_size": 8, "lr": 0.01, "head_lr": 0.01},
    "evaluate": {"bootstrap": 100, "mistakes": 0},
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """The pipeline's folder, every stage run on forty small pictures with an MLP as head and its last layers fine-tuned."""
    monkeypatch.chdir(tmp_path)
    return stages_run(Params.model_validate(PARAMS))


def stages_run(params: Params) -> DataFolder:
    """The folder of the stages up to evaluate, run in the current folder."""
    shutil.copy(PROJECT / "dvc.yaml", "dvc.yaml")
    Path("small.py").write_text(SMALL)
    torch.manual_seed(0)
    save_file(architecture("small.py:net", Path("small.py")).whole().state_dict(), "small.safetensors")
    rng = np.random.default_rng(0)
    for number in range(40):
        colour = ("blue", "red")[number % 2]
        picture = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        picture[..., 0 if colour == "red" else 2] += 80
        Path("pictures", colour).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(f"pictures/{colour}/{number}.png")
    folder = DATA
    for run in (fetch.run, prepare.run, weights.run, features.run, linear_probe.run):
        run(params, folder)
    finetune.run(params, folder, lambda data, params: lambda row: None)
    report.run(params, folder)
    return folder


def test_a_head_with_a_hidden_layer_has_the_same_logits_everywhere(data: DataFolder) -> None:
    manifest, pixels = read_manifest(data / "prepare"), Pixels(data / "prepare")
    assert HeadDetails.read(data.head.details).kind == "mlp"
    assert FinetuneDetails.read(data.finetune.details).blocks_unfrozen == 1
    pictures = {s: [pixels[int(row)] for row in np.flatnonzero(manifest["split"] == s)] for s in ("val", "test")}
    in_evaluation = report._classifiers(data)
    classifiers: tuple[Name, ...] = ("head", "finetune")
    for chosen in classifiers:
        Metrics.read(data.evaluate.metrics).model_copy(update={"chosen": chosen}).write(data.evaluate.metrics)
        package(data, Params.model_validate(PARAMS), PackageFolder(data, chosen))
        packed = Predictor(PackageFolder(data, chosen).model.classifier).model
        assert isinstance(packed.head, MlpHead)
        assert packed.temperature == in_evaluation[chosen].temperature
        with torch.inference_mode():
            logits = {split: packed(packed.trunk.view.batch(seen)) for split, seen in pictures.items()}
            view = in_evaluation[chosen].trunk.view
            assert torch.equal(in_evaluation[chosen](view.batch(pictures["test"])), logits["test"])
        if chosen == "head":
            expected = load_head(data / "head", refit=True).logits(load_features(data / "features", "test")[0])
            torch.testing.assert_close(logits["test"], expected, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(logits["val"], load_val_logits(data / "finetune"), rtol=1e-4, atol=1e-4)
    assert "head.hidden.weight" in load_file(PackageFolder(data, "head").model.classifier.weights)


@pytest.fixture
def model(data: DataFolder) -> ModelFolder:
    package(data, Params.model_validate(PARAMS), data.package)
    return data.package.model


def test_the_digests_of_all_files_are_in_the_model_as_sha256sum_writes_them(model: ModelFolder) -> None:
    checked = subprocess.run(["sha256sum", "--check", model.sums.name], cwd=model, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    names = {line.split(": ")[0] for line in checked.stdout.splitlines()}
    assert names == {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file() and p != model.sums}
    assert any(name.startswith("code/headstart/") for name in names)


def test_mlflow_answers_pictures_in_every_form_and_refuses_the_rest_in_a_sentence(model: ModelFolder) -> None:
    path = "pictures/red/1.png"
    content = Path(path).read_bytes()
    text, array = base64.b64encode(content).decode(), np.asarray(Image.open(path))
    (expected,) = load_predictor(model).predict([path])
    loaded = mlflow.pyfunc.load_model(str(model))
    # The model's own code has answered, and this process has its own headstart back.
    assert Path(_home(loaded)).resolve().is_relative_to(model.resolve())
    assert Path(importlib.import_module("headstart.inference.predictor").__file__ or "").is_relative_to(PROJECT)
    given: list[Any] = [
        [path], [Path(path)], [content], [array], path, content, array, np.array([path]), np.stack([array, array]),
        pd.DataFrame({"image": [path]}), pd.DataFrame({"picture": [path]}), pd.Series([path]),
        pd.DataFrame({"id": [1], "image": [path]}), [{"image": path}], {"image": [path, text]}, {"image": path},
    ]  # fmt: skip
    for pictures in given:
        answers = loaded.predict(pictures)
        assert list(answers.columns) == ["label", "probability", "blue", "red"]
        assert set(answers["label"]) == {expected.label}
        assert answers["probability"].tolist() == pytest.approx([expected.probability] * len(answers))
    assert len(loaded.predict([path, content, text])) == 3
    assert loaded.predict([]).empty
    bodies: list[tuple[dict[str, Any], int]] = [
        ({"inputs": [text, text]}, 2), ({"instances": [text]}, 1), ({"inputs": text}, 1), ({"inputs": [[text]]}, 1),
        ({"inputs": {"image": [text, text]}}, 2), ({"inputs": [{"image": text}]}, 1), ({"inputs": {"image": text}}, 1),
        ({"instances": [{"image": text}, {"image": text}]}, 2), ({"inputs": array.tolist()}, 1),
        ({"dataframe_split": {"columns": ["image"], "data": [[text]]}}, 1), ({"dataframe_records": [{"image": text}]}, 1),
        ({"inputs": []}, 0), ({"inputs": [array.tolist()] * 2}, 2),
    ]  # fmt: skip
    for body, count in bodies:
        answered = invocations(json.dumps(body), "application/json", loaded, loaded.metadata.get_input_schema())
        assert (answered.status, len(json.loads(answered.response)["predictions"])) == (200, count)
    refused: list[dict[str, Any]] = [
        {"inputs": ["no picture"]}, {"instances": [5]}, {"inputs": None}, {"inputs": {"a": [text], "b": [text]}},
        {"inputs": [text[:200]]}, {"dataframe_records": [{"image": None}]}, {"inputs": [[1, 2], [3]]}, {"inputs": [{}]},
    ]  # fmt: skip
    for body in refused:
        with pytest.raises(mlflow.MlflowException) as refusal:
            invocations(json.dumps(body), "application/json", loaded, loaded.metadata.get_input_schema())
        assert refusal.value.get_http_status_code() == 400
        assert "Traceback" not in refusal.value.serialize_as_json()
        assert "stack_trace" not in json.loads(refusal.value.serialize_as_json())


def test_the_models_requirements_bring_all_that_its_code_imports() -> None:
    libraries = set(code_used_by(MODEL).libraries)
    assert libraries - set(REQUIREMENTS) == {"scipy"}
    assert any(needed.startswith("scipy") for needed in importlib.metadata.requires("mlflow") or ())


def _home(loaded: Any) -> str:
    """Where the code of the loaded predictor stands."""
    return str(type(loaded.unwrap_python_model().predictor).predict.__code__.co_filename)


def test_two_models_in_one_process_each_answer_by_their_own_code(model: ModelFolder, tmp_path: Path) -> None:
    other = ModelFolder(shutil.copytree(model, tmp_path / "other"))
    code = other / "code/headstart/inference/predictor.py"
    code.write_text(code.read_text().replace("yield Prediction(label, confidence,", "yield Prediction(label, -confidence,"))
    write_sums(other)
    first, second = (mlflow.pyfunc.load_model(str(folder)) for folder in (model, other))
    again = mlflow.pyfunc.load_model(str(model))
    probabilities = [loaded.predict(["pictures/red/1.png"])["probability"][0] for loaded in (first, second, again)]
    assert probabilities[0] == -probabilities[1] == probabilities[2]
    code = (
        "import sys, mlflow\nmodels = [mlflow.pyfunc.load_model(path) for path in sys.argv[1:]]\n"
        "print([round(float(m.predict(['pictures/red/1.png'])['probability'][0]), 4) for m in models])"
    )
    environment = {"PATH": "/usr/bin:/bin", "MLFLOW_DISABLE_TELEMETRY": "true"}  # where headstart is not imported before
    done = subprocess.run(
        [sys.executable, "-c", code, str(other), str(model)], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [round(-probabilities[0], 4), round(probabilities[0], 4)]
