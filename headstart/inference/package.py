"""The stage package: the chosen classifier as an MLflow model that works without this project and without network."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from headstart.base.arrays import Bools, Ints
from headstart.base.artifacts import ClassifierFolder, DataFolder, PackageFolder
from headstart.base.artifacts.card import Card, Preprocessing
from headstart.base.artifacts.classifier import ClassifierDetails
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.head import REFIT, HeadDetails
from headstart.base.artifacts.members import first_of, member_folders
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.device import set_up
from headstart.base.files import sha256_of_files, write_text
from headstart.base.identity import PACKAGE, modules_of
from headstart.base.params import Params
from headstart.base.private_names import list_no_packages_in_mlflow
from headstart.base.progress import progress
from headstart.base.source_code import without_docstrings
from headstart.base.terminal import say
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.data.splits import SPLITS
from headstart.inference import familiarity, provenance, selective
from headstart.inference.predictor import Predictor
from headstart.models.calibration import averaged_head
from headstart.models.task import LABEL_SEPARATOR, MultiLabel, Task, task_named
from headstart.models.trunk import feature_width
from headstart.training.feature_files import load_features
from headstart.training.features import FeatureExtractor

# The module that MLflow loads. It is copied into the model, with every module that it imports.
MODEL = "headstart.inference.mlflow_model"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "timm", "torch", "torchvision")
NETWORK = "trunk.network."  # before the names of a network's tensors in a classifier's state
EPOCH = "1970-01-01 00:00:00.000000"


def package(data: DataFolder, params: Params, folder: PackageFolder) -> None:
    """Write the MLflow model into ``folder / "model"``; the same classifier gives the same bytes."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    measured = Metrics.read(data.evaluate.metrics)
    chosen = measured.chosen
    card, head = Card.read(data.backbone.card), HeadDetails.read(data.head.details)
    tuned = None if chosen == "head" else FinetuneDetails.read(data.finetune.details)
    first = Card.read(first_of(data.backbone).card) if tuned else card
    of_tuned = _preprocessing(first.preprocessing, tuned)
    with tempfile.TemporaryDirectory() as scratch:
        parts = ClassifierFolder(scratch, "classifier")
        parts.mkdir()
        save_file(_tensors(data, measured, head, tuned), parts.weights)
        details = ClassifierDetails(
            backbone=first.name if chosen == "finetune" else card.name,
            weights=card.weights,
            preprocessing=of_tuned if chosen == "finetune" else card.preprocessing,
            tuned=of_tuned if chosen == "ensemble" else None,
            networks=tuned.networks if tuned else 1,
            training=measured.repeats.chance(chosen, "test") if tuned and measured.repeats else None,
            head=head.kind,
            classes=head.classes,
            temperature=_temperature(chosen, head, tuned),
            task=head.task,
            thresholds=list(measured.thresholds) if measured.thresholds else None,
            chosen=chosen,
            max_megapixels=params.prepare.max_megapixels,
            short_side=params.prepare.short_side,
            formats=params.prepare.formats,
            white_level=params.prepare.white_level,
        )
        details.write(parts.details)
        shutil.copyfile(data.fetch.network, parts.network)
        familiar = _familiarity(data, params, chosen, parts)
        answering = _answering(data, task_named(head.task, measured.thresholds), head.classes, familiar)
        details.model_copy(update=answering).write(parts.details)
        code = _packed_code(Path(scratch) / "code")
        outputs = [ColSpec("string", "label"), ColSpec("double", "probability")]
        if familiar is not None:
            outputs += [ColSpec("boolean", "unfamiliar"), ColSpec("string", "nearest")]
        outputs += [ColSpec("double", name) for name in head.classes]
        target = folder.model
        shutil.rmtree(target, ignore_errors=True)
        list_no_packages_in_mlflow()  # requirements are read from the environment a few lines below
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*An input example was not provided")  # it is written below
            mlflow.pyfunc.save_model(
                target,
                python_model=str(code.parent.joinpath(*MODEL.split(".")).with_suffix(".py")),
                artifacts={"classifier": str(parts)},
                code_paths=[str(code)],
                # Without inputs, or MLflow refuses a plain list of pictures before the model is asked.
                signature=ModelSignature(outputs=Schema(outputs)),
                pip_requirements=[f"{name}=={_version(name)}" for name in REQUIREMENTS],
                metadata={"digests of all files": target.sums.name},
            )
        _input_example(data, target)
    _without_times_and_paths(target)
    provenance.write_sums(target)
    provenance.remember(target)


