"""A classifier answers the same wherever it is: in training, in evaluation, in the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from headstart.base.artifacts import DATA, DataFolder, PackageFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.head import HeadDetails
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation import report
from headstart.inference.package import package
from headstart.inference.predictor import Predictor
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
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
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
    params, folder = Params.model_validate(PARAMS), DATA
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
