"""What is unlike anything learned is told, and pictures like those of validation pass as often as promised."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestNeighbors

from headstart.base.artifacts import DATA, ClassifierFolder, ModelFolder, PackageFolder
from headstart.base.artifacts.classifier import ClassifierDetails, FamiliarityDetails, Threshold, Thresholds
from headstart.base.artifacts.metrics import Metrics, Name
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, write_json
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.data.manifest import read_manifest
from headstart.evaluation import report
from headstart.inference import familiarity
from headstart.inference.batch import BatchPredictor
from headstart.inference.familiarity import FEWEST, NAMED, NEIGHBOUR, SHARE, distances, fit
from headstart.inference.package import _spread, package
from headstart.inference.predictor import load_predictor
from headstart.inference.server import Limits, application, model_info
from headstart.models import weights
from headstart.models.backbones import architecture
from headstart.training import features, finetune, linear_probe
from headstart.training.feature_files import load_features
from tests import test_cli
from tests.inference.test_predictor import CLASSES, known, plain, png, put_model
from tests.inference.test_server import PATIENCE_S, served
from tests.stages.test_ui import BROWSERS, browser_page
from tests.test_cli import Run
from tests.training.test_finetune import SMALL

run = test_cli.run  # a fixture
PROJECT = Path(__file__).parents[2]

# --- the distance and its threshold ------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 40), reference=st.integers(1, 60), width=st.integers(1, 30), more=st.integers(0, 5),
    seed=st.integers(0, 1000), k=st.integers(1, 7),
)  # fmt: skip
@settings(max_examples=40)
def test_distances_are_those_of_scikit_learns_nearest_neighbours(
    rows: int, reference: int, width: int, more: int, seed: int, k: int
) -> None:
    random, k = np.random.default_rng(seed), min(k, reference)
    kept, found = random.normal(size=(reference, width)), random.normal(size=(rows, width + more))
    unit = torch.nn.functional.normalize(torch.from_numpy(kept).float(), dim=1)
    near, places = distances(torch.from_numpy(found), unit, k)
    expected, _ = NearestNeighbors(n_neighbors=k, metric="cosine").fit(kept).kneighbors(found[:, :width])
    np.testing.assert_allclose(near, expected, atol=1e-5)
    named = torch.cosine_similarity(torch.from_numpy(found[:, None, :width]), unit[places].double(), dim=2)
    np.testing.assert_allclose(1 - named, near, atol=1e-5)


@given(count=st.integers(FEWEST, 400), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_the_threshold_is_that_of_conformal_prediction(
    count: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = ClassifierFolder(tmp_path_factory.mktemp("files"))
    generator = torch.Generator().manual_seed(seed)
    reference, val, test = (torch.randn(n, 8, generator=generator) for n in (30, count, 50))
    familiar = fit(reference, [f"{n}.png" for n in range(30)], val, test, folder)
    details = FamiliarityDetails.read(folder.familiarity)
    assert (len(familiar), familiar.sum()) == (details.val.pictures, details.val.familiar)
    assert SHARE * (count + 1) <= details.val.familiar < SHARE * (count + 1) + 1  # no two distances are the same
    compared = familiarity.load(folder, 8)
    assert compared is not None
    assert [not paths for paths in compared.nearest(val)] == familiar.tolist()
    assert sum(not paths for paths in compared.nearest(test)) == details.test.familiar
    assert compared.nearest(val[:0]) == []


def test_new_pictures_pass_as_often_as_said_however_few_there_were_to_choose_by(tmp_path: Path) -> None:
    files, generator, passed = ClassifierFolder(tmp_path), torch.Generator().manual_seed(0), []
    for _ in range(300):
        reference, val, test = (torch.randn(n, 4, generator=generator).abs() for n in (40, 25, 100))
        fit(reference, [""] * 40, val, test, files)
        passed.append(FamiliarityDetails.read(files.familiarity).test.familiar / 100)
    assert np.mean(passed) == pytest.approx(25 / 26, abs=0.01)  # at least SHARE, and less than 1/26 more


@given(labels=st.lists(st.sampled_from("abcd"), min_size=1, max_size=200), room=st.integers(1, 50), width=st.integers(1, 9))
@settings(max_examples=50)
def test_where_there_is_no_room_for_all_pictures_each_class_keeps_as_many(labels: list[str], room: int, width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(familiarity, "MOST_BYTES", room * 2 * width)
        kept = _spread(pd.Series(labels, index=range(7, 7 + len(labels))), width)
        assert kept.tolist() == _spread(pd.Series(labels), width).tolist()
    assert len(kept) == min(room, len(labels))
    assert sorted(set(kept.tolist())) == kept.tolist()
    counts, held = pd.Series(labels).value_counts(), pd.Series(labels)[kept].value_counts()
    for name, count in counts.items():
        assert held.get(name, 0) == count or held.get(name, 0) >= held.max() - 1


# --- the package, whatever validation chose -----------------------------------------------------------------------------

PARAMS = {
    "backbone": "small.py:net",
    "weights": "small.safetensors",
    "data": {"source": "pictures"},
    "split": {"val": 0.3, "test": 0.3, "near_duplicate_bits": 0},
    "head": {"C": [0.1, 10.0]},
    "finetune": {"unfreeze": "last", "epochs": 1, "batch_size": 8, "lr": 0.01, "head_lr": 0.01},
    "evaluate": {"bootstrap": 100, "mistakes": 0},
}


def speckled(colour: str, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 120, (40, 40, 3), dtype=np.uint8)
    pixels[..., 0 if colour == "red" else 2] += 80
    return Image.fromarray(pixels)


def strange(seed: int) -> Image.Image:
    """Broad green stripes."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, seed % 7 :: 8, 1] = pixels[:, (seed + 1) % 7 :: 8, 1] = 250
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every stage up to evaluate was run on eighty small pictures, and package for each choice."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(PROJECT / "dvc.yaml", folder)
        Path("small.py").write_text(SMALL)
        torch.manual_seed(0)
        save_file(architecture("small.py:net", Path("small.py")).whole().state_dict(), "small.safetensors")
        for number in range(80):
            colour = ("blue", "red")[number % 2]
            Path("pictures", colour).mkdir(parents=True, exist_ok=True)
            speckled(colour, number).save(f"pictures/{colour}/{number}.png")
        params = Params.model_validate(PARAMS)
        for step in (fetch.run, prepare.run, weights.run, features.run, linear_probe.run):
            step(params, DATA)
        finetune.run(params, DATA, lambda data, params: lambda row: None)
        report.run(params, DATA)
        choices: tuple[Name, ...] = ("head", "finetune", "ensemble")
        for chosen in choices:
            measured = Metrics.read(DATA.evaluate.metrics)
            share = measured.head_share if measured.head_share is not None else 0.5
            measured.model_copy(update={"chosen": chosen, "head_share": share}).write(DATA.evaluate.metrics)
            package(DATA, params, PackageFolder(DATA, chosen))
    return folder


