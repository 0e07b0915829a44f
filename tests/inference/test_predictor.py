"""The packaged classifier answers pictures in every form, and says in a sentence which one it cannot use."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from headstart.base.artifacts import ModelFolder
from headstart.base.errors import HeadstartError
from headstart.inference.predictor import BATCH, Prediction, Predictor
from headstart.inference.provenance import remember, write_sums
from headstart.models.backbones import architecture
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.trunk import feature_width

CLASSES = ("blue", "green", "red")
# A network that cannot be wrong about colours: the mean of each channel, last first, is the feature.
NETWORK = """
from torch import nn

def colours(num_classes):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    net.input_size, net.mean, net.std = 16, (0, 0, 0), (1, 1, 1)
    return net
"""


def put_model(folder: Path, temperature: float = 1.0, thresholds: tuple[float, ...] | None = None) -> Path:
    """What the package stage puts below artifacts/classifier. With thresholds the model is multi-label: each colour that a
    picture is half full of has the probability one half."""
    folder.mkdir(parents=True)
    (folder / "network.py").write_text(NETWORK)
    trunk = architecture("net.py:colours", folder / "network.py").trunk()
    bias = torch.full((3,), 0.0 if thresholds is None else -4.5)
    model = Classifier(trunk, FittedHead(LinearHead.of(torch.eye(3).flip(0) * 9, bias), temperature, CLASSES))
    save_file(model.state_dict(), folder / "classifier.safetensors")
    details = {
        "backbone": "net.py:colours", "weights": "default", "preprocessing": trunk.view.as_dict(),
        "classes": CLASSES, "temperature": temperature, "chosen": "head", "max_megapixels": 0.5,
    }  # fmt: skip
    details |= {} if thresholds is None else {"task": "multi-label", "thresholds": thresholds}
    (folder / "classifier.json").write_text(json.dumps(details))
    return folder


def known(classifier: Path) -> Path:
    """What the package stage does then, in the current folder's checkout: the packaged model."""
    model = ModelFolder(classifier.parents[1])
    model.mlmodel.write_text("metadata: SHA256SUMS")
    write_sums(model)
    remember(model)
    return model


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(put_model(tmp_path_factory.mktemp("model") / "classifier"))


def plain(name: str, height: int = 20, width: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), {"red": "#ff0000", "green": "#00ff00", "blue": "#0000ff"}[name])


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_a_transformer_that_was_trained_on_another_size_than_it_was_built_for_is_loaded_as_built(tmp_path: Path) -> None:
    trunk = architecture("crossvit_tiny_240").trunk()
    head = FittedHead(LinearHead.of(torch.zeros(3, feature_width(trunk)), torch.zeros(3)), 1.0, CLASSES)
    (tmp_path / "network.py").touch()
    save_file(
        {k: v.contiguous() for k, v in Classifier(trunk, head).state_dict().items()}, tmp_path / "classifier.safetensors"
    )
    published = trunk.view.stored()
    details = {
        "backbone": "crossvit_tiny_240", "weights": "default", "classes": CLASSES, "temperature": 1.0,
        "max_megapixels": 1.0,
        "preprocessing": published.model_dump() | {"size": 256, "built_for": published.size},
    }  # fmt: skip
    (tmp_path / "classifier.json").write_text(json.dumps(details))
    predictor = Predictor(tmp_path)
    assert predictor.model.trunk.view.size == 256
    (answer,) = predictor.predict([np.zeros((300, 300, 3), np.uint8)])
    assert answer.probability == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", CLASSES)
def test_one_picture_gets_the_same_answer_in_every_form(name: str, predictor: Predictor, tmp_path: Path) -> None:
    image = plain(name)
    path = tmp_path / f"{name}.png"
    path.write_bytes(png(image))
    text = base64.b64encode(png(image)).decode()
    array = np.asarray(image)
    forms: list[Any] = [
        path, str(path), png(image), bytearray(png(image)), memoryview(png(image)), text, f"data:image/png;base64,{text}",
        array, array.tolist(), array.astype(np.int64), array / 255,
    ]  # fmt: skip
    answers = predictor.predict(forms)
    assert {answer.label for answer in answers} == {name}
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].probability == answers[0].probabilities[name] > 0.9
    assert tuple(answers[0].probabilities) == CLASSES


