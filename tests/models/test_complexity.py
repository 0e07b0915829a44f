"""Depth, multiply-accumulates and memory are those that the networks are known for, and take no memory to find out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.models.backbones import architecture
from headstart.models.catalogue import published
from headstart.models.complexity import depth, gmacs, remembered

# As in the networks' names or their papers. SqueezeNet: a convolution, eight fires of two, a convolution. Inception: with
# the longest branch of each block. EfficientNet-B0: with squeeze-and-excitation, and Lite0 without it. A transformer: four
# layers to a block, the patches and the classifier.
DEPTHS = {
    "alexnet": 8,
    "squeezenet1_0": 18,
    "resnet18": 18,
    "vgg16": 16,
    "densenet161": 161,
    "inception_v3": 48,
    "googlenet": 22,
    "vgg19_bn": 19,
    "resnet152": 152,
    "mobilenet_v2": 53,
    "efficientnet_b0": 82,
    "vit_b_16": 50,  # torch's own attention
    "resnet18.a1_in1k": 18,
    "tf_efficientnet_lite0": 50,
    "vit_tiny_patch16_224": 50,
    "beit_base_patch16_224": 50,  # its attention takes the weights out of their layer
    "resnetv2_50x1_bit": 50,  # standardises its weights first
    "resnetblur50": 50,  # with blurs, whose weights are fixed
}


def on_meta(name: str) -> tuple[nn.Module, int]:
    arch = architecture(name)
    with torch.device("meta"):
        return arch.create(), arch.view.size


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_is_the_one_the_network_is_known_for(name: str) -> None:
    assert depth(*on_meta(name)) == DEPTHS[name]


class Branches(nn.Module):
    """Three layers on the long way, one on the short, one that nothing comes out of, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.short, self.twice, self.idle = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.register_buffer("blur", torch.ones(3, 1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.start(pictures)
        self.idle(x)
        long = functional.conv2d(self.twice(self.twice(x)).relu_(), self.blur, groups=3)  # type: ignore[arg-type]
        return (self.short(x) + long).mean((2, 3))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_depth_is_the_longest_way_through_layers_that_learn(device: str) -> None:
    assert depth(Branches().to(device), 8) == 3


@pytest.mark.parametrize("name", ["pit_ti_224", "convit_tiny"])
def test_networks_that_hand_on_parameters_or_keep_tensors_are_counted_and_stay_as_they_were(name: str) -> None:
    network, size = on_meta(name)
    assert gmacs(network, size) > 0.5
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert depth(network, size) > 40


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_multiply_accumulates_are_the_same_without_memory(name: str) -> None:
    network, size = on_meta(name)
    assert gmacs(network, size) == pytest.approx(gmacs(architecture(name).whole(), size), rel=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "resnet18", "vgg16", "densenet161", "inception_v3"])
def test_multiply_accumulates_are_the_published_ones(name: str) -> None:
    assert gmacs(*on_meta(name)) == pytest.approx(published(name).gmacs, abs=6e-4)


def test_what_a_step_remembers_is_what_backward_needs_without_the_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 4))
    floats = 3 * 8 * 8 + 8 * 6 * 6  # the picture, and what tanh gives
    assert remembered(network.to("meta"), 8) == 4 * floats
    assert remembered(network.to_empty(device="cpu"), 8) == 4 * floats
