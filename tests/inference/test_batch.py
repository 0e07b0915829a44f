"""Many pictures at a time get the answers that each would get alone, in order, whatever runs the network."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, write_json
from headstart.data.decode import Unusable
from headstart.inference import batch
from headstart.inference.batch import BatchPredictor
from headstart.inference.predictor import Output, load_predictor
from headstart.inference.selective import CONFIDENCE_LEVEL, threshold_for, thresholds
from headstart.models.backbones import Architecture, architecture, side_by_side
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.trunk import feature_width
from tests import test_cli
from tests.data import hostile
from tests.inference.test_predictor import CLASSES, known, plain, png, put_model
from tests.test_cli import Run

run = test_cli.run  # a fixture


def put_network(model: Path, *members: Architecture) -> Path:
    """A packaged model with a real, small, random network, or several side by side, that decides: its probabilities are
    anything but even."""
    folder = model / "artifacts/classifier"
    folder.mkdir(parents=True)
    (folder / "network.py").touch()
    members = members or (architecture("test_resnet"),)
    name = "+".join(member.name for member in members)
    trunk = (side_by_side(name, members) if len(members) > 1 else members[0]).trunk().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        seen = trunk(trunk.view.batch([np.asarray(picture(n)) for n in range(8)]))
    weight = torch.randn(len(CLASSES), feature_width(trunk), generator=generator) / (seen.std(0).norm() + 1e-8)
    classifier = Classifier(trunk, FittedHead(LinearHead.of(weight, -(weight @ seen.mean(0))), 0.5, CLASSES))
    state = {key: value.contiguous() for key, value in classifier.state_dict().items()}
    save_file(state, folder / "classifier.safetensors")
    details = {
        "backbone": name, "weights": "default", "preprocessing": trunk.view.as_dict(), "classes": CLASSES,
        "temperature": 0.5, "chosen": "head", "max_megapixels": 30.0, "short_side": 384,
    }  # fmt: skip
    write_json(folder / "classifier.json", details)
    return model


def picture(number: int, height: int = 90, width: int = 120) -> Image.Image:
    """A coloured cloud."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_network(tmp_path_factory.mktemp("network") / "model")


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return known(put_model(tmp_path / "model/artifacts/classifier"))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_answers_are_the_packaged_predictors_whatever_runs_the_network(engine: str, model: Path) -> None:
    batched = BatchPredictor(model, engine=engine, threads=1)
    assert batched.engine.engine == engine
    pictures = [np.asarray(picture(n, 60 + 9 * n, 150 - 7 * n)) for n in range(11)]
    expected = [list(answer.probabilities.values()) for answer in load_predictor(model).predict(pictures)]
    found = batched.probabilities(pictures)
    assert found.dtype == np.float64
    assert found.shape == (11, len(CLASSES)) == (11, len(batched.classes))
    assert np.ptp(found, axis=0).max() > 0.05  # they do differ
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.sum(axis=1) == pytest.approx(1)
    assert batched.probabilities([]).shape == (0, len(CLASSES))


def test_networks_with_views_of_different_sizes_are_run_by_the_engine_for_many_pictures(tmp_path: Path) -> None:
    model = put_network(tmp_path / "model", architecture("test_resnet", size=96), architecture("test_resnet", size=64))
    batched, predictor = BatchPredictor(model), load_predictor(model)
    assert len(batched.view.different) == 2
    pictures = [np.asarray(picture(n)) for n in range(40)]
    expected = [list(answer.probabilities.values()) for answer in predictor.predict(pictures)]
    np.testing.assert_allclose(batched.probabilities(pictures), expected, atol=1e-4)
    assert BatchPredictor(model, engine="openvino").engine.engine == "openvino"


