"""A name becomes a network without its classifier, with its own preprocessing, and faults are said in a sentence."""

from __future__ import annotations

import py_compile
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headstart.base.artifacts.card import Card
from headstart.base.errors import HeadstartError
from headstart.models.backbones import Architecture, architecture, load_trunk
from headstart.models.complexity import gmacs
from headstart.models.trunk import Trunk, feature_width
from headstart.models.weights import store_backbone

# name → features, GMACs and millions of parameters without the classifier (torchvision's own figures less the classifier)
CARDS = {
    "resnet18": (512, 1.81, 11.18),
    "alexnet": (4096, 0.71, 57.0),
    "squeezenet1_0": (512, 0.73, 0.74),
    "vgg16": (4096, 15.47, 134.26),
    "densenet161": (2208, 7.73, 26.47),
    "inception_v3": (2048, 5.71, 21.79),
    "resnet18.a1_in1k": (512, 1.81, 11.18),
    "vit_tiny_patch16_224": (192, 1.25, 5.52),
    "mobilenetv3_small_050": (1024, 0.02, 0.57),
    "convnext_atto": (320, 0.55, 3.37),
    "tf_efficientnet_lite0": (1280, 0.38, 3.37),
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="module")
def trunks() -> dict[str, Trunk]:
    return {name: architecture(name).trunk().eval() for name in CARDS}


@pytest.mark.parametrize("name", CARDS)
def test_width_cost_and_size_are_those_of_the_network_without_its_classifier(name: str, trunks: dict[str, Trunk]) -> None:
    width, billions, millions = CARDS[name]
    trunk = trunks[name]
    assert feature_width(trunk) == width
    assert gmacs(trunk, trunk.view.size) == pytest.approx(billions, abs=0.006)
    assert sum(p.numel() for p in trunk.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("name", CARDS)
def test_blocks_hold_every_parameter_once_input_side_first(name: str, trunks: dict[str, Trunk]) -> None:
    trunk = trunks[name]
    blocks = trunk.blocks()
    held = [id(p) for block in blocks for p in block]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in trunk.parameters()}
    assert all(blocks)
    assert len(blocks) >= 5  # enough steps for layer-wise rates
    first = next(m for m in trunk.modules() if isinstance(m, torch.nn.Conv2d))
    assert any(p is first.weight for p in blocks[0] + blocks[1])  # a transformer's class token comes before
    largest = max(sum(p.numel() for p in block) for block in blocks)
    assert largest < 0.8 * sum(p.numel() for p in trunk.parameters())


def test_preprocessing_is_the_publishers() -> None:
    half, imagenet = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
    views = {
        name: architecture(name).view
        for name in ("resnet18", "inception_v3", "googlenet", "efficientnet_b3", "vit_tiny_patch16_224", "resnet18.a1_in1k")
    }
    assert {name: view.size for name, view in views.items()} == {
        "resnet18": 224, "inception_v3": 299, "googlenet": 224, "efficientnet_b3": 300,
        "vit_tiny_patch16_224": 224, "resnet18.a1_in1k": 224,
    }  # fmt: skip
    assert [name for name, view in views.items() if view.mean == half] == [
        "inception_v3",
        "googlenet",
        "vit_tiny_patch16_224",
    ]
    assert views["resnet18"].mean == imagenet
    assert views["inception_v3"].crop == pytest.approx(299 / 342)
    assert (views["resnet18.a1_in1k"].crop, views["resnet18.a1_in1k"].interpolation) == (0.95, "bicubic")


@pytest.mark.parametrize("weights", ["none", "mine.pth"])
def test_random_weights_and_a_file_of_ones_own_keep_the_networks_input_size(weights: str) -> None:
    view = architecture("inception_v3", weights=weights).view
    assert (view.size, view.mean) == (299, (0.5, 0.5, 0.5))


