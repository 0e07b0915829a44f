"""Names, and what publishers say of them: torchvision's own figures, timm's at the size that pictures have here."""

from __future__ import annotations

import csv

import pytest
import timm
import torchvision

from headstart.base.errors import HeadstartError
from headstart.models.backbones import architecture
from headstart.models.catalogue import TIMM_RESULTS, names, published, with_tag


def test_torchvisions_figures_are_those_of_its_weights() -> None:
    ours = torchvision.models.list_models(module=torchvision.models)
    assert len(ours) > 70
    for name in ours:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        figures = published(name)
        measured = weights.meta["_metrics"]["ImageNet-1K"]
        assert (figures.top1, figures.top5) == (measured["acc@1"], measured["acc@5"])
        assert (figures.parameters, figures.gmacs) == (weights.meta["num_params"], weights.meta["_ops"])
        assert [figures.input_size] == [figures.tested_at] == weights.transforms().crop_size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", (69.758, 89.078, 224)),  # torchvision's, as `backbone` understands the name
        ("resnet18.a1_in1k", (71.504, 90.086, 224)),  # tested at 288 too, where it does better
        ("tf_efficientnet_lite0", (74.846, 92.180, 224)),
        ("tf_efficientnet_lite0.in1k", (74.846, 92.180, 224)),
        ("convnext_atto", (75.672, 92.914, 224)),
        ("test_resnet", (41.602, 67.984, 160)),
        ("vit_small_patch14_dinov2", (None, None, None)),  # no classifier was trained
    ],
)
def test_accuracy_is_that_at_the_size_pictures_have_here(name: str, expected: tuple[float | int | None, ...]) -> None:
    figures = published(name)
    assert (figures.top1, figures.top5, figures.tested_at) == expected


def test_a_name_without_a_tag_stands_for_its_default_weights() -> None:
    assert with_tag("tf_efficientnet_lite0") == "tf_efficientnet_lite0.in1k"
    assert with_tag("resnet50") == f"resnet50.{timm.models.get_pretrained_cfg('resnet50').tag}"
    tagged = set(timm.list_pretrained())
    for name in timm.list_models(pretrained=True, include_tags=False):
        assert with_tag(name) in tagged | {name}
        assert published(with_tag(name)).top1 == published(name).top1 or published(name).gmacs  # torchvision's
    assert with_tag("resnet50.a1_in1k") == "resnet50.a1_in1k"


def test_every_name_is_one_that_params_can_hold_with_the_input_that_is_told() -> None:
    found = names()
    assert list(found) == sorted(found)
    assert len(found) > 1000
    assert (found["resnet18"], found["resnet18.a1_in1k"]) == ("torchvision", "timm")
    assert "vit_base_patch16_sapiens2.fb" not in found  # a portrait input
    for name in list(found)[::40]:
        arch = architecture(name)
        assert arch.library == found[name]
        assert published(name).input_size in (None, arch.view.size)


def test_what_is_left_out_is_what_cannot_be_held() -> None:
    for name in {*timm.list_models(), *timm.list_pretrained()} - names().keys():
        with pytest.raises(HeadstartError, match="square input"):
            architecture(name)


def test_timms_file_is_small_and_sound() -> None:
    assert TIMM_RESULTS.stat().st_size < 120_000
    rows = list(csv.DictReader(TIMM_RESULTS.open(encoding="utf-8")))
    assert len(rows) > 1500
    assert len({(row["name"], row["size"]) for row in rows}) == len(rows)
    for row in rows:
        assert 0 < float(row["top1"]) < float(row["top5"]) < 100
        assert 0 < float(row["parameters"]) < 5000
    known = {row["name"] for row in rows} & set(timm.list_pretrained())
    assert len(known) > 1000