def test_many_threads_may_ask_at_once_and_each_gets_its_own_answers(model: Path) -> None:
    batched = BatchPredictor(model, engine="openvino", threads=1)
    asked = [[np.asarray(picture(10 * n + k)) for k in range(1 + n % 9)] for n in range(24)]
    alone = [batched.probabilities(pictures) for pictures in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(batched.probabilities, asked))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_files_are_answered_in_their_order_and_the_bad_in_their_place(model: Path, tmp_path: Path) -> None:
    batched = BatchPredictor(model, 10, threads=2)
    batched.batch = 4
    files = [tmp_path / f"{n}.jpg" for n in range(30)]
    for n, file in enumerate(files):
        picture(n).save(file)
        if n % 7 == 3:
            file.write_bytes(file.read_bytes()[:200])
    found = list(batched.predict_files(iter(files)))
    assert [path for path, _ in found] == files
    assert [n for n, (_, answer) in enumerate(found) if isinstance(answer, Unusable)] == [3, 10, 17, 24]
    usable = [file for n, file in enumerate(files) if n % 7 != 3]
    expected = [list(answer.probabilities.values()) for answer in load_predictor(model).predict(usable)]
    np.testing.assert_allclose([a.probabilities for _, a in found if isinstance(a, Output)], expected, atol=1e-4)


def test_hostile_files_are_named_and_the_others_answered(model: Path, tmp_path: Path) -> None:
    batched = BatchPredictor(model, 10, threads=2)
    picture(1).save(tmp_path / "0.jpg")
    (tmp_path / "1.ico").write_bytes(hostile.icon_with(hostile.png(60_000, 60_000)))
    (tmp_path / "2.jpg").write_bytes(hostile.jpeg_of_scans(60_000, 1500, 5000))
    (tmp_path / "3.jpg").write_bytes(hostile.eps("{} loop"))
    with (tmp_path / "4.mp4").open("wb") as stream:
        stream.truncate(12_000_000_000)
    picture(2).save(tmp_path / "5.jpg")
    found = list(batched.predict_files(sorted(tmp_path.iterdir())))
    assert [isinstance(answer, Unusable) for _, answer in found] == [False, True, True, True, True, False]


def test_pictures_are_not_read_far_ahead_of_who_takes_the_answers(model: Path, tmp_path: Path) -> None:
    batched = BatchPredictor(model, 10, threads=1)
    batched.batch = 4
    picture(0).save(tmp_path / "a.png")
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield tmp_path / "a.png"

    answers = batched.predict_files(endless())  # type: ignore[arg-type]
    next(answers)
    answers.close()
    assert taken <= 3 * batched.batch


def test_a_photograph_is_decoded_at_the_size_that_training_saw(model: Path) -> None:
    stream = io.BytesIO()
    picture(1, 2000, 3000).save(stream, "JPEG")
    batched = BatchPredictor(model, 1, threads=1)
    assert batched.decode(stream.getvalue()).shape == (384, 576, 3)
    direct, decoded = batched.probabilities([np.asarray(picture(1, 2000, 3000)), batched.decode(stream.getvalue())])
    np.testing.assert_allclose(decoded, direct, atol=0.05)


def test_few_pictures_wait_for_no_compiler(model: Path) -> None:
    assert BatchPredictor(model, 3, threads=1).engine.engine == "torch"


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for name in ("red", "green", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(plain(name)))
    return ["red.png", "green.png", "blue.png"]


@pytest.mark.usefixtures("colours")
def test_every_form_says_the_same_to_a_file_and_its_ending_chooses_the_form(run: Run, pictures: list[str]) -> None:
    for name in ("a.csv", "a.json", "a.parquet", "a.txt"):
        assert run("predict", *pictures, "--model", "model", "--output", name) == (0, "", "")
    as_json = [json.loads(line) for line in Path("a.json").read_text().splitlines()]
    as_csv = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    table = pq.read_table("a.parquet")
    assert table.column_names == ["image", "label", "probability", *CLASSES]
    assert [row["label"] for row in as_json] == ["red", "green", "blue"]
    for row, strings, answer in zip(table.to_pylist(), as_csv, as_json, strict=True):
        probabilities = answer.pop("probabilities")
        assert row == answer | probabilities
        assert {key: value if key in ("image", "label") else float(value) for key, value in strings.items()} == row
    assert Path("a.txt").read_text().split() == [
        part for row in as_json for part in (f"{row['probability']:.1%}", row["label"], row["image"])
    ]
    assert run("predict", *pictures, "--model", "model", "--output", "b.csv", "--format", "json")[0] == 0
    assert Path("b.csv").read_text() == Path("a.json").read_text()
    assert run("predict", *pictures, "--model", "model")[1] == Path("a.txt").read_text()