def test_weights_for_larger_pictures_bring_a_network_for_larger_pictures() -> None:
    arch = architecture("vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
    assert arch.view.size == 384
    with torch.device("meta"):
        network = arch.create()
    assert network.get_parameter("encoder.pos_embedding").shape[1] == 1 + (384 // 16) ** 2


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "tf_efficientnet_lite0", "resnet18", "vit_b_16", "my_net"])
def test_a_network_is_built_for_the_size_it_is_shown(name: str) -> None:
    if name == "my_net":
        Path("net.py").write_text(GOOD)
        name = "net.py:small"
    published = architecture(name).view
    arch = architecture(name, size=96)
    assert arch.view == replace(published, size=96)
    assert feature_width(arch.trunk()) == feature_width(architecture(name).trunk())


@pytest.mark.parametrize("name", ["xcit_nano_12_p8_224", "maxvit_tiny_tf_224", "vit_b_16"])
def test_a_size_that_a_transformer_cannot_be_built_for_is_said(name: str) -> None:
    with pytest.raises(HeadstartError, match=r"takes no pictures of 101|fails on two 101×101") as refusal:
        feature_width(architecture(name, size=101).trunk())
    assert "\n" not in str(refusal.value)


def test_a_timm_models_preprocessing_can_be_made_or_is_refused_in_a_sentence() -> None:
    import numpy as np
    import timm

    picture = np.zeros((60, 80, 3), np.uint8)
    refused = []
    odd = ["volo_d5_512.sail_in1k", "vit_base_patch16_sapiens2.fb"]  # a crop above 1, and a portrait input
    for name in [*timm.list_pretrained()[::20], *odd]:
        try:
            view = architecture(name).view
        except HeadstartError as error:
            assert "three channels and a square input" in str(error)
            refused.append(name)
            continue
        assert view(picture).shape == (view.size, view.size, 3)
    assert refused == odd[1:]


