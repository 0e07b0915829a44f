"""On a cluster of two nodes the features are those of this machine, whatever happens to a worker or a node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from torch import Tensor

from headstart.base.arrays import Ints
from headstart.base.cluster import connected
from headstart.base.files import read_json
from headstart.data.packed import Pixels
from headstart.engines import activations
from headstart.engines.select import SAMPLE
from headstart.models.backbones import architecture
from headstart.models.trunk import Trunk
from headstart.training import features as training_features
from headstart.training.feature_files import load_features
from headstart.training.features import FeatureExtractor, extract
from tests.training.test_features import CPU, packed
from tests.two_nodes import Answers, TwoNodes

pytestmark = pytest.mark.slow
MODULE = "headstart.training.features"
PICTURES = 200


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pixels, pd.DataFrame]:
    return packed(tmp_path_factory.mktemp("pictures") / "prepare", PICTURES, None)


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return architecture("test_resnet").trunk()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 200 pictures are many batches."""
    monkeypatch.setattr(training_features, "inference_batch", lambda *_: 8)


@pytest.fixture(scope="module")
def local(pictures: tuple[Pixels, pd.DataFrame], trunk: Trunk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_features, "inference_batch", lambda *_: 8)
        extract(trunk, *pictures, CPU, folder, "torch")
    return folder


def check_same(local: Path, found: Path) -> None:
    for split in ("train", "val", "test"):
        (expected, labels), (features, its) = (load_features(folder, split) for folder in (local, found))
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(labels, its)
        assert len(torch.unique(expected, dim=0)) == len(expected)  # so that their order is checked


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_features_of_two_nodes_are_those_of_this_machine_in_the_same_order(
    two_nodes: TwoNodes, pictures: tuple[Pixels, pd.DataFrame], trunk: Trunk, local: Path, tmp_path: Path, engine: str
) -> None:
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        extract(trunk, *pictures, cluster, tmp_path, engine)
    check_same(local, tmp_path)
    details = read_json(tmp_path / "features.json")
    assert details["engine"] == engine
    assert details["threads"] == (1 if engine == "torch" else torch.get_num_threads())
    assert details["processor"] == read_json(local / "features.json")["processor"]


def test_openvino_gives_the_same_bytes_on_a_cluster(
    two_nodes: TwoNodes, pictures: tuple[Pixels, pd.DataFrame], trunk: Trunk, tmp_path: Path
) -> None:
    extract(trunk, *pictures, CPU, tmp_path / "here", "openvino")
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        extract(trunk, *pictures, cluster, tmp_path / "there", "openvino")
    for name in ("train.safetensors", "val.safetensors", "test.safetensors", "features.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def workers(node: Any) -> list[psutil.Process]:
    """Of Ray, on a node, that have work to do."""
    (raylet,) = node.all_processes["raylet"]
    return [child for child in psutil.Process(raylet.process.pid).children() if "_work" in " ".join(child.cmdline())]


@pytest.mark.parametrize("fault", ["worker", "node"])
def test_a_worker_or_a_node_that_dies_half_way_loses_and_doubles_no_picture(
    two_nodes: TwoNodes,
    pictures: tuple[Pixels, pd.DataFrame],
    trunk: Trunk,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    def breaks() -> bool:
        if fault == "node":
            two_nodes.remove_second()
            return True
        killed = [worker.kill() for worker in workers(two_nodes.second) or workers(two_nodes.cluster.head_node)]
        return bool(killed)  # all may be between two tasks

    answers = Answers(monkeypatch, 12, breaks)
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        extract(trunk, *pictures, cluster, tmp_path, "torch")
    check_same(local, tmp_path)
    assert answers.is_done
    assert answers.taken == 1 + PICTURES // 8


def test_a_run_that_was_stopped_is_gone_on_with_also_without_the_cluster(
    two_nodes: TwoNodes,
    pictures: tuple[Pixels, pd.DataFrame],
    trunk: Trunk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activations, "SAVE_EVERY_S", 0.0)

    def stop() -> None:
        raise KeyboardInterrupt

    Answers(monkeypatch, 10, stop)
    with connected(two_nodes.address, MODULE) as cluster, pytest.raises(KeyboardInterrupt):
        extract(trunk, *pictures, cluster or CPU, tmp_path / "stopped", "openvino", kept=tmp_path / "kept")
    batches, shown = FeatureExtractor.batches, 0

    def counted(self: FeatureExtractor, rows: Ints) -> Iterator[Tensor]:
        nonlocal shown
        shown += len(rows)
        return batches(self, rows)

    monkeypatch.setattr(FeatureExtractor, "batches", counted)
    extract(trunk, *pictures, CPU, tmp_path / "gone on", "openvino", kept=tmp_path / "kept")
    assert shown == SAMPLE + PICTURES - 8 * 8  # nine answers: the choice of the engine and eight batches
    extract(trunk, *pictures, CPU, tmp_path / "here", "openvino")
    for name in ("train.safetensors", "val.safetensors", "test.safetensors"):
        assert (tmp_path / "gone on" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


OWN = """
import torch

class Small(torch.nn.Module):
    input_size = 32
    def __init__(self, num_classes):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.classifier = torch.nn.Linear(8, num_classes)
    def forward(self, pictures):
        return self.classifier(torch.relu(self.first(pictures)).mean((2, 3)))

def small(num_classes):
    return Small(num_classes)
"""


def test_a_network_of_ones_own_goes_to_nodes_that_lack_its_file(
    two_nodes: TwoNodes, pictures: tuple[Pixels, pd.DataFrame], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    trunk = architecture("own.py:small", tmp_path / "own.py").trunk()
    (tmp_path / "own.py").unlink()
    extract(trunk, *pictures, CPU, tmp_path / "here", "torch")
    with connected(two_nodes.address, MODULE) as cluster:
        assert cluster is not None
        extract(trunk, *pictures, cluster, tmp_path / "there", "torch")
    check_same(tmp_path / "here", tmp_path / "there")