def _preprocessing(of_backbone: Preprocessing, tuned: FinetuneDetails | None) -> Preprocessing:
    """Those of the fine-tuned network: at the size of its training, without the stages, which it was not trained on."""
    if tuned is None:
        return of_backbone
    own = of_backbone.model_copy(update={"stages": False})
    return own if tuned.size == own.size else own.model_copy(update={"size": tuned.size, "built_for": own.size})


def _familiarity(data: DataFolder, params: Params, chosen: Name, parts: ClassifierFolder) -> Bools | None:
    """Put into ``parts``, which hold the rest of the model, what tells pictures that are unlike anything learned.

    The features are those that the stage features has stored. A fine-tuned network alone has others, and has to look at the
    pictures again: those of validation and test, and as many of training as are kept.

    Returns:
        (N,) which of the validation pictures are familiar; None where these are too few to tell, and nothing is written.
    """
    manifest = read_manifest(data.prepare)
    rows = {split: np.flatnonzero(manifest["split"] == split) for split in SPLITS}
    if len(rows["val"]) < familiarity.FEWEST:
        say(
            f"{len(rows['val'])} validation pictures are too few to say what is unlike anything learned; that takes "
            f"{familiarity.FEWEST}"
        )
        return None
    device = set_up(params.threads)
    if chosen == "finetune":
        extractor = FeatureExtractor(Predictor(parts).model.trunk, Pixels(data.prepare), device)
        width = feature_width(extractor.trunk)
        kept = rows["train"][_spread(manifest["label"].iloc[rows["train"]], width)]
        seen = {"train": kept, "val": rows["val"], "test": rows["test"]}
        with progress("package", sum(map(len, seen.values()))) as advance:
            features = {split: extractor.features(of_split, advance) for split, of_split in seen.items()}
    else:
        features = {split: load_features(data.features, split)[0] for split in SPLITS}
        places = _spread(manifest["label"].iloc[rows["train"]], features["train"].shape[1])
        kept, features["train"] = rows["train"][places], features["train"][places]
    images = manifest["path"].iloc[kept].tolist()
    return familiarity.fit(features["train"], images, features["val"], features["test"], parts)


def _spread(labels: pd.Series, width: int) -> Ints:
    """The places of the training pictures that a model keeps the features of: all, or as many as there is room for, of
    every class alike, so that rare ones are familiar too.

    Args:
        labels: of all training pictures; of several labels each combination counts as a class.
        width: of their features.
    """
    most = familiarity.MOST_BYTES // (2 * width)
    mixed = labels.reset_index(drop=True).sample(frac=1, random_state=0)
    turn = mixed.groupby(mixed).cumcount()  # whose turn it is, where each class gives one after the other
    return np.sort(turn.sort_values(kind="stable").index[:most].to_numpy())


def _answering(data: DataFolder, task: Task, classes: list[str], familiar: Bools | None) -> dict[str, Any]:
    """``answering`` or ``answering_by_class``, from the chosen classifier's predictions on the validation pictures. Those
    that are not ``familiar`` are left out, since they would not be answered."""
    table = pd.read_parquet(data.evaluate.predictions)
    val = table[table["split"] == "val"]
    if familiar is not None:
        val = val[familiar]
    probabilities = val[classes].to_numpy()
    if not isinstance(task, MultiLabel):
        right = (val["label"] == val["predicted"]).to_numpy()
        return {"answering": selective.thresholds(probabilities.max(axis=1), right)}
    labels = task.encode((label.split(LABEL_SEPARATOR) for label in val["label"]), classes)
    confidence, right = selective.confidence_of_decisions(task, probabilities), task.decide(probabilities) == labels
    columns = {name: selective.thresholds(confidence[:, c], right[:, c]) for c, name in enumerate(classes)}
    return {"answering_by_class": columns}


def _temperature(chosen: Name, head: HeadDetails, tuned: FinetuneDetails | None) -> float:
    if chosen == "ensemble":  # inside its head
        return 1.0
    return tuned.temperature if tuned else head.refit_temperature


