"""Heat maps lie where the answer comes from, of convolutional networks and of transformers, or there are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bench.deletion import compared, convolutional, transformer
from headstart.evaluation.explain import heat_maps
from headstart.models.backbones import architecture
from headstart.models.classifier import Classifier, FittedHead, averaged
from headstart.models.heads import LinearHead
from headstart.models.trunk import Trunk, feature_width

PICTURES = list(np.random.default_rng(0).integers(0, 256, (5, 50, 70, 3), dtype=np.uint8))


def classifier(name: str, size: int | None = None) -> Classifier:
    trunk = architecture(name, size=size).trunk().eval()
    torch.manual_seed(0)
    weight = torch.randn(2, feature_width(trunk))
    return Classifier(trunk, FittedHead(LinearHead.of(weight, torch.zeros(2)), 1.0, ("ant", "bee"))).eval()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", None), ("squeezenet1_0", None), ("mobilenetv3_small_050", None), ("convnext_atto", None),
        ("vit_tiny_patch16_224", None), ("vit_b_32", None), ("vit_small_patch14_reg4_dinov2", 98), ("mixer_s32_224", None),
        ("swin_tiny_patch4_window7_224", None), ("vit_tiny_r_s16_p8_224", None),
    ],
)  # fmt: skip
def test_the_map_covers_the_view(name: str, size: int | None) -> None:
    model = classifier(name, size)
    maps = heat_maps(model, PICTURES[:2], [0, 1])
    assert maps is not None
    assert maps.shape == (2, model.trunk.view.size, model.trunk.view.size)
    assert maps.min() >= 0
    assert maps.max() == pytest.approx(1)


@pytest.mark.parametrize(
    "make", [convolutional, lambda: transformer("class-token", 200)], ids=["real weights", "transformer"]
)
def test_what_is_hottest_counts_more_than_other_places(make: Callable[[], Classifier]) -> None:
    """`python bench/deletion.py` does it with more pictures and more transformers."""
    found = compared(make(), 24)
    (curve, on_pattern), (any_order, by_area) = found["heat map"], found["any order"]
    assert curve.mean() < any_order.mean() - 0.1
    assert on_pattern.mean() > 1.2 * by_area.mean()


@pytest.mark.parametrize("name", ["hiera_tiny_224", "resmlp_12_224"])
def test_tokens_in_another_order_than_places_have_no_map(name: str) -> None:
    assert heat_maps(classifier(name), PICTURES[:1], [0]) is None


def test_a_network_without_places_has_no_map() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
            return answer

    trunk = Trunk(Flat(), architecture("resnet18").view)
    model = Classifier(trunk, FittedHead(LinearHead.of(torch.randn(2, 3), torch.zeros(2)), 1.0, ("a", "b")))
    assert heat_maps(model, PICTURES[:1], [0]) is None


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_any_number_of_pictures_has_the_maps_that_each_has_alone(name: str) -> None:
    model = classifier(name)
    together, last = heat_maps(model, PICTURES, [0, 1, 0, 1, 1]), heat_maps(model, PICTURES[4:], [1])
    assert together is not None
    assert last is not None
    assert together[4:] == pytest.approx(last, abs=1e-3)


def test_networks_beside_the_first_change_nothing_of_its_map() -> None:
    first, second = classifier("mobilenetv3_small_050"), classifier("squeezenet1_0")
    alone, beside = (
        heat_maps(model, PICTURES[:2], [0, 1]) for model in (first, averaged([first, second], [0.5, 0.5]).eval())
    )
    assert alone is not None
    assert beside == pytest.approx(alone, abs=1e-5)
