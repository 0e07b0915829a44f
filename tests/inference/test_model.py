"""What `headstart.load` gives answers pictures in every form, in the columns of `headstart predict`."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import headstart
from headstart.base.files import read_json, write_json
from headstart.inference import model as module
from tests import test_cli
from tests.inference.test_predictor import CLASSES, known, plain, png, put_model
from tests.test_cli import Run

run = test_cli.run  # a fixture
PROJECT = Path(__file__).parents[2]
COLUMNS = ["image", "label", "probability", "problem", *CLASSES]


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is never wrong about colours, in the current folder, and pictures beside it."""
    monkeypatch.chdir(tmp_path)
    Path("pictures/deeper").mkdir(parents=True)
    plain("red").save("pictures/a.png")
    plain("blue").save("pictures/deeper/b.png")
    return known(put_model(tmp_path / "model/artifacts/classifier"))


def test_a_picture_has_the_same_row_in_every_form(colours: Path) -> None:
    model, file = headstart.load(colours), Path("pictures/a.png")
    image = Image.open(file)
    forms: list[Any] = [
        file, str(file), bytes(file.read_bytes()), bytearray(file.read_bytes()), image, image.convert("RGBA"),
        image.convert("P"), image.convert("CMYK"), np.asarray(image), np.asarray(image) / 255, np.asarray(image).tolist(),
    ]  # fmt: skip
    together = model.predict(forms)
    assert list(together.columns) == COLUMNS
    assert together["image"].tolist() == ["pictures/a.png"] * 2 + [f"picture {n}" for n in range(2, len(forms))]
    assert set(together["label"]) == {"red"}
    assert set(together["problem"]) == {""}
    for number in (0, 2, 4, 8):
        form = forms[number]
        alone = model.predict(form)
        assert len(alone) == 1
        assert alone[list(CLASSES)].equals(together.loc[[number], list(CLASSES)].reset_index(drop=True)), type(form)
    assert model.predict(np.stack([image, image]))["label"].tolist() == ["red", "red"]
    assert model.predict(pd.Series([str(file)]))["label"].tolist() == ["red"]
    assert model.predict([]).empty
    assert list(model.predict([]).columns) == COLUMNS


def test_the_table_is_the_one_that_the_command_writes(colours: Path, run: Run) -> None:
    run("predict", "pictures", "--model", str(colours), "--output", "answers.csv")
    written = pd.read_csv("answers.csv")
    table = headstart.load(colours).predict("pictures")
    pd.testing.assert_frame_equal(table.drop(columns="problem"), written, check_dtype=False, check_exact=True)
    assert table["label"].tolist() == ["red", "blue"]


def test_a_picture_that_cannot_be_used_is_a_row_with_the_reason(colours: Path) -> None:
    Path("pictures/z.png").write_bytes(b"no picture")
    damaged = Image.open(io.BytesIO(png(Image.effect_noise((64, 64), 90))[:900]))
    table = headstart.load(colours).predict(["pictures", b"", np.zeros((3, 3, 7)), damaged, plain("green")])
    assert table["label"].fillna("none").tolist() == ["red", "blue", "none", "none", "none", "none", "green"]
    assert table["problem"].tolist()[:2] == ["", ""]
    reasons = ["not a picture that Pillow can read", "empty file", "an array must be", "truncated or damaged"]
    assert [reason in problem for reason, problem in zip(reasons, table["problem"][2:6], strict=True)] == [True] * 4
    assert table["probability"].isna().tolist() == [False, False, True, True, True, True, False]
    assert table["probability"].dtype == np.float64


def test_what_pillow_would_show_turned_or_transparent_is_seen_as_in_training(colours: Path) -> None:
    model = headstart.load(colours)
    half = Image.new("RGBA", (40, 20), (255, 0, 0, 0))  # nothing is seen of its red
    half.paste((0, 0, 255, 255), (0, 0, 20, 20))
    half.save("half.png")
    turned = Image.new("RGB", (40, 20), "red")
    turned.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save("turned.webp", lossless=True, exif=exif)
    for name in ("half.png", "turned.webp"):
        of_file, of_picture = model.predict(name), model.predict(Image.open(name))
        np.testing.assert_array_equal(of_file[list(CLASSES)], of_picture[list(CLASSES)])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nowhere.png", "nowhere.png is not there"),
        (["pictures", "-"], "/- is not there"),
        (5, "predict takes a picture or a list of them: .* found int"),
        ({"image": "a.png"}, "found dict"),
        (pd.DataFrame({"image": ["a.png"]}), "found DataFrame"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(given: Any, sentence: str, colours: Path) -> None:
    with pytest.raises(headstart.HeadstartError, match=sentence):
        headstart.load(colours).predict(given)


def test_a_model_that_is_not_there_or_not_made_here_is_refused(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(headstart.HeadstartError, match="nowhere"):
        headstart.load("nowhere")
    elsewhere = colours.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(headstart.HeadstartError, match="trust"):
        headstart.load(colours)
    assert headstart.load(colours, trust=True).classes == CLASSES


def test_many_pictures_have_an_engine_of_their_own_prepared_once(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    predictor = module.BatchPredictor

    def prepare(folder: Path, pictures: int, **more: Any) -> Any:
        prepared.append(pictures)
        return predictor(folder, pictures, **more)

    monkeypatch.setattr(module, "BatchPredictor", prepare)
    model = headstart.load(colours)
    pixels = np.zeros((9, 9, 3), np.uint8)
    assert [len(model.predict([pixels] * count)) for count in (1, 60, 128, 200, 300)] == [1, 60, 128, 200, 300]
    assert prepared == [1, 128, 300]


def test_answers_that_are_not_sure_enough_are_left_out(colours: Path) -> None:
    classifier = colours / "artifacts/classifier"
    row = {"confidence": 0.99, "answered": 0.5, "error": 0.0, "bound": 0.01}
    details = read_json(classifier / "classifier.json")
    write_json(
        classifier / "classifier.json", details | {"answering": {"pictures": 300, "sure": 0.95, "thresholds": [row]}}
    )
    known(classifier)
    table = headstart.load(colours).predict([plain("red"), Image.blend(plain("red"), plain("blue"), 0.5)], max_error=0.05)
    assert table["label"].fillna("none").tolist() == ["red", "none"]
    assert table["problem"].tolist() == ["", ""]
    assert table["probability"].notna().all()


@pytest.mark.usefixtures("checkout_with_store")
def test_mlflow_evaluates_the_answers_on_a_folder_by_the_code_in_the_documentation(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (PROJECT / "docs/use.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "models.evaluate" in block)
    shutil.rmtree("pictures")
    for folder, colour, name in (("red", "red", "1.png"), ("red", "blue", "2.png"), ("green", "green", "3.png")):
        Path("pictures", folder).mkdir(parents=True, exist_ok=True)
        plain(colour).save(Path("pictures", folder, name))
    Path("pictures/red/damaged.png").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    found: dict[str, Any] = {}
    exec(code.replace("data/package/model", str(colours)), found)
    assert found["found"].metrics["accuracy_score"] == pytest.approx(2 / 3)
    assert found["answered"]["truth"].tolist() == ["green", "red", "red"]
