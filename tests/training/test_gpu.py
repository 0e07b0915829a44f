"""On a GPU: its answers are the CPU's. Where there is none, torch's meta device stands for one, which has no numbers; but a
tensor that nobody has moved to it, or has taken from it, fails as it would there."""

# ruff: noqa: F811
from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstart.base.artifacts import FinetuneFolder
from headstart.base.device import accelerator, accelerator_name, faster_in_bf16, memory, precise, processor, set_up
from headstart.base.sections import Head
from headstart.data.packed import Pixels
from headstart.engines import batching
from headstart.models.backbones import architecture
from headstart.training.features import FeatureExtractor, extract
from headstart.training.linear_probe import train_head
from headstart.training.network import TrainedNetwork
from headstart.training.recipe import TrainingSetup
from headstart.training.trainer import Trainer, finetune
from headstart.training.training_data import TrainingData
from tests.training import together
from tests.training.test_finetune import head, packed, pictures, recipe  # noqa: F401 - a fixture

Pictures = tuple[Pixels, pd.DataFrame]
META, CPU = torch.device("meta"), torch.device("cpu")
ANYWHERE = {torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.index}


class Gpu(TorchDispatchMode):
    """The meta device as a GPU on which every number is one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, what = kwargs or {}, func.overloadpacket
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(each.is_meta for each in given)
        if torch.is_inference_mode_enabled():  # in which operations come whole
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        if what is torch.ops.aten._local_scalar_dense and there:
            return torch.ones((), dtype=given[0].dtype).item()
        if what is torch.ops.aten._to_copy and there and torch.device(kwargs.get("device") or META) == CPU:
            return torch.ones(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if what is torch.ops.aten.copy_ and there and not args[0].is_meta:
            return args[0].fill_(1)
        places = {each.device.type for each in given if each.ndim}
        assert len(places) < 2 or what in ANYWHERE, f"{func} of tensors on {' and '.join(sorted(places))}"
        return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(batching, "memory", lambda device: (10**10, 10**10))
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused: partial(ADAMW, foreach=False)(groups))
    monkeypatch.setattr(TrainedNetwork, "autocast", lambda network, rounded: contextlib.nullcontext())
    return Gpu()


ADAMW = torch.optim.AdamW


def test_what_runs_a_mac_is_known_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = torch.device("mps")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: mac)
    threads = torch.get_num_threads()
    assert set_up(threads) == accelerator() == mac
    assert processor(mac) == accelerator_name()
    assert processor(mac).endswith(" mps")
    assert precise(mac) == CPU
    assert precise(torch.device("cuda")).type == "cuda"
    assert not faster_in_bf16(mac)
    assert memory(mac)[1] == memory(CPU)[1]


def test_without_a_gpu_the_processor_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert set_up(torch.get_num_threads()) == CPU
    assert accelerator_name() is None


@pytest.mark.parametrize("itself", [True, False])
def test_bfloat16_is_for_gpus_that_multiply_it_themselves(monkeypatch: pytest.MonkeyPatch, itself: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: itself or including_emulation)
    assert faster_in_bf16(torch.device("cuda")) is itself
    assert not faster_in_bf16(CPU)


def test_the_stand_in_notices_what_was_not_moved() -> None:
    with Gpu(), pytest.raises(AssertionError, match="cpu and meta"):
        torch.nn.Linear(2, 2, device="meta")(torch.ones(1, 2))


@pytest.mark.parametrize(
    "settings",
    [{}, {"unfreeze": "last", "views": 2}, {"unfreeze": "all", "batch_norm": "trained"}],
    ids=["half", "stored views", "all"],
)
def test_all_of_a_training_is_on_the_gpu(gpu: Gpu, pictures: Pictures, tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "net.py").write_text(together.NETWORK)
    trunk = architecture("net.py:net", tmp_path / "net.py").trunk(seed=1)
    weighted = replace(head(), class_weight=(0.6, 1.4))
    setup = TrainingSetup(trunk, weighted, *pictures, recipe(**settings), META)
    with gpu:
        network = TrainedNetwork(setup, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        assert network.eval_batch == batching.LARGEST_ON_GPU
        trainer = Trainer(setup, network, TrainingData(setup, network, tmp_path))
        for number, batches in enumerate(trainer.data.epochs(1), start=1):
            assert trainer.train_epoch(number, batches) == 1
            assert trainer.validation_logits(network.averaged).shape == (8, 2)
        assert all(value.device == CPU for value in network.averaged_state().values())


def test_all_of_a_frozen_pass_and_of_a_head_is_on_the_gpu(gpu: Gpu, pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(together.NETWORK)
    extractor = FeatureExtractor(architecture("net.py:net", tmp_path / "net.py").trunk(), pictures[0], META)
    with gpu:
        assert extractor.features(np.arange(24), lambda count=1: None).shape == (24, 8)
        pixels, manifest = pictures
        manifest = manifest.assign(split=["test" if n < 4 else split for n, split in enumerate(manifest["split"])])
        extract(extractor.trunk, pixels, manifest, META, tmp_path / "features", "auto")
        generator = torch.Generator().manual_seed(0)
        train, val = ((torch.randn(n, 8, generator=generator).to(META), (torch.arange(n) % 2).to(META)) for n in (40, 20))
        train_head(train, val, ["blue", "red"], Head(C=[0.1, 1.0]), tmp_path / "head")


@pytest.mark.gpu
@pytest.mark.skipif(accelerator() is None, reason="torch sees no GPU here")
def test_a_gpu_ends_near_the_cpu(pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(together.NETWORK)
    found = {}
    for device in (accelerator(), CPU):
        assert device is not None
        trunk = architecture("net.py:net", tmp_path / "net.py").trunk(seed=1)
        found[device] = FinetuneFolder(tmp_path, device.type)
        how = recipe(unfreeze="all", precision="fp32")
        setup = TrainingSetup(trunk.eval(), head(), *pictures, how, device, engine="torch")
        finetune(setup, found[device], tmp_path / "resume")
    logits, expected = (load_file(folder.val_logits)["logits"] for folder in found.values())
    assert torch.allclose(logits, expected, atol=0.05)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(accelerator() is None, reason="torch sees no GPU here")
def test_the_pipeline_runs_on_a_gpu_with_the_answers_of_the_cpu() -> None:
    import subprocess
    import sys

    script = Path(__file__).parents[2] / "bench" / "gpu.py"
    small = ["--limit", "12", "--backbone", "tf_efficientnet_lite0", "--epochs", "1"]
    done = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "serve: " in done.stdout