def test_a_name_that_both_libraries_know_is_torchvisions_and_a_tag_makes_it_timms() -> None:
    assert architecture("resnet18").library == "torchvision"
    assert architecture("resnet18.a1_in1k").library == "timm"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "did you mean 'resnet18'"),
        ("vit_tiny_patch16", " or 'vit_tiny_patch16_224'"),
        ("Resnet18", "did you mean 'resnet18'"),
        ("qqqqqq", "`headstart models PATTERN` lists what there is"),
        ("resnet18.no_such_tag", "neither a torchvision nor a timm model"),
    ],
)
def test_an_unknown_name_is_answered_with_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(HeadstartError) as refusal:
        architecture(name)
    assert repr(name) in str(refusal.value)
    assert hint in str(refusal.value)


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone() -> None:
    arch = architecture("squeezenet1_0")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (arch.trunk(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    key = "network.features.0.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


# --- a network of one's own ---------------------------------------------------------------------------------------

GOOD = """
from torch import nn

def small(num_classes):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    net.input_size = 32
    return net
"""


def own(code: str, factory: str = "small") -> Architecture:
    Path("net.py").write_text(code)
    return architecture(f"net.py:{factory}")


def test_a_network_of_ones_own_says_its_own_preprocessing() -> None:
    arch = own(GOOD.replace("return", "net.mean, net.std = [0.1, 0.2, 0.3], [1, 1, 1]\n    return"))
    assert (arch.library, arch.view.size, arch.view.mean, arch.view.std) == ("own", 32, (0.1, 0.2, 0.3), (1, 1, 1))
    assert feature_width(arch.trunk()) == 8
    assert own(GOOD.replace("net.input_size = 32", "pass")).view.size == 224


def stored(code: str) -> Card:
    Path("net.py").write_text(code)
    return store_backbone("net.py:small", "default", None, 0, Path("net.py"), Path("backbone"))


def test_a_network_of_ones_own_gets_a_card_like_any_other() -> None:
    card = stored(GOOD)
    assert (card.library, card.features, card.pretrained, card.parameters) == ("own", 8, False, 224)
    assert card.gmacs == pytest.approx(8 * 27 * 8 * 8 / 1e9, abs=1e-4)


FAULTS = {
    "import no_such_module_anywhere": "net.py does not run: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    "def small(:": "net.py does not run: SyntaxError",
    "def smal(num_classes): pass": "net.py has no 'small'; did you mean 'smal'?",
    "x = 1": "net.py has no 'small'; define `def small(num_classes)` there",
    "def small(): pass": "small(num_classes) failed: TypeError: small() takes 0 positional arguments",
    "def small(num_classes): return num_classes": "small returned int, not a nn.Module",
    GOOD.replace("num_classes))", "10))"): "the factory must build its classifier from the num_classes it is given",
    GOOD.replace("Linear(8,", "Linear(9 * 9,").replace(
        "nn.AdaptiveAvgPool2d(1), ", "nn.Linear(5, 5), "
    ): "the network fails on",
    GOOD.replace("= 32", "= (32, 32)"): "input_size must be one whole number of pixels",
    GOOD.replace("= 32", "= 0"): "input_size must be one whole number of pixels",
    GOOD.replace("return", "net.mean = 0.5; return"): "mean and std three numbers each",
    GOOD.replace("return", "net.std = (1, 1); return"): "mean and std three numbers each",
    GOOD.replace("return", "net.std = (1, 1, 0); return"): "std above 0",
    GOOD.replace("nn.ReLU()", "nn.LSTM(2, 2)"): "the network fails on two 32×32 pictures",
    "": "net.py is not there; give its path from the project's top folder",
}


@pytest.mark.parametrize("code", FAULTS, ids=list(FAULTS.values()))
def test_each_fault_of_ones_own_network_is_one_sentence(code: str) -> None:
    with pytest.raises(HeadstartError) as refusal:
        stored(code)
    assert FAULTS[code] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_of_ones_own_may_hold_what_looks_for_its_own_module() -> None:
    code = "from dataclasses import dataclass, field\n@dataclass\nclass Width:\n    of: int = field(default=8)\n"
    assert own(code + GOOD).trunk().network is not None
    Path("net.py").write_text(GOOD + "raise AttributeError('inside')")
    with pytest.raises(HeadstartError, match=r"net\.py does not run: AttributeError: inside"):
        architecture("net.py:small")


def test_bytecode_beside_a_file_of_ones_own_is_neither_run_nor_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = Path("net.py").absolute()
    file.write_text("raise SystemExit('the bytecode was run')")
    bytecode = Path(py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH))
    file.write_text(GOOD)
    architecture("net.py:small")
    bytecode.unlink()
    architecture("net.py:small")
    assert not list(bytecode.parent.iterdir())


def test_a_file_of_ones_own_that_is_not_there_is_said() -> None:
    with pytest.raises(HeadstartError, match=r"backbone 'gone.py:net': gone.py is not there"):
        architecture("gone.py:net")


@pytest.mark.parametrize("content", [None, b"damaged"], ids=["missing", "damaged"])
@pytest.mark.parametrize("file", ["card.json", "weights.safetensors"])
def test_a_stored_backbone_that_is_missing_or_damaged_is_said(file: str, content: bytes | None) -> None:
    stored(GOOD)
    path = Path("backbone") / file
    path.unlink() if content is None else path.write_bytes(content)
    how = "" if content is None else "--force --single-item "
    with pytest.raises(HeadstartError, match=f"backbone.*; run `dvc repro {how}backbone`"):
        load_trunk(Path("backbone"), Path("net.py"))


def test_importing_the_libraries_of_networks_does_not_import_torchs_compiler_and_leaves_it_usable() -> None:
    program = """
import sys
import torch
from headstart.models.backbones import architecture
for name in ("resnet18", "tf_efficientnet_lite0"):
    architecture(name).trunk()
print([module for module in sys.modules if module.startswith("torch._dynamo")])
from torchvision.ops import roi_align
compiled = torch.compile(lambda x: x * 2, backend="eager")(torch.ones(1))
print(compiled.item(), tuple(roi_align(torch.rand(1, 3, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).shape))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "2.0 (1, 3, 2, 2)"], done.stdout + done.stderr
