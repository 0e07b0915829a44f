"""Networks rearranged for training: the same answers, the same gradients, the same parameters."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from headstart.engines.select import engine_for
from headstart.models.backbones import architecture
from headstart.models.graph import _FoldedConv, fold_batch_norm, split_frozen

CPU = torch.device("cpu")


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


def settled(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts in its batch-norms that a trained network could have."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, std=0.2)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet18", "densenet161", "inception_v3", "tf_efficientnet_lite0", "regnety_002"])
def test_a_folded_network_says_the_same_and_trains_the_same_parameters(name: str) -> None:
    trunk = settled(architecture(name).trunk()).double()  # so that rounding hides nothing
    pictures = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    folded = fold_batch_norm(trunk, pictures)
    assert any(isinstance(module, _FoldedConv) for module in folded.modules())
    assert {id(p) for p in folded.parameters()} == {id(p) for p in trunk.parameters()}
    assert {id(b) for b in folded.buffers()} == {id(b) for b in trunk.buffers()}
    expected, found = trunk(pictures), folded(pictures)
    assert torch.allclose(found, expected)
    trained = list(trunk.parameters())
    one_by_one = torch.autograd.grad(expected.square().mean(), trained)
    at_once = torch.autograd.grad(found.square().mean(), trained)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(at_once, one_by_one, strict=True))


def test_a_folded_convolution_keeps_its_own_bias_and_the_activation_behind() -> None:
    network = settled(
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=True), BatchNormAct2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    )
    pictures = torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(network, pictures)
    assert sum(isinstance(module, _FoldedConv) for module in folded.modules()) == 2
    assert torch.allclose(folded(pictures), network(pictures), atol=1e-5)


class Misleading(nn.Module):
    """Registers a batch-norm right behind a convolution and uses the convolution's answer elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        between = self.conv(x)
        return self.norm(between) + between


@pytest.mark.parametrize("network", [Misleading(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))])
def test_a_network_that_cannot_be_folded_comes_back_as_it_is(network: nn.Module) -> None:
    settled_network = network.eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(3.0)
    pictures = torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(settled_network, pictures)
    assert not any(isinstance(module, _FoldedConv) for module in folded.modules())
    assert torch.equal(folded(pictures), network(pictures))
