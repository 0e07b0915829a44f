"""An exported classifier answers as the packaged one does, or there is no export."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from headstart.base.artifacts import DataFolder, PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json
from headstart.inference.export import DESCRIPTION, FORMS, export
from headstart.inference.predictor import load_predictor
from tests import test_cli
from tests.data.pictures import encoded
from tests.inference.test_batch import picture, put_network
from tests.inference.test_predictor import CLASSES, known, put_model
from tests.test_cli import Run
from tests.training.test_features import packed

run = test_cli.run  # a fixture
PROJECT = Path(__file__).parents[2]


def put_pictures(data: Path, count: int = 48) -> pd.DataFrame:
    _, manifest = packed(data / "prepare", count, None)
    manifest["label"] = [CLASSES[n % 3] for n in range(count)]
    manifest.to_parquet(PrepareFolder(data / "prepare").manifest)
    return manifest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged model with a real, small network, and pictures as prepare leaves them."""
    folder = tmp_path_factory.mktemp("project")
    put_network(folder / "model")
    (folder / "data").mkdir()
    put_pictures(folder / "data")
    return folder


def run_readme(folder: Path) -> subprocess.CompletedProcess[str]:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("to", FORMS)
def test_what_a_stranger_needs_is_in_the_folder_and_the_readme_runs(to: str, project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / to
    told = export(project / "model", to, DataFolder(project, "data"), folder, 0.9)
    assert str(folder) in told
    about = read_json(folder / DESCRIPTION)
    expected = {"onnx": ["model.onnx"], "openvino": ["model.bin", "model.xml"], "int8": ["model.bin", "model.xml"]}[to]
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "classifier.json", *expected]
    assert about["classes"] == list(CLASSES)
    assert about["checked"]["sentence"] in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir()] == [to]  # nothing else is left lying around
    picture(3, 200, 300).save(folder / "picture.jpg", quality=95)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 15
    done = run_readme(folder)
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    (answer,) = load_predictor(project / "model").predict([folder / "picture.jpg"])
    if to != "int8":
        assert about["checked"]["largest_difference"] <= 1e-3
        assert label == answer.label
        assert float(probability) == pytest.approx(answer.probability, abs=0.02)  # Pillow resizes and torch does here
    else:
        assert set(about["checked"]["cost"]) == {"accuracy", "low", "high"}
        assert abs(about["checked"]["cost"]["accuracy"]) <= 1 - about["checked"]["same_answer"] < 1


def odd_pictures() -> dict[str, bytes]:
    """One content in the pixel formats that Pillow's own conversion to RGB gets wrong."""
    seen = picture(3, 200, 300)
    alpha, exif = Image.linear_gradient("L").resize(seen.size), Image.Exif()
    exif[0x0112] = 6
    return {
        "16 bits": encoded(Image.fromarray(np.asarray(seen.convert("L")).astype(np.uint16) * 257), "PNG"),
        "16 bits in a TIFF": encoded(Image.fromarray(np.asarray(seen.convert("L")).astype(np.uint16) * 257), "TIFF"),
        "transparent": encoded(Image.merge("RGBA", (*seen.split(), alpha)), "PNG"),
        "a transparent colour": encoded(seen.quantize(16), "PNG", transparency=0),
        "turned": encoded(seen.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95),
        "CMYK": encoded(seen.convert("CMYK"), "TIFF"),
        "grey": encoded(seen.convert("L"), "PNG"),
    }


def test_the_readme_answers_as_headstart_does_for_every_kind_of_pixels(project: Path, tmp_path: Path) -> None:
    export(project / "model", "onnx", DataFolder(project, "data"), tmp_path / "out", 0.9)
    predictor = load_predictor(project / "model")
    for name, data in odd_pictures().items():
        (tmp_path / "out" / "picture.jpg").write_bytes(data)
        done = run_readme(tmp_path / "out")
        assert done.returncode == 0, done.stderr
        label, probability = done.stdout.split()
        (answer,) = predictor.predict([data])
        assert label == answer.label, name
        assert float(probability) == pytest.approx(answer.probability, abs=0.02), name


