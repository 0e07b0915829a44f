"""What runs frozen layers: the same answers as torch, and torch where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headstart.backbones import architecture
from headstart.engines import PICTURES_PER_REQUEST, WORTH_COMPILING, engine_for, split_frozen

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


def train_upper_half(network: nn.Module, blocks: list[list[nn.Parameter]]) -> None:
    network.requires_grad_(False)
    for block in blocks[len(blocks) // 2 :]:
        for parameter in block:
            parameter.requires_grad_(True)


@pytest.mark.parametrize(
    "name", ["resnet18", "alexnet", "squeezenet1_0", "densenet161", "inception_v3", "tf_efficientnet_lite0"]
)
def test_the_frozen_part_and_the_rest_are_the_whole_network(name: str) -> None:
    trunk = architecture(name).trunk().eval()
    train_upper_half(trunk, trunk.blocks())
    pictures = torch.randn(2, 3, 96, 96)
    parts = split_frozen(trunk, pictures)
    assert parts is not None
    frozen, rest = parts
    assert not any(p.requires_grad for p in frozen.parameters())
    held = {id(p) for part in parts for p in part.parameters()}
    assert held == {id(p) for p in trunk.parameters()}
    with torch.no_grad():
        assert torch.allclose(rest(frozen(pictures)), trunk(pictures), atol=1e-5)


def test_gradients_through_the_rest_are_those_through_the_whole_network() -> None:
    trunk = architecture("resnet18").trunk().eval()
    train_upper_half(trunk, trunk.blocks())
    pictures = torch.randn(2, 3, 64, 64)
    parts = split_frozen(trunk, pictures)
    assert parts is not None
    frozen, rest = parts
    engine, _ = engine_for(frozen.eval(), 1, pictures, CPU)
    trained = [p for p in trunk.parameters() if p.requires_grad]
    expected = torch.autograd.grad(trunk(pictures).square().mean(), trained)
    found = torch.autograd.grad(rest(engine(pictures)).square().mean(), trained)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


class Wilful(nn.Module):
    """A forward that looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lower(x)
        return self.upper(x) if x.sum() > 0 else self.upper(-x)


@pytest.mark.parametrize(("lower", "upper"), [(True, True), (False, False)])
def test_nothing_is_cut_where_all_or_nothing_is_trained(lower: bool, upper: bool) -> None:
    network = nn.Sequential(nn.Linear(4, 4).requires_grad_(lower), nn.Linear(4, 4).requires_grad_(upper))
    assert split_frozen(network, torch.randn(2, 4)) is None


def test_nothing_is_cut_where_forward_cannot_be_traced() -> None:
    network = Wilful().eval()
    network.lower.requires_grad_(False)
    assert split_frozen(network, torch.randn(2, 4)) is None
