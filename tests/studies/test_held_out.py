"""Test pictures choose nothing: with others in their place, all that is learned and chosen stays as it was."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.evaluation import report
from headstart.models import weights
from headstart.models.backbones import architecture
from headstart.studies import label_issues, ranking, shortcuts, transfer_gain, tuning
from headstart.training import features, finetune, linear_probe
from tests.data.pictures import everything_below, write_pictures
from tests.training.test_finetune import SMALL

PROJECT = Path(__file__).parents[2]
CLASSES = ("ants", "bees")
COUNTS = {"train": (15, 15), "val": (8, 8)}
CANDIDATE = "tf_efficientnet_lite0"
PARAMS = {
    "data": {"source": "set"}, "backbone": "small.py:net", "weights": "small.safetensors", "threads": 1,
    "features": {"engine": "torch"}, "evaluate": {"bootstrap": 100, "mistakes": 0, "folds": 5},
    "finetune": {"epochs": 1, "batch_size": 8, "size_ratio": 0.5, "unfreeze": "last", "scratch_passes": 100,
                 "scratch_size": 32},
    "tune": {"trials": 2, "minutes": 60, "space": {"lr": [0.0003, 0.03]}},
    "why": {"fractions": [0.5, 1.0], "folds": 1},
    "rank": {"candidates": [CANDIDATE], "first": 20, "pictures": 40},
}  # fmt: skip
MEASURED = {"seconds", "minutes", "images_per_s", "finetune_minutes", "worth_minutes"}  # by the clock


def all_that_is_chosen(
    checkout: Path, test_counts: tuple[int, int], test_seed: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The files of every stage and study that learns or chooses, in a checkout with these test pictures."""
    monkeypatch.chdir(checkout)
    for name in ("dvc.yaml", "params.yaml", "studies/dvc.yaml"):
        (checkout / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, checkout / name)
    counts = COUNTS | {"test": test_counts}
    for seed, split in enumerate(counts):
        numbered = [(label, n) for label, count in zip(CLASSES, counts[split], strict=True) for n in range(count)]
        first = 1000 * seed + test_seed * (split == "test")
        names = {f"{split}/{label}/{n:02}.png": first + at for at, (label, n) in enumerate(numbered)}
        write_pictures(checkout / "set", names)
    (checkout / "small.py").write_text(SMALL)
    torch.manual_seed(0)
    save_file(architecture("small.py:net", checkout / "small.py").whole(0).state_dict(), checkout / "small.safetensors")
    params = Params.model_validate(PARAMS)
    for stage in (fetch, prepare, weights, features, linear_probe):
        stage.run(params, DATA)
    finetune.run(params, DATA, lambda *_: lambda row: None)
    report.run(params, DATA)
    for study in (tuning, transfer_gain, label_issues, shortcuts):
        study.run(params, DATA)
    ranking.run(params, DATA)
    data = DataFolder(checkout, "data")
    shaped = (
        data.head,
        data.finetune,
        data.labels,
        data.shortcuts,
        data.features.split("train"),
        data.features.split("val"),
    )
    files = {path.name: content(path) for path in shaped}
    for details in (data.tune.details, data.why.details, data.rank.details):
        files[details.name] = without_times(json.loads(details.read_text()))
    measured = json.loads(data.evaluate.metrics.read_text())
    assert measured["folds"]["head"]["n"] == sum(map(sum, counts.values()))  # test pictures too, which only reports
    files["metrics.json"] = {key: measured[key] for key in ("chosen", "val", "head_share")}
    assert files["why.json"]["sentences"].pop(2).startswith("In minutes")
    return files


def content(path: Path) -> Any:
    if path.is_file():
        return path.read_bytes()
    below = {name: data for name, (data, _) in everything_below(path).items()}
    # The foot of a page names the pictures that are there, those of the test split too.
    return {name: re.sub(rb'(data-digest="|pictures )[0-9a-f]{16}', b"", data) for name, data in below.items()}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in MEASURED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_other_test_pictures_change_nothing_that_is_learned_or_chosen(
    checkout_with_store: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = all_that_is_chosen(checkout_with_store, (8, 8), 0, monkeypatch)
    other = tmp_path_factory.mktemp("other")
    shutil.copy(checkout_with_store / "mlflow.db", other)
    second = all_that_is_chosen(other, (5, 11), 500, monkeypatch)
    assert [name for name in first if first[name] != second[name]] == []
    assert len({(folder / "data/features/test.safetensors").read_bytes() for folder in (checkout_with_store, other)}) == 2