@pytest.fixture
def model(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    monkeypatch.chdir(project)
    return PackageFolder(DATA, "head").model


@pytest.mark.parametrize("chosen", ["head", "finetune", "ensemble"])
def test_every_kind_of_classifier_tells_what_is_strange_and_knows_its_own(
    chosen: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    model, manifest = PackageFolder(DATA, chosen).model, read_manifest(DATA.prepare)
    details, predictor = FamiliarityDetails.read(model.classifier.familiarity), load_predictor(model)
    train = manifest[manifest["split"] == "train"]
    assert details.images == train["path"].tolist()
    assert (details.share, details.neighbour) == (SHARE, NEIGHBOUR)
    answers = predictor.predict([strange(seed) for seed in range(9)])
    for answer in answers:
        assert answer.unfamiliar
        assert answer.nearest is not None
        assert len(answer.nearest) == NAMED
        assert set(answer.nearest) <= set(details.images)
    for split, passed in (("val", details.val), ("test", details.test)):
        files = [Path("pictures", path) for path in manifest[manifest["split"] == split]["path"]]
        own = predictor.predict(files)
        assert len(own) == passed.pictures
        # They are decoded again here, and the thresholds' own picture may fall on its other side.
        assert abs(sum(not answer.unfamiliar for answer in own) - passed.familiar) <= 1
    learned = predictor.predict([Path("pictures", path) for path in details.images[:9]])
    assert sum(bool(answer.unfamiliar) for answer in learned) <= 1  # there may be an odd one among them
    stored = load_file(model.classifier.reference)["reference"]
    assert stored.dtype == torch.float16
    width = load_features(DATA.features, "train")[0].shape[1]
    assert stored.shape == (len(train), width)


@pytest.mark.parametrize("chosen", ["head", "finetune", "ensemble"])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_many_pictures_are_judged_as_each_alone(
    engine: str, chosen: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    model = PackageFolder(DATA, chosen).model
    pictures = [np.asarray(strange(n) if n % 3 == 0 else speckled("red", 1000 + n)) for n in range(40)]
    batched, predictor = BatchPredictor(model, engine=engine, threads=1, trust=True), load_predictor(model, trust=True)
    assert batched.engine.engine == engine
    together = batched.outputs(pictures)
    alone = [answer for picture in pictures for answer in predictor.predict([picture])]
    assert [output.nearest for output in together][::3] == [answer.nearest for answer in alone][::3]
    assert all(output.nearest for output in together[::3])
    np.testing.assert_allclose(
        [output.probabilities for output in together], [list(answer.probabilities.values()) for answer in alone], atol=1e-4
    )
    differ = [bool(o.nearest) != bool(a.nearest) for o, a in zip(together, alone, strict=True)]
    assert sum(differ) <= 1  # one may lie on the threshold


def test_the_same_inputs_give_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    again = PackageFolder(DATA, "again")
    package(DATA, Params.model_validate(PARAMS), again)  # of what was chosen last
    assert again.model.sums.read_bytes() == PackageFolder(DATA, "ensemble").model.sums.read_bytes()


def test_what_would_not_be_answered_is_not_counted_among_the_answers(model: ModelFolder) -> None:
    details, counted = (
        ClassifierDetails.read(model.classifier.details),
        FamiliarityDetails.read(model.classifier.familiarity),
    )
    assert details.answering is not None
    assert details.answering.pictures == counted.val.familiar


def test_the_digests_cover_it_and_mlflow_answers_with_it(model: ModelFolder, tmp_path: Path) -> None:
    strange(3).save(tmp_path / "strange.png")
    speckled("red", 77).save(tmp_path / "own.png")
    files = [str(tmp_path / "own.png"), str(tmp_path / "strange.png")]
    own, odd = load_predictor(model).predict(files)
    answers = mlflow.pyfunc.load_model(str(model)).predict(files)
    assert list(answers.columns) == ["label", "probability", "unfamiliar", "nearest", "blue", "red"]
    assert answers["unfamiliar"].tolist() == [False, True] == [own.unfamiliar, odd.unfamiliar]
    assert answers["nearest"].tolist() == ["", ";".join(odd.nearest or ())]
    named = mlflow.models.get_model_info(str(model)).signature.outputs.input_names()
    assert named == list(answers.columns)
    for name in ("familiarity.json", "familiarity.safetensors"):
        changed = ModelFolder(shutil.copytree(model, tmp_path / name))
        file = changed.classifier / name
        file.write_bytes(file.read_bytes()[:-1] + b" ")
        with pytest.raises(HeadstartError, match=f"{name} was changed"):
            load_predictor(changed, trust=True)
        file.unlink()
        with pytest.raises(HeadstartError, match=f"{name} is not there"):
            load_predictor(changed, trust=True)


def test_few_validation_pictures_promise_nothing_and_nothing_is_said(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(familiarity, "FEWEST", 1000)
    params = Params.model_validate(PARAMS)
    package(DATA, params, PackageFolder(tmp_path))
    model = PackageFolder(tmp_path).model
    assert (
        "24 validation pictures are too few to say what is unlike anything learned; that takes 1000"
        in capsys.readouterr().out
    )
    assert not model.classifier.familiarity.exists()
    assert not model.classifier.reference.exists()
    (answer,) = load_predictor(model, trust=True).predict([strange(0)])
    assert (answer.unfamiliar, answer.nearest) == (None, None)
    details = ClassifierDetails.read(model.classifier.details)
    assert details.answering is not None
    assert details.answering.pictures == 24
    assert FEWEST == 19  # the least n for which a twentieth of n + 1 is a picture


# --- predict, serve ------------------------------------------------------------------------------------------------------


def put_familiarity(classifier: Path, learned: tuple[str, ...] = ("red", "green")) -> None:
    """What the package stage puts into a model of colours (``put_model``) that has learned from shades of some alone."""
    torch.manual_seed(0)
    order = ("red", "green", "blue")  # of the features
    shades = torch.rand(40 * len(learned), 3) ** 3 * 0.4
    for number, name in enumerate(learned):
        shades[40 * number : 40 * (number + 1), order.index(name)] += 0.6
    images = [f"{learned[n // 40]}/{n % 40}.png" for n in range(len(shades))]
    fit(shades[::2], images[::2], shades[1::2], shades[1::2], ClassifierFolder(classifier))


@pytest.fixture(params=[None, (0.5, 0.5, 0.5)], ids=["one label", "several labels"])
def colours(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """A model that knows red and green, and pictures in the three colours."""
    monkeypatch.chdir(tmp_path)
    for name in ("red", "green", "blue"):
        plain(name).save(f"{name}.png")
    classifier = put_model(tmp_path / "model/artifacts/classifier", thresholds=request.param)
    put_familiarity(classifier)
    return ModelFolder(known(classifier))


PICTURES = ("red.png", "green.png", "blue.png")


def test_predict_names_the_nearest_pictures_in_every_form(colours: ModelFolder, run: Run) -> None:
    asked = ("predict", *PICTURES, "--model", str(colours))
    rows = [json.loads(line) for line in run(*asked, "--format", "json")[1].splitlines()]
    assert [row["unfamiliar"] for row in rows] == [False, False, True]
    assert ["nearest" in row for row in rows] == [False, False, True]
    nearest = rows[2]["nearest"]
    assert len(nearest) == NAMED
    assert all(path.split("/")[0] in ("red", "green") for path in nearest)
    assert [row["label"] for row in rows] == ["red", "green", "blue"]  # what the classifier says is said as before
    code, out, err = run(*asked)
    assert (code, err) == (0, "")
    told = f"  unfamiliar, nearest: {', '.join(nearest)}"
    assert [line.endswith(told) for line in out.splitlines()] == [False, False, True]
    assert out.splitlines()[2].removesuffix(told).endswith("blue  blue.png")
    table = list(csv.DictReader(io.StringIO(run(*asked, "--format", "csv")[1])))
    assert list(table[0]) == ["image", "label", "probability", "unfamiliar", "nearest", *CLASSES]
    assert [(row["unfamiliar"], row["nearest"]) for row in table] == [("false", "")] * 2 + [("true", ";".join(nearest))]
    assert run(*asked, "--output", "a.parquet")[0] == 0
    stored = pq.read_table("a.parquet").to_pylist()
    assert [(row["unfamiliar"], row["nearest"]) for row in stored] == [(False, "")] * 2 + [(True, ";".join(nearest))]
    assert list(stored[0]) == list(table[0])


def test_a_familiar_picture_gets_the_answer_that_it_got_before(colours: ModelFolder, run: Run) -> None:
    asked = ("predict", *PICTURES, "--model", str(colours), "--format", "json")
    after = [json.loads(line) for line in run(*asked)[1].splitlines()]
    colours.classifier.familiarity.unlink()  # as models were packaged before
    colours.classifier.reference.unlink()
    known(colours.classifier)
    before = [json.loads(line) for line in run(*asked)[1].splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("unfamiliar", "nearest")} for row in after] == before
    text = run(*asked[:-2])[1]
    assert "unfamiliar" not in text
    (answer, *_) = load_predictor(colours).predict(["blue.png"])
    assert answer.unfamiliar is None
    header = run(*asked[:-1], "csv")[1].splitlines()[0]
    assert header == ",".join(["image", "label", "probability", *CLASSES])


def test_where_errors_are_bounded_an_unfamiliar_picture_gets_no_answer(colours: ModelFolder, run: Run) -> None:
    rows = [Threshold(confidence=0.1, answered=1.0, error=0.0, bound=0.04)]
    table = Thresholds(pictures=100, sure=0.95, thresholds=rows)
    file = colours.classifier.details
    several = read_json(file).get("task") == "multi-label"
    tables = {"answering_by_class": dict.fromkeys(CLASSES, table)} if several else {"answering": table}
    ClassifierDetails.read(file).model_copy(update=tables).write(file)
    known(colours.classifier)
    asked = ("predict", *PICTURES, "--model", str(colours), "--max-error", "0.05")
    code, out, err = run(*asked, "--format", "json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    if several:
        assert [(row["labels"], row["unsure"]) for row in answers] == [(["red"], []), (["green"], []), ([], list(CLASSES))]
        assert "6 of 9 decisions (3 pictures, 3 classes) answered" in err
    else:
        assert [row["label"] for row in answers] == ["red", "green", None]
        assert "2 of 3 answered" in err
        assert "of the familiar pictures" in err
    assert "1 unfamiliar picture got no answer" in err
    assert answers[2]["probabilities"]["blue"] > 0.9


def test_the_server_says_it_and_the_page_shows_it(colours: ModelFolder) -> None:
    batched = BatchPredictor(colours)
    with TestClient(application(batched, model_info(colours, batched, Limits()), Limits(), "ready")) as client:
        for path in ("/predict", "/explain"):
            known_one, strange_one = (client.post(path, content=png(plain(name))).json() for name in ("red", "blue"))
            assert known_one["unfamiliar"] is False
            assert "nearest" not in known_one
            assert strange_one["unfamiliar"] is True
            assert len(strange_one["nearest"]) == NAMED
        several = client.post("/predict", files=[("image", png(plain(name))) for name in ("blue", "red", "green")]).json()
        assert [answer["unfamiliar"] for answer in several] == [True, False, False]
        assert 'id="unfamiliar"' in client.get("/").text


@pytest.mark.browser
def test_the_page_names_the_nearest_pictures_of_an_unfamiliar_one(colours: ModelFolder, tmp_path: Path) -> None:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    with served(colours) as server, browser_page(tmp_path / "profile") as page:
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(server.address)
        for name in ("red", "blue", "green"):
            page.set_input_files("#file", f"{name}.png")
            page.get_by_role("status").filter(has_text=name).wait_for()
            told = page.locator("#unfamiliar")
            assert told.is_visible() == (name == "blue")
        page.set_input_files("#file", "blue.png")
        told.filter(has_text="The nearest training pictures: ").wait_for()
        assert told.inner_text().count(".png") == NAMED


DAMAGE: dict[str, tuple[Callable[[ClassifierFolder], None], str]] = {
    "another number of pictures": (
        lambda folder: save_file({"reference": torch.zeros(3, 3)}, folder.reference),
        r"familiarity\.safetensors is damaged \(it holds features \(3, 3\), for 40 pictures and a model of 3 features\)",
    ),
    "of a wider network": (
        lambda folder: save_file({"reference": torch.zeros(40, 4)}, folder.reference),
        r"familiarity\.safetensors is damaged \(it holds features \(40, 4\), for 40",
    ),
    "no numbers": (
        lambda folder: save_file({"reference": torch.full((40, 3), torch.nan)}, folder.reference),
        r"familiarity\.safetensors is damaged \(it holds numbers that are not finite",
    ),
    "no tensor": (
        lambda folder: save_file({"other": torch.zeros(3, 3)}, folder.reference),
        r"familiarity\.safetensors is damaged \('reference'\)",
    ),
    "no file": (lambda folder: folder.reference.unlink(), r"familiarity\.safetensors is not there"),
    "no such neighbour": (
        lambda folder: write_json(folder.familiarity, read_json(folder.familiarity) | {"neighbour": 41}),
        r"familiarity\.safetensors is damaged \(it holds features \(40, 3\)",
    ),
    "no threshold": (
        lambda folder: write_json(folder.familiarity, read_json(folder.familiarity) | {"threshold": None}),
        r"familiarity\.json: threshold: ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_together_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classifier = ClassifierFolder(put_model(tmp_path / "model/artifacts/classifier"))
    put_familiarity(classifier, ("red",) * 2)
    change, sentence = DAMAGE[damage]
    change(classifier)
    with pytest.raises(HeadstartError, match=sentence):
        load_predictor(known(classifier))