def _tensors(
    data: DataFolder, measured: Metrics, head: HeadDetails, tuned: FinetuneDetails | None
) -> dict[str, NDArray[Any]]:
    """The state of the chosen ``Classifier``, read from the stages' files without building a network."""
    if measured.chosen == "finetune":
        return load_file(data.finetune.weights)
    own = {key.removeprefix(REFIT): value for key, value in load_file(data.head.weights).items() if key.startswith(REFIT)}
    trunks = [load_file(folder.weights) for folder in member_folders(data.backbone)]
    if tuned is not None:
        state = load_file(data.finetune.weights)
        share = measured.head_share
        assert share is not None
        own["weight"], own["bias"] = averaged_head(
            [(own["weight"], own["bias"]), (state["head.weight"], state["head.bias"])],
            [head.refit_temperature, tuned.temperature],
            [share, 1 - share],
        )
        for prefix in _prefixes(tuned.networks):
            trunks.append({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    whole = {f"head.{key}": value for key, value in own.items()}
    for prefix, trunk in zip(_prefixes(len(trunks)), trunks, strict=True):
        whole |= {f"{prefix}{key}": value for key, value in trunk.items()}
    return whole


def _prefixes(networks: int) -> list[str]:
    """What stands before the names of the tensors of each of so many networks."""
    return [f"{NETWORK}members.{number}.network." for number in range(networks)] if networks > 1 else [NETWORK]


def _packed_code(folder: Path) -> Path:
    """The package headstart, reduced to what prediction needs. Docstrings and comments are removed: they are not part of a
    stage's identity, and the same classifier has to give the same bytes."""
    for path in modules_of(MODEL).values():
        target = folder / path.relative_to(PACKAGE.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(ast.unparse(without_docstrings(ast.parse(path.read_bytes()))) + "\n", encoding="utf-8")
    return folder / "headstart"


def _version(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


def _input_example(data: DataFolder, target: Path) -> None:
    """Write a test picture as base64 in MLflow's two forms: a data frame, and the body of a request to a server."""
    import base64
    import json

    manifest = read_manifest(data.prepare)
    row = int(np.flatnonzero(manifest["split"] == "test")[0])
    stream = io.BytesIO()
    picture = Image.fromarray(Pixels(data.prepare)[row])
    picture.thumbnail((128, 128))
    picture.save(stream, "JPEG", quality=85)
    frame = {"columns": ["image"], "data": [[base64.b64encode(stream.getvalue()).decode()]]}
    write_text(target / "input_example.json", json.dumps(frame))
    write_text(target / "serving_input_example.json", json.dumps({"dataframe_split": frame}))
    mlmodel = yaml.safe_load((target / "MLmodel").read_text(encoding="utf-8"))
    mlmodel["saved_input_example_info"] = {
        "artifact_path": "input_example.json",
        "pandas_orient": "split",
        "serving_input_path": "serving_input_example.json",
        "type": "dataframe",
    }
    write_text(target / "MLmodel", yaml.safe_dump(mlmodel, sort_keys=True))


def _without_times_and_paths(target: Path) -> None:
    """Remove when, where and in which run MLflow saved the model, and a random id: the bytes must not depend on them."""
    for cache in target.rglob("__pycache__"):
        shutil.rmtree(cache)
    mlmodel = yaml.safe_load((target / "MLmodel").read_text(encoding="utf-8"))
    function = mlmodel["flavors"]["python_function"]
    for artifact in function.get("artifacts", {}).values():
        artifact["uri"] = artifact["path"]
    function["model_code_path"] = Path(function["model_code_path"]).name
    mlmodel["utc_time_created"] = EPOCH
    mlmodel.pop("model_id", None)
    mlmodel["model_uuid"] = sha256_of_files(target, leave_out=("MLmodel",))[:32]
    mlmodel.pop("run_id", None)
    write_text(target / "MLmodel", yaml.safe_dump(mlmodel, sort_keys=True))


def run(params: Params, data: DataFolder) -> None:
    """The stage package: pack the chosen classifier as an MLflow model."""
    package(data, params, data.package)
    model = data.package.model
    say(f"{model} is ready: headstart predict PICTURE, or mlflow models serve -m {model}")
