"""Several networks side by side are what each of them is alone, from the pictures to the packaged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from headstart.base.artifacts import DATA, BackboneFolder, DataFolder, PackageFolder
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.openvino import compiled_for
from headstart.evaluation import explain, report
from headstart.inference.export import export
from headstart.inference.package import package
from headstart.inference.predictor import Predictor, load_predictor
from headstart.models import weights
from headstart.models.backbones import load_first, load_trunk, stored_architecture
from headstart.models.preprocessing import View
from headstart.models.trunk import plain
from headstart.models.weights import store_backbones
from headstart.training import features, finetune, linear_probe
from headstart.training.feature_files import load_features

THREE = ["test_resnet@64", "test_vit/squeeze/stages", "test_efficientnet@48/pad"]
NO_NETWORK = Path("none")


def picture(seed: int, height: int = 90, width: int = 140) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def params_of(*backbone: str, **others: object) -> Params:
    return Params.model_validate({"backbone": list(backbone), "weights": "none", **others})


# --- one tensor for all views -----------------------------------------------------------------------------------------


def test_each_different_view_stands_below_the_one_before() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    views = [View(48, 0.8, "bicubic", mean, std, frame) for frame in ("centre", "pad", "centre")]
    views.append(View(64, 1.0, "bilinear", mean, std, "squeeze"))
    together = View(**vars(views[0]) | {"beside": tuple(views[1:])})
    assert together.different == [views[0], views[1], views[3]]
    assert together.shape == (48 + 48 + 64, 64)
    whole, top = together(picture(0)), 0
    for view in together.different:
        assert (whole[top : top + view.size, : view.size] == view(picture(0))).all()
        assert not whole[top : top + view.size, view.size :].any()
        top += view.size
    assert View.of(together.stored()) == together


# --- the trunk ----------------------------------------------------------------------------------------------------------


def test_the_features_are_those_of_each_network_alone(tmp_path: Path) -> None:
    card = store_backbones(params_of(*THREE, seed=3), NO_NETWORK, tmp_path)
    assert card == Card.read(BackboneFolder(tmp_path).card)
    trunk, _ = load_trunk(tmp_path)
    seen = [picture(1), picture(2, 200, 60)]
    together = trunk.eval()(trunk.view.batch(seen))
    alone = []
    for name in THREE:
        folder = tmp_path.with_name(name.replace("/", "+"))
        single = store_backbones(params_of(name, seed=3), NO_NETWORK, folder)
        member, _ = load_trunk(folder)
        alone.append(member.eval()(member.view.batch(seen)))
        assert single.preprocessing in [card.preprocessing.model_copy(update={"beside": None}), *card.preprocessing.beside]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)
    assert card.features == together.shape[1]
    again = stored_architecture(card.name, card.weights, card.preprocessing).trunk()
    again.network.load_state_dict(trunk.network.state_dict())
    assert torch.equal(again.eval()(trunk.view.batch(seen)), together)


@pytest.mark.parametrize("name", ["test_resnet@64", "test_vit", "tf_efficientnet_lite0@64/squeeze"])
def test_features_of_all_stages_begin_with_those_of_the_last_layer(name: str, tmp_path: Path) -> None:
    store_backbones(params_of(f"{name}/stages", seed=1), NO_NETWORK, tmp_path)
    trunk, card = load_trunk(tmp_path)
    pictures = trunk.view.batch([picture(1), picture(2), picture(3)])
    whole = trunk.eval()(pictures)
    assert whole.shape == (3, card.features)
    first, _ = load_first(tmp_path)
    last = first.eval()(pictures)
    assert torch.equal(whole[:, : last.shape[1]], last)
    assert trunk.view.shown == first.view
    assert torch.equal(plain(trunk)(pictures), last)
    assert torch.equal(trunk(pictures), whole)  # which is left as it was
    rest = whole[:, last.shape[1] :]
    network: Any = trunk.network
    _, maps = network.forward_intermediates(pictures)
    if "vit" in name:  # six blocks, of each the patches' mean and the class token
        assert rest.shape[1] == 6 * 2 * last.shape[1]
        torch.testing.assert_close(rest[:, : last.shape[1]], maps[0].mean((2, 3)))
    else:
        torch.testing.assert_close(rest, torch.cat([each.mean((2, 3)) for each in maps], dim=1))
    compiled = compiled_for(trunk, pictures)("fp32")
    torch.testing.assert_close(compiled(pictures), whole, rtol=1e-3, atol=1e-3)
    assert "all stages" in card.preprocessing.described()


def test_stages_are_those_of_timms_networks(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match="backbone 'squeezenet1_0' has no stages that can be looked at: only timm's"):
        store_backbones(params_of("squeezenet1_0/stages"), NO_NETWORK, tmp_path)


def test_one_network_under_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        HeadstartError, match=r"backbone: test_vit and test_vit@160 are the same network with the same view"
    ):
        store_backbones(params_of("test_vit", "test_vit@160"), NO_NETWORK, tmp_path)


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_folder_holds_the_networks_that_are_asked_for_whatever_it_held_before(tmp_path: Path) -> None:
    asked = [THREE, THREE[:1], [THREE[1], THREE[0]], THREE[1:2], THREE]
    for names in asked:
        store_backbones(params_of(*names), NO_NETWORK, tmp_path / "used")
        fresh = tmp_path / "+".join(names).replace("/", "-")
        store_backbones(params_of(*names), NO_NETWORK, fresh)
        assert contents(tmp_path / "used") == contents(fresh)


def test_weights_that_are_here_are_taken_along_and_nothing_is_lost_where_others_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite = "tf_efficientnet_lite0@64"
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "backbone"
    alone = Params.model_validate({"backbone": lite})
    store_backbones(alone, NO_NETWORK, folder)
    before = contents(folder)
    with pytest.raises(HeadstartError, match="no weights for backbone 'squeezenet1_0'"):
        store_backbones(Params.model_validate({"backbone": [lite, "squeezenet1_0"]}), NO_NETWORK, folder)
    assert before.items() <= contents(folder).items()
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "members/.DS_Store").touch()
    monkeypatch.setattr(weights, "_resolve", None)  # nobody is asked for the weights again
    both = Params.model_validate({"backbone": [lite, "tf_efficientnet_lite0/pad"]})
    store_backbones(both, NO_NETWORK, folder)
    monkeypatch.undo()
    store_backbones(both, NO_NETWORK, tmp_path / "fresh")
    assert contents(folder) == contents(tmp_path / "fresh")
    store_backbones(alone, NO_NETWORK, folder)
    assert contents(folder) == before


# --- the pipeline -------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty pictures, fetched and prepared."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_bytes((Path(__file__).parents[2] / "dvc.yaml").read_bytes())
    for number in range(60):
        label = ("blue", "red", "green")[number % 3]
        pixels = picture(number, 60 + number % 7, 90) // 2
        pixels[..., number % 3] += 60
        (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.png")
    return tmp_path


def settings(*backbone: str) -> Params:
    return params_of(
        *backbone,
        data={"source": "pictures"},
        split={"val": 0.3, "test": 0.3, "near_duplicate_bits": None},
        finetune={"unfreeze": "last", "scratch_epochs": 1, "scratch_passes": 1, "batch_size": 8, "size_ratio": 0.75},
        evaluate={"bootstrap": 100, "mistakes": 2},
        features={"engine": "torch"},
    )


def run(params: Params, stages: str = "fetch prepare backbone features head finetune evaluate") -> DataFolder:
    modules = {
        "fetch": fetch.run, "prepare": prepare.run, "backbone": weights.run, "features": features.run,
        "head": linear_probe.run, "evaluate": report.run,
        "finetune": lambda params, data: finetune.run(params, data, lambda *_: lambda row: None),
    }  # fmt: skip
    for stage in stages.split():
        modules[stage](params, DATA)
    return DATA


@pytest.mark.usefixtures("project")
def test_one_network_more_is_the_only_one_that_looks_at_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[View] = []
    original = features.FeatureExtractor.batches

    def counted(self: features.FeatureExtractor, rows: NDArray[np.int64]) -> object:
        if len(rows) > features.SAMPLE:  # a few are shown to the engines each time
            looked.append(self.trunk.view)
        return original(self, rows)

    monkeypatch.setattr(features.FeatureExtractor, "batches", counted)
    names = {}
    for members in (THREE[:2], THREE, THREE[1:]):
        run(settings(*members), "fetch prepare backbone features" if not names else "backbone features")
        names[len(names)], looked = {view.size for view in looked}, []
    assert [len(sizes) for sizes in names.values()] == [2, 1, 0]
    details = FeaturesDetails.read(DATA.features.details)
    held, _ = load_features(DATA.features, "val")
    assert held.shape[1] == sum(details.widths or [])
    trunk, _ = load_trunk(DATA.backbone)
    pixels, manifest = Pixels(DATA.prepare), read_manifest(DATA.prepare)
    seen = [pixels[int(row)] for row in np.flatnonzero(manifest["split"] == "val")]
    torch.testing.assert_close(held, trunk.eval()(trunk.view.batch(seen)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "backbone", [THREE[:2], THREE[:1], [f"{THREE[0]}/stages"], [f"{THREE[0]}/stages", THREE[1]]], ids="+".join
)
@pytest.mark.usefixtures("project")
def test_every_answer_is_the_same_in_the_package_as_in_the_evaluation(backbone: list[str]) -> None:
    params = settings(*backbone)
    data = run(params)
    found = report._classifiers(data)
    metrics = Metrics.read(data.evaluate.metrics)
    assert set(metrics.val) == {"head", "finetune", "ensemble"}
    share = metrics.head_share
    assert share in (0.25, 0.5, 0.75)
    pixels, manifest = Pixels(data.prepare), read_manifest(data.prepare)
    seen = [pixels[int(row)] for row in np.flatnonzero(manifest["split"] == "test")]
    answers: dict[Name, torch.Tensor] = {}
    for chosen in ("head", "finetune", "ensemble"):
        metrics.model_copy(update={"chosen": chosen}).write(data.evaluate.metrics)
        package(data, params, PackageFolder(data, chosen))
        packed = Predictor(PackageFolder(data, chosen).model.classifier).model
        with torch.inference_mode():
            answers[chosen] = packed.probabilities(packed(packed.trunk.view.batch(seen)))
            if chosen in found:
                model = found[chosen].eval()
                expected = model.probabilities(model(model.trunk.view.batch(seen)))
                torch.testing.assert_close(answers[chosen], expected, rtol=1e-4, atol=1e-6)
    mixed = answers["head"].log() * share + answers["finetune"].log() * (1 - share)
    torch.testing.assert_close(answers["ensemble"], mixed.softmax(dim=1), rtol=1e-3, atol=1e-5)
    heat = explain.heat_maps(Predictor(PackageFolder(data, "ensemble").model.classifier).model, seen[:2], [0, 1])
    assert heat is not None
    assert heat.shape == (2, 64, 64)


@pytest.mark.usefixtures("project")
def test_fine_tuning_can_be_switched_on_later() -> None:
    params = settings(*THREE[:2])
    off = params.model_copy(update={"finetune": params.finetune.model_copy(update={"unfreeze": "none"})})
    data = run(off)
    assert set(Metrics.read(data.evaluate.metrics).val) == {"head"}
    before = contents(data.head)
    run(params, "finetune evaluate")  # DVC does not run head again, which does not depend on finetune's parameters
    assert set(Metrics.read(data.evaluate.metrics).val) == {"head", "finetune", "ensemble"}
    run(params, "head")
    assert contents(data.head) == before


@pytest.mark.usefixtures("project")
def test_the_export_of_several_networks_answers_as_they_do(tmp_path: Path) -> None:
    params = settings(*THREE)
    data = run(params)
    package(data, params, data.package)
    told = export(data.package.model, "onnx", data, tmp_path / "out", 0.9)
    assert "of torch's on" in told
    about = json.loads((tmp_path / "out/classifier.json").read_text())
    assert [(view["size"], view["frame"]) for view in about["views"]][1:] == [(160, "squeeze"), (48, "pad")]
    (code,) = (tmp_path / "out/README.md").read_text().split("```python\n")[1:]
    (path, *_) = sorted((tmp_path / "pictures").rglob("*.png"))
    lines = code.split("```")[0].replace("picture.jpg", str(path))
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "out")
        exec(lines, names)
    (answer,) = load_predictor(data.package.model).predict([path])
    probabilities = names["probabilities"]
    assert isinstance(probabilities, np.ndarray)
    assert probabilities.tolist() == pytest.approx(list(answer.probabilities.values()), abs=0.02)


# --- what params.yaml may say -------------------------------------------------------------------------------------------


def test_a_list_of_networks_and_their_names_in_one_string_are_the_same() -> None:
    listed = Params.model_validate({"backbone": ["resnet18@288", "vgg16/pad"], "view": {"size": 200}})
    assert listed.backbone == "resnet18@288+vgg16/pad"
    assert listed == Params.model_validate({"backbone": "resnet18@288+vgg16/pad", "view": {"size": 200}})
    assert [(name, view.size, view.frame) for name, view in listed.members] == [
        ("resnet18", 288, "centre"), ("vgg16", 200, "pad"),
    ]  # fmt: skip
    for name, view, expected in [
        ("resnet18@288/pad", {}, (288, "pad")),
        ("resnet18@288/pad/stages", {}, (288, "pad")),
        ("resnet18/stages", {"size": 288, "frame": "pad"}, (288, "pad")),
        ("resnet18@288", {"frame": "squeeze"}, (288, "squeeze")),
        ("resnet18/squeeze", {"size": 96}, (96, "squeeze")),
    ]:
        single = Params.model_validate({"backbone": name, "view": view})
        assert (single.backbone, single.view.size, single.view.frame) == ("resnet18", *expected)
        assert single.view.stages == name.endswith("/stages")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"backbone": ["resnet18", "resnet18"]}, "backbone names 'resnet18' more than once with the same view"),
        ({"backbone": "resnet18+"}, "backbone: '' is not the name of a network"),
        ({"backbone": ["resnet18", "net.py:make"]}, "'net.py:make' is a network of your own, which cannot stand beside"),
        ({"backbone": "net.py:make+resnet18"}, r"'net.py:make\+resnet18' is a network of your own, which cannot stand"),
        ({"backbone": "resnet18/left"}, "backbone: in 'resnet18/left', frame must be 'centre', 'squeeze' or 'pad'"),
        ({"backbone": []}, r"backbone must be the name of a network or a list of names, found \[\]"),
        ({"backbone": [1, 2]}, r"backbone must be the name of a network or a list of names, found \[1, 2\]"),
        ({"backbone": [f"resnet18@{size}" for size in range(100, 109)]}, "puts 9 networks side by side; 8 is the most"),
        ({"backbone": "a+b", "weights": "x.pth"}, "weights: 'x.pth' is for one network"),
        ({"backbone": "a@9+b"}, "backbone: in 'a@9', size must be greater than or equal to 16, found 9"),
        ({"backbone": "a+b@500"}, "'b' shows the network 500 pixels"),
    ],
)
def test_a_combination_that_cannot_be_is_one_sentence(given: dict[str, object], told: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(given))
    with pytest.raises(HeadstartError, match=told) as refusal:
        Params.load(file)
    assert "\n" not in str(refusal.value)