@pytest.mark.usefixtures("colours", "pictures")
def test_paths_come_on_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(lines: bytes) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return run("predict", "-", "--model", "model")

    code, out, _ = given(b"blue.png\nred.png\n")
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["blue.png", "red.png"])
    code, out, err = given(b"gone.png\nred.png")
    assert (code, out.split()[-1]) == (1, "red.png")
    assert err.startswith("headstart: gone.png: cannot be read: No such file or directory\n")
    assert given(b"\n") == (1, "", "headstart: no pictures in -\n")
    code, out, _ = given(b"blue.png\0red.png\0")  # find -print0
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["blue.png", "red.png"])
    assert run("predict", 300 * "x", "--model", "model")[2] == f"headstart: {300 * 'x'} is not there\n"


@pytest.mark.usefixtures("colours", "pictures")
def test_what_is_hidden_in_a_folder_is_passed_over(run: Run) -> None:
    for name in (".cache", "seen"):
        Path("all", name).mkdir(parents=True)
        shutil.copy("red.png", Path("all", name))
    Path("all/seen/again").symlink_to(Path("all").resolve())  # round in circles
    code, out, _ = run("predict", "all", "--model", "model")
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["all/seen/red.png"])


@pytest.mark.usefixtures("colours")
def test_an_output_that_is_no_file_stays_what_it_is(run: Run, pictures: list[str]) -> None:
    os.mkfifo("pipe")
    end = os.open("pipe", os.O_RDWR)  # waits for nobody
    assert run("predict", *pictures, "--model", "model", "--output", "pipe") == (0, "", "")
    assert len(os.read(end, 10_000).splitlines()) == 3
    os.close(end)
    assert Path("pipe").is_fifo()
    code, _, err = run("predict", *pictures, "--model", "model", "--output", "a.xlsx")
    assert code == 1
    assert ".xlsx is not written; it may end in .txt, .csv, .json, .jsonl, .parquet, or name a --format" in err
    code, _, err = run("predict", *pictures, "--model", "model", "--output", "pipe", "--format", "parquet")
    assert (code, err) == (1, "headstart: --output pipe is not a regular file, which --format parquet needs\n")
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere/answers.txt")
    assert run("predict", *pictures, "--model", "model", "--output", "link")[0] == 0
    assert Path("link").is_symlink()
    assert len(Path("elsewhere/answers.txt").read_text().splitlines()) == 3


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("form", ["text", "json", "csv", "parquet"])
def test_a_files_name_need_not_be_text(form: str, run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(png(plain("red")))
    code, _, err = run("predict", name, "--model", "model", "--output", "out", "--format", form)
    assert (code, err) == (0, "")
    assert b"caf" in (tmp_path / "out").read_bytes()
    if form != "parquet":
        assert run("predict", name, "--model", "model", "--format", form)[0] == 0


@pytest.mark.usefixtures("colours")
def test_many_pictures_show_progress_on_the_error_stream_alone(run: Run, pictures: list[str]) -> None:
    many = pictures * 30
    code, out, err = run("predict", *many, "--model", "model")
    assert code == 0
    assert len(out.splitlines()) == len(many)
    assert err.startswith("predict: 90 pictures in ")


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "parquet"], "--format parquet needs --output FILE"),
        (["--output", "."], "--output . is a folder; name a file"),
        (["--output", "red.png/a.csv"], "red.png/a.csv cannot be written: "),
        (["--max-error", "1.5"], "--max-error 1.5; give a share between 0 and 1, such as 0.05"),
        (["--max-error", "0.05"], "this model was packaged without thresholds for --max-error; run `dvc repro package`"),
    ],
)
def test_what_cannot_be_written_or_promised_is_one_sentence(
    arguments: list[str], sentence: str, run: Run, pictures: list[str]
) -> None:
    code, out, err = run("predict", *pictures, "--model", "model", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"headstart: {sentence}")
    assert err.count("\n") == 1


