"""What runs frozen layers: the same answers as torch, and torch where there are none."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import openvino
import pytest
import torch
from torch import Tensor, nn

from headstart.base.artifacts.engine import EngineChoice
from headstart.base.device import multiplies_bf16
from headstart.base.sections import Features
from headstart.engines.base import Engine, Forward, Precision
from headstart.engines.eager import Torch
from headstart.engines.openvino import PICTURES_PER_REQUEST, OpenVINO, compiled_for
from headstart.engines.select import ENGINES, WORTH_COMPARING, engine_for, objection_to
from headstart.models.backbones import architecture
from headstart.models.complexity import gmacs

CPU = torch.device("cpu")
MANY = 10**6


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("count", [1, PICTURES_PER_REQUEST, PICTURES_PER_REQUEST * 3 + 1])
def test_openvino_answers_for_any_number_of_pictures_in_their_order(count: int) -> None:
    network = small()
    pictures = torch.randn(count, 3, 32, 32)
    engine, told = engine_for(network, MANY, pictures, CPU, "openvino")
    assert told.engine == "openvino"
    with torch.no_grad():
        expected = network(pictures)
    assert torch.allclose(engine(pictures), expected, atol=1e-5)
    assert torch.equal(engine(pictures), engine(pictures))
    assert all(parameter.requires_grad for parameter in network.parameters())  # as before


def test_openvino_agrees_with_torch_on_a_real_network() -> None:
    trunk = architecture("resnet18").trunk().eval()
    pictures = torch.randn(9, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    engine, told = engine_for(trunk, MANY, pictures, CPU, "openvino")
    assert told.engine == "openvino"
    with torch.no_grad():
        expected = trunk(pictures)
    assert (engine(pictures) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("wanted", "device"), [("torch", "cpu"), ("auto", "meta")])
def test_torch_runs_it_where_asked_and_where_it_is_no_cpu(wanted: str, device: str) -> None:
    _, told = engine_for(small(), 10**9, torch.randn(2, 3, 32, 32), torch.device(device), wanted)
    assert told.engine == "torch"


def test_for_few_pictures_no_engines_are_compared() -> None:
    network = small()
    network.forward = None  # type: ignore[assignment]  # nor is the network run
    _, chosen = engine_for(network, WORTH_COMPARING - 1, torch.randn(4, 3, 32, 32), CPU)
    assert chosen == EngineChoice(engine="torch", why="127 pictures are too few to prepare another engine")


def test_the_engine_depends_on_the_work_that_there_is() -> None:
    network, pictures = small(), torch.randn(4, 3, 32, 32)
    pays = OpenVINO.pays_from / gmacs(network, 32)  # pictures
    assert engine_for(network, math.floor(pays), pictures, CPU)[1].engine == "torch"
    assert engine_for(network, math.ceil(pays), pictures, CPU)[1].engine == "openvino"


def test_of_lite0_256_pictures_are_enough_for_openvino_and_2600_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    work = gmacs(architecture("tf_efficientnet_lite0").trunk().eval(), 224)
    assert 270 * work > OpenVINO.pays_from > 250 * work
    monkeypatch.setattr("headstart.engines.openvino.multiplies_bf16", lambda: True)
    assert 2700 * work > OpenVINO().bf16_pays_from(CPU) > 2500 * work
    monkeypatch.setattr("headstart.engines.openvino.multiplies_bf16", lambda: False)
    assert OpenVINO().bf16_pays_from(CPU) == math.inf


def test_params_know_the_engines_by_name() -> None:
    assert get_args(Features.model_fields["engine"].annotation) == ("auto", *ENGINES)


def test_auto_takes_no_engine_that_only_its_name_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "doubled", Doubled())
    pictures = torch.randn(4, 3, 32, 32)
    assert engine_for(small(), 100 * MANY, pictures, CPU)[1].engine == "openvino"
    assert "doubled's answers are 1 from torch's" in engine_for(small(), MANY, pictures, CPU, "doubled")[1].why


class Doubled(Engine):
    name = "doubled"

    def prepare(self, network: nn.Module, sample: Tensor, device: torch.device) -> Callable[[Precision], Forward]:
        return lambda precision: lambda pictures: 2 * network(pictures).detach()


# --- bfloat16 -------------------------------------------------------------------------------------------------------


def features(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds of 300 feature vectors."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.randn(3, 32, generator=generator)
    return centres[labels] + 0.7 * torch.randn(300, 32, generator=generator) + offset, labels


def test_rounding_to_bfloat16_is_let_pass() -> None:
    exact, labels = features()
    assert objection_to(exact.bfloat16().float(), exact, labels) is None


def test_features_that_point_elsewhere_are_refused() -> None:
    exact, labels = features()
    assert "median cosine" in str(objection_to(exact + 0.2 * torch.randn(exact.shape), exact, labels))


def test_rounding_that_changes_answers_is_refused_however_near_the_features_are() -> None:
    exact, labels = features(offset=2000)  # bfloat16 knows 2000 and 2008 and nothing between
    found = exact.bfloat16().float()
    assert float(torch.cosine_similarity(found, exact).median()) > 0.999
    assert "a probe's" in str(objection_to(found, exact, labels))


def test_a_sample_of_one_class_decides_nothing() -> None:
    exact, labels = features()
    assert objection_to(exact, exact, torch.zeros_like(labels)) == "the sample has one class only"


def test_bfloat16_is_compiled_and_runs_whatever_the_processor() -> None:
    network, pictures = small(), torch.randn(11, 3, 32, 32)
    compiled = compiled_for(network, pictures)
    exact, rounded = compiled("fp32")(pictures), compiled("bf16")(pictures)
    assert torch.cosine_similarity(exact, rounded).median() > 0.999
    has = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert "BF16" in has or not multiplies_bf16()


class Rounded(Engine):
    """bfloat16 by torch, and so much noise."""

    name = "rounded"

    def __init__(self, noise: float, pays_from: float) -> None:
        self.noise, self.bf16_limit = noise, pays_from

    def bf16_pays_from(self, device: torch.device) -> float:
        return self.bf16_limit

    def prepare(self, network: nn.Module, sample: Tensor, device: torch.device) -> Callable[[Precision], Forward]:
        torch_ = Torch().prepare(network, sample, device)

        def rounded(pictures: Tensor) -> Tensor:
            output = torch_("bf16")(pictures)
            return output + self.noise * torch.randn(output.shape)

        return lambda precision: torch_("fp32") if precision == "fp32" else rounded


@pytest.mark.parametrize(
    ("noise", "pays_from", "expected"), [(0.0, 0.0, "rounded bf16"), (0.0, math.inf, "rounded"), (9.0, 0.0, "rounded")]
)
def test_bfloat16_is_used_where_it_pays_and_changes_no_answer(
    noise: float, pays_from: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "rounded", Rounded(noise, pays_from))
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 32)).requires_grad_(False)
    numbers = torch.arange(300) % 3
    torch.manual_seed(0)
    pictures = torch.randn(3, 3, 4, 4)[numbers] + 0.3 * torch.randn(300, 3, 4, 4)
    _, chosen = engine_for(network, MANY, pictures, CPU, "rounded", numbers)
    assert chosen.engine == expected
    assert ("refused: the median cosine" in chosen.why) is (noise > 0)
    assert engine_for(network, MANY, pictures, CPU, "rounded")[1].engine == "rounded"  # no labels to check it with


class Moody(nn.Module):
    """Takes a way that depends on the pictures; tracing follows only the one for black ones."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3)) + (1 if pictures.abs().sum() == 0 else 0)


class Unwilling(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise ValueError("not when somebody is looking")
        return pictures.mean((2, 3))


@pytest.mark.parametrize(("network", "reason"), [(Moody(), "from torch's"), (Unwilling(), "cannot take this network")])
def test_a_network_that_openvino_cannot_take_or_gets_wrong_stays_with_torch(
    network: nn.Module, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = torch.randn(4, 3, 16, 16)
    engine, told = engine_for(network.eval(), MANY, pictures, CPU, "openvino")
    assert told.engine == "torch"
    assert reason in told.why
    assert "going on with torch" in capsys.readouterr().out
    assert engine(pictures).shape == (4, 3)


ENGINES_THEN_A_SIGNAL = """
import os, signal, torch
from headstart.engines.openvino import compiled_for
network, sample = torch.nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8)
first, second = (compiled_for(network, sample)("fp32") for _ in range(2))
second(sample)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_engines_were_freed_reaches_its_handler() -> None:
    done = subprocess.run([sys.executable, "-c", ENGINES_THEN_A_SIGNAL], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
