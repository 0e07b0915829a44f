"""What runs frozen layers: the same answers as torch, and torch where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headstart.backbones import architecture
from headstart.engines import PICTURES_PER_REQUEST, WORTH_COMPILING, engine_for

CPU = torch.device("cpu")
MANY = WORTH_COMPILING


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("count", [1, PICTURES_PER_REQUEST, PICTURES_PER_REQUEST * 3 + 1])
def test_openvino_answers_for_any_number_of_pictures_in_their_order(count: int) -> None:
    network = small()
    pictures = torch.randn(count, 3, 32, 32)
    engine, told = engine_for(network, MANY, pictures, CPU)
    assert told["engine"] == "openvino"
    with torch.no_grad():
        expected = network(pictures)
    assert torch.allclose(engine(pictures), expected, atol=1e-5)
    assert torch.equal(engine(pictures), engine(pictures))


def test_openvino_agrees_with_torch_on_a_real_network() -> None:
    trunk = architecture("resnet18").trunk().eval()
    pictures = torch.randn(9, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    engine, told = engine_for(trunk, MANY, pictures, CPU)
    assert told["engine"] == "openvino"
    with torch.no_grad():
        expected = trunk(pictures)
    assert (engine(pictures) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("pictures", "wanted", "device"), [(MANY, "torch", "cpu"), (MANY - 1, "auto", "cpu"), (MANY, "auto", "meta")]
)
def test_torch_runs_it_where_asked_where_pictures_are_few_and_where_it_is_no_cpu(
    pictures: int, wanted: str, device: str
) -> None:
    _, told = engine_for(small(), pictures, torch.randn(2, 3, 32, 32), torch.device(device), wanted)
    assert told["engine"] == "torch"


class Moody(nn.Module):
    """Takes a way that depends on the pictures; tracing follows only the one for black ones."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3)) + (1 if pictures.abs().sum() == 0 else 0)


class Unwilling(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        if len(pictures) == PICTURES_PER_REQUEST:
            raise ValueError("not eight at a time")
        return pictures.mean((2, 3))


@pytest.mark.parametrize(("network", "reason"), [(Moody(), "from torch's"), (Unwilling(), "cannot take this network")])
def test_a_network_that_openvino_cannot_take_or_gets_wrong_stays_with_torch(
    network: nn.Module, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = torch.randn(4, 3, 16, 16)
    engine, told = engine_for(network.eval(), MANY, pictures, CPU)
    assert told["engine"] == "torch"
    assert reason in told["why"]
    assert "going on with torch" in capsys.readouterr().out
    assert engine(pictures).shape == (4, 3)