def test_an_interrupted_run_leaves_no_half_file(
    colours: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())

    def interrupted(*_: object) -> object:
        yield Path("red.png"), Output(np.array([0.0, 0.0, 1.0]), None)
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchPredictor, "predict_files", interrupted)
    for form in ("csv", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            batch.predict([Path(name) for name in pictures], colours, form, Path("a"), None)
    assert sorted(tmp_path.iterdir()) == before


# --- saying nothing ---------------------------------------------------------------------------------------------------


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences anywhere in [0, 1] that are exactly right about themselves."""
    random = np.random.default_rng(seed)
    confidence = random.random(count)
    return confidence, random.random(count) < confidence


def test_the_promised_error_is_kept_as_often_as_said() -> None:
    kept, answered = [], []
    for seed in range(200):
        row = threshold_for(0.2, thresholds(*drawn(2000, seed)))
        kept.append((1 - row.confidence) / 2 <= 0.2)  # the true error of a calibrated classifier from there on
        answered.append(row.answered)
    assert np.mean(kept) >= CONFIDENCE_LEVEL
    assert np.mean(answered) >= 0.2  # 0.4 would be the most, if nothing had to be promised


def test_a_table_answers_more_the_more_errors_are_allowed() -> None:
    table = thresholds(*drawn(3000, 0))
    found = [threshold_for(allowed, table).answered for allowed in (0.1, 0.2, 0.3, 0.6)]
    assert found == sorted(found)
    assert found[-1] == 1.0
    assert threshold_for(0.6, table).confidence == 0.0
    assert [row.answered for row in table.thresholds] == pytest.approx([n / 10 for n in range(10, 0, -1)])


def test_what_cannot_be_promised_is_said_with_what_can() -> None:
    with pytest.raises(
        HeadstartError, match=r"no threshold can promise that after 20 validation pictures. The least is 0\.\d+"
    ):
        threshold_for(0.05, thresholds(np.linspace(0.5, 1, 20), np.ones(20, bool)))
    assert thresholds(np.ones(3), np.zeros(3, bool)).thresholds[0].bound == 1.0


@pytest.mark.usefixtures("pictures")
def test_below_the_threshold_there_is_no_label_in_any_form(run: Run, colours: Path) -> None:
    Path("grey.png").write_bytes(png(Image.new("RGB", (20, 20), "#808080")))
    details = colours / "artifacts/classifier/classifier.json"
    row = {"confidence": 0.9, "answered": 0.7, "error": 0.01, "bound": 0.04}
    table = {"pictures": 400, "sure": 0.95, "thresholds": [row | {"confidence": 0.0, "bound": 0.3}, row]}
    write_json(details, read_json(details) | {"answering": table})
    known(details.parent)
    asked = ("predict", "red.png", "grey.png", "--model", "model", "--max-error", "0.05")
    code, out, err = run(*asked)
    assert code == 0
    assert out.splitlines()[0].split()[1:] == ["red", "red.png"]
    assert "no answer (" in out.splitlines()[1]
    assert err == (
        "headstart: 1 of 2 answered, those of probability 0.900 and more; on validation that was 70% of the pictures, and "
        "1.0% of these were wrong\n"
    )
    assert [json.loads(line)["label"] for line in run(*asked, "--format", "json")[1].splitlines()] == ["red", None]
    assert [r["label"] for r in csv.DictReader(io.StringIO(run(*asked, "--format", "csv")[1]))] == ["red", ""]
    run(*asked, "--output", "a.parquet")
    assert pq.read_table("a.parquet")["label"].to_pylist() == ["red", None]
    assert "no answer" not in run(*asked[:-1], "0.3")[1]