@pytest.mark.parametrize("frame", ["squeeze", "pad"])
@pytest.mark.parametrize("shape", [(100, 260), (260, 100)])
def test_the_readme_frames_pictures_as_the_model_does(
    frame: str, shape: tuple[int, int], project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project, tmp_path / "project")
    classifier = tmp_path / "project/model/artifacts/classifier"
    details = read_json(classifier / "classifier.json")
    details["preprocessing"]["frame"] = frame
    (classifier / "classifier.json").write_text(json.dumps(details))
    known(classifier)
    export(tmp_path / "project/model", "onnx", DataFolder(project, "data"), tmp_path / "out", 0.9)
    picture(3, *shape).save(tmp_path / "out/picture.jpg", quality=95)
    done = run_readme(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    (answer,) = load_predictor(tmp_path / "project/model").predict([tmp_path / "out/picture.jpg"])
    assert label == answer.label
    assert float(probability) == pytest.approx(answer.probability, abs=0.02)


def test_int8_weights_are_a_quarter_of_the_size(project: Path, tmp_path: Path) -> None:
    for to in ("openvino", "int8"):
        export(project / "model", to, DataFolder(project, "data"), tmp_path / to, 0.9)
    exact, small = ((tmp_path / to / "model.bin").stat().st_size for to in ("openvino", "int8"))
    assert small < exact / 2


def test_an_earlier_export_is_replaced_and_nothing_else(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for to in ("onnx", "openvino"):
        export(project / "model", to, DataFolder(project, "data"), folder, 0.01)
    assert not (folder / "model.onnx").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").touch()
    with pytest.raises(HeadstartError, match=r"thesis holds something that is not an export; name another --output"):
        export(project / "model", "openvino", DataFolder(project, "data"), other, 0.01)
    assert [path.name for path in other.iterdir()] == ["chapter.tex"]
    with pytest.raises(HeadstartError, match=r"--output .*chapter.tex/x cannot be written: "):
        export(project / "model", "openvino", DataFolder(project, "data"), other / "chapter.tex" / "x", 0.01)


MOODY = """
import torch
from torch import nn

class Moody(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.input_size, self.mean, self.std = 16, (0, 0, 0), (1, 1, 1)
        self.fc = nn.Linear(3, classes)
    def forward(self, pictures):
        seen = pictures.mean((2, 3))
        return self.fc(seen if bool((pictures == 0).all()) else seen.flip(1))

def colours(classes):
    return Moody(classes)
"""


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_network_that_a_converter_gets_wrong_is_refused(to: str, project: Path, tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model/artifacts/classifier")
    (folder / "network.py").write_text(MOODY)
    with pytest.raises(
        HeadstartError, match=rf"--to {to}( is refused: its probabilities differ|: this network cannot be)"
    ) as no:
        export(tmp_path / "model", to, DataFolder(project, "data"), tmp_path / "out", 0.01, trust=True)
    assert "\n" not in str(no.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def put_whispers(folder: Path, count: int = 60) -> None:
    """Pictures that differ by a tenth of a grey level on average, which eight bits from black to white cannot tell."""
    manifest = put_pictures(folder, count)
    random = np.random.default_rng(0)
    stored = []
    for number in range(count):
        pixels = np.full((256, 3), 128, np.uint8)
        pixels[random.permutation(256)[:26], 2 - number % 3] += 1
        if manifest["split"][number] == "train":
            pixels[:] = 255
        stored.append(pixels.tobytes())
    (folder / "prepare/pixels.bin").write_bytes(b"".join(stored))
    index = pd.read_parquet(folder / "prepare/pixels.parquet")
    index["offset"], index["length"], index["height"], index["width"] = np.arange(count) * 768, 768, 16, 16
    index["digest"] = [hashlib.sha256(pixels).digest() for pixels in stored]
    index.to_parquet(folder / "prepare/pixels.parquet")


QUIET = """
from torch import nn

class Quiet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.input_size, self.mean, self.std = 16, (0, 0, 0), (1, 1, 1)
        self.same = nn.Conv2d(3, 3, 1, bias=False)
        self.fc = nn.Linear(3, classes)
    def forward(self, pictures):
        return self.fc(self.same(pictures.pow(8)).mean((2, 3)))

def colours(classes):
    return Quiet(classes)
"""


def test_int8_that_costs_too_much_is_refused_with_what_it_costs(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model/artifacts/classifier")
    (folder / "network.py").write_text(QUIET)
    state = load_file(folder / "classifier.safetensors")
    state |= {"head.weight": state["head.weight"] * 1e6, "trunk.network.same.weight": torch.eye(3).view(3, 3, 1, 1)}
    save_file(state, folder / "classifier.safetensors")
    (tmp_path / "data").mkdir()
    put_whispers(tmp_path / "data")
    sentence = (
        r"int8 is refused: it costs \+\d+\.\d points \(\S+ to \S+\) of accuracy on \d+ validation pictures, and --max-cost"
    )
    with pytest.raises(HeadstartError, match=sentence):
        export(tmp_path / "model", "int8", DataFolder(tmp_path, "data"), tmp_path / "out", 0.01, trust=True)
    assert not (tmp_path / "out").exists()
    export(tmp_path / "model", "int8", DataFolder(tmp_path, "data"), tmp_path / "out", 0.99, trust=True)
    assert read_json(tmp_path / "out" / DESCRIPTION)["checked"]["cost"]["accuracy"] > 0.01


def test_classes_that_the_model_does_not_know_count_as_wrong_on_both_sides(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    manifest = put_pictures(tmp_path / "data")
    manifest["label"] = "violet"
    manifest.to_parquet(DataFolder(tmp_path, "data").prepare.manifest)
    export(project / "model", "int8", DataFolder(tmp_path, "data"), tmp_path / "out", 0.0)
    assert read_json(tmp_path / "out" / DESCRIPTION)["checked"]["cost"]["accuracy"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "coreml"], "--to 'coreml'; allowed: onnx, openvino, int8"),
        (["--to", "onnx", "--max-cost", "5"], "--max-cost 5; give a share between 0 and 1, such as 0.01"),
        (
            ["--to", "onnx", "--model", "nowhere"],
            "nowhere/artifacts/classifier/classifier.json is not there; run `dvc repro package`",
        ),
        (["--to", "onnx"], "data/prepare has no packed pictures"),
    ],
)
def test_what_export_cannot_do_is_one_sentence(arguments: list[str], sentence: str, run: Run) -> None:
    known(put_model(Path("data/package/model/artifacts/classifier")))
    code, out, err = run("export", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"headstart: {sentence}")
    assert err.count("\n") == 1


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    code = (
        "import openvino\n"
        "from headstart.inference.export import _nncf\n"
        "_nncf()\n"
        "from nncf.telemetry import wrapper\n"
        "import sys; print(type(wrapper.telemetry).__name__, hasattr(wrapper, 'Telemetry'))"
    )
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["MagicMock", "False"], done.stderr
    assert not list(tmp_path.rglob("*ga4*"))
