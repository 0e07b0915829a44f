"""package: the chosen classifier as an MLflow model that needs neither this project nor a network to be used."""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.torch import save_file

from headstart import served
from headstart.backbones import CARD
from headstart.checkout import read_json, sha256_of_files, write_json, write_text
from headstart.data.pixels import Pixels
from headstart.data.prepare import read_manifest
from headstart.params import Params
from headstart.report import chosen_classifier

# The modules that a prediction needs; they travel inside the model.
PACKED_MODULES = (
    "__init__", "backbones", "checkout", "classifier", "errors", "mlflow_model", "served", "views",
    "data/__init__", "data/decode",
)  # fmt: skip
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "timm", "torch", "torchvision")
NO_TIME = "1970-01-01 00:00:00.000000"


def package(data: Path, params: Params, folder: Path) -> None:
    """Write the MLflow model into ``folder / "model"``; the same classifier gives the same bytes."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    model, chosen = chosen_classifier(data)
    card = read_json(data / "backbone" / CARD)
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch) / "classifier"
        parts.mkdir()
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, parts / served.WEIGHTS)
        details = {
            "backbone": card["name"],
            "weights": card["weights"],
            "preprocessing": model.trunk.view.as_dict(),
            "classes": list(model.classes),
            "temperature": model.temperature,
            "chosen": chosen,
            "max_megapixels": params.prepare.max_megapixels,
        }
        write_json(parts / served.DETAILS, details)
        shutil.copyfile(data / "fetch" / "network.py", parts / served.NETWORK)
        code = _packed_code(Path(scratch) / "code")
        outputs = [ColSpec("string", "label"), ColSpec("double", "probability")]
        outputs += [ColSpec("double", name) for name in model.classes]
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*An input example was not provided")  # it is written below
            mlflow.pyfunc.save_model(
                target,
                python_model=str(code / "mlflow_model.py"),
                artifacts={"classifier": str(parts)},
                code_paths=[str(code)],
                signature=ModelSignature(Schema([ColSpec(AnyType(), "image")]), Schema(outputs)),
                pip_requirements=[f"{name}=={_version(name)}" for name in REQUIREMENTS],
            )
        _input_example(data, target)
    _without_times_and_paths(target)


def _packed_code(folder: Path) -> Path:
    target = folder / "headstart"
    for module in PACKED_MODULES:
        path = target / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).parent / f"{module}.py", path)
    return target


def _version(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


def _input_example(data: Path, target: Path) -> None:
    """One test picture as base64, in the two forms MLflow keeps: a frame, and the body of a request to a server."""
    import base64
    import json

    manifest = read_manifest(data / "prepare")
    row = int(np.flatnonzero(manifest["split"] == "test")[0])
    stream = io.BytesIO()
    picture = Image.fromarray(Pixels(data / "prepare")[row])
    picture.thumbnail((128, 128))
    picture.save(stream, "JPEG", quality=85)
    frame = {"columns": ["image"], "data": [[base64.b64encode(stream.getvalue()).decode()]]}
    write_text(target / "input_example.json", json.dumps(frame))
    write_text(target / "serving_input_example.json", json.dumps({"dataframe_split": frame}))
    described = yaml.safe_load((target / "MLmodel").read_text(encoding="utf-8"))
    described["saved_input_example_info"] = {
        "artifact_path": "input_example.json",
        "pandas_orient": "split",
        "serving_input_path": "serving_input_example.json",
        "type": "dataframe",
    }
    write_text(target / "MLmodel", yaml.safe_dump(described, sort_keys=True))


def _without_times_and_paths(target: Path) -> None:
    """MLflow notes when and from where a model was saved, and a random id; none of them may reach the cache."""
    for cache in target.rglob("__pycache__"):
        shutil.rmtree(cache)
    described = yaml.safe_load((target / "MLmodel").read_text(encoding="utf-8"))
    function = described["flavors"]["python_function"]
    for artifact in function.get("artifacts", {}).values():
        artifact["uri"] = artifact["path"]
    function["model_code_path"] = Path(function["model_code_path"]).name
    described["utc_time_created"] = NO_TIME
    described.pop("model_id", None)
    described["model_uuid"] = sha256_of_files(target, leave_out=("MLmodel",))[:32]
    described.pop("run_id", None)
    write_text(target / "MLmodel", yaml.safe_dump(described, sort_keys=True))