def test_base64_that_is_as_long_as_no_name_of_a_file_may_be_is_a_picture(predictor: Predictor) -> None:
    random = np.random.default_rng(0)
    pictures = (png(Image.fromarray(random.integers(0, 256, (10, 10, 3), np.uint8))) for _ in range(2000))
    data = next(data for data in pictures if b"/" not in base64.b64encode(data)[:256])
    text, binary = predictor.predict([base64.b64encode(data).decode(), data])
    assert text == binary


@given(st.lists(st.sampled_from(CLASSES), max_size=2 * BATCH + 3))
@settings(max_examples=20)
def test_answers_come_one_per_picture_in_order_however_many(predictor: Predictor, names: list[str]) -> None:
    answers = predictor.predict([np.asarray(plain(name)) for name in names])
    assert [answer.label for answer in answers] == names
    assert all(sum(answer.probabilities.values()) == pytest.approx(1) for answer in answers)


def test_the_temperature_softens_the_probabilities_and_changes_no_label(tmp_path: Path, predictor: Predictor) -> None:
    soft = Predictor(put_model(tmp_path / "soft", temperature=4.0))
    picture = np.asarray(plain("green"))
    (hard,), (softened,) = predictor.predict([picture]), soft.predict([picture])
    assert hard.label == softened.label == "green"
    assert hard.probability > softened.probability > 1 / 3
    assert softened.probability == pytest.approx(np.exp(9 / 4) / (np.exp(9 / 4) + 2), abs=1e-4)


def test_grey_arrays_are_pictures_too(predictor: Predictor) -> None:
    grey = np.full((20, 30), 200, np.uint8)
    assert predictor.predict([grey]) == predictor.predict([np.repeat(grey[:, :, None], 3, axis=2)])


def test_a_transparent_picture_lies_on_white(predictor: Predictor) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert predictor.predict([png(clear)]) == predictor.predict([np.full((20, 20, 3), 255, np.uint8)])


BAD: dict[str, tuple[Any, str]] = {
    "no file": ("holiday/gone.jpg", r"holiday/gone.jpg: no such file"),
    "a folder": (".", r"\.: no such file"),
    "not a picture": (b"GIF89 is not what follows, and more of it", "picture 1: not a picture that Pillow can read"),
    "no bytes": (b"", r"picture 1: empty file \(0 bytes\)"),
    "cut": (png(Image.effect_noise((90, 90), 90))[:3000], "picture 1: truncated or damaged"),
    "base64 of something else": (base64.b64encode(b"x" * 100).decode(), "picture 1: not a picture|: not a picture"),
    "too large": (png(Image.new("L", (1000, 1000))), "picture 1: 1000×1000 pixels is above prepare.max_megapixels"),
    "an array of another shape": (np.zeros((3, 20, 30), np.uint8), r"picture 1: .*found \(3, 20, 30\)"),
    "an empty array": (np.zeros((0, 5, 3), np.uint8), r"picture 1: .*found \(0, 5, 3\)"),
    "floats above 1": (np.full((5, 5, 3), 200.0), r"picture 1: a float array must lie in \[0, 1\]"),
    "not numbers": (np.full((5, 5, 3), np.nan), r"picture 1: a float array must lie in \[0, 1\]"),
    "integers above 255": (np.full((5, 5, 3), 256), "picture 1: an array must be uint8"),
    "booleans": (np.zeros((5, 5, 3), bool), "picture 1: an array must be uint8"),
    "ragged": ([[1, 2], [3]], "picture 1: an array must be"),
    "nothing": (None, "picture 1: an array must be"),
    "a number": (7, "picture 1: an array must be"),
    "an empty text": ("", "picture 1|: no such file"),
    "a zero byte in a path": ("a\0b.png", "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_picture_that_cannot_be_used_is_said_in_a_sentence(case: str, predictor: Predictor) -> None:
    picture, sentence = BAD[case]
    with pytest.raises(HeadstartError, match=sentence) as refusal:
        predictor.predict([np.asarray(plain("red")), picture])
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"classifier\.json is not there; run `dvc repro package`"):
        Predictor(tmp_path)


@pytest.mark.parametrize("file", ["classifier.json", "classifier.safetensors"])
def test_a_damaged_model_is_said(file: str, tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model")
    (folder / file).write_bytes((folder / file).read_bytes()[:20])
    with pytest.raises(HeadstartError, match="run `dvc repro --force --single-item package`"):
        Predictor(folder)


def test_the_model_is_tensors_and_json_and_needs_no_weights_from_elsewhere(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model")
    assert set(load_file(folder / "classifier.safetensors")) == {"head.weight", "head.bias"}
    assert isinstance(Predictor(folder).predict([np.asarray(plain("blue"))])[0], Prediction)
