"""The ``headstart`` command: what it lists, what it predicts, and one sentence where it cannot."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart import __version__, cli
from tests.test_served import plain, png, put_model

Captured = pytest.CaptureFixture[str]


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Run:
    """Run the command in a folder of its own: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), *capsys.readouterr()

    return main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    put_model(tmp_path / "model/artifacts/classifier")
    for name in ("red", "green", "blue"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "1.png").write_bytes(png(plain(name)))
    return tmp_path / "model"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed command itself."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "headstart"), *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("predict", "track", "models", "rank", "tune"):
        assert name in done.stdout


def test_predicting_without_a_model_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(plain("red")))
    done = command("predict", "a.png", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("headstart: data/package/model")
    assert "run `dvc repro package`" in done.stderr


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version")[:2] == (0, f"{__version__}\n")


def test_models_lists_names_by_pattern_with_their_library(run: Run) -> None:
    code, out, _ = run("models", "resnet*")
    rows = dict(line.split("\t") for line in out.splitlines())
    assert code == 0
    assert rows["resnet18"] == "torchvision"
    assert rows["resnet18.a1_in1k"] == "timm"
    assert all(name.startswith("resnet") for name in rows)
    assert list(rows) == sorted(rows)


def test_models_takes_a_part_of_a_name(run: Run) -> None:
    out = run("models", "efficientnet_lite0")[1]
    assert "tf_efficientnet_lite0\ttimm" in out


def test_models_that_do_not_exist_are_said(run: Run) -> None:
    assert run("models", "qqqq") == (1, "", "headstart: no backbone matches 'qqqq'\n")


def test_every_name_listed_is_a_name_that_params_can_hold(run: Run) -> None:
    from headstart.backbones import architecture
    from headstart.errors import HeadstartError

    names = [line.split("\t")[0] for line in run("models")[1].splitlines()]
    assert len(names) > 1000
    for name in names[::40]:
        try:
            architecture(name)
        except HeadstartError as error:
            assert "square input" in str(error)


def test_predict_says_label_and_probability_of_files_and_folders(run: Run, model: Path) -> None:
    code, out, _ = run("predict", "pictures", "pictures/red/1.png", "--model", str(model))
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [(label, path) for _, label, path in lines] == [
        ("blue", "pictures/blue/1.png"), ("green", "pictures/green/1.png"), ("red", "pictures/red/1.png"),
        ("red", "pictures/red/1.png"),
    ]  # fmt: skip
    assert all(re.fullmatch(r"\d+\.\d%", probability) for probability, *_ in lines)


def test_predict_as_json_and_csv_say_the_same(run: Run, model: Path) -> None:
    as_json = [
        json.loads(line) for line in run("predict", "pictures", "--model", str(model), "--format", "json")[1].splitlines()
    ]
    rows = list(csv.DictReader(io.StringIO(run("predict", "pictures", "--model", str(model), "--format", "csv")[1])))
    assert len(rows) == len(as_json) == 3
    for row, answer in zip(rows, as_json, strict=True):
        assert (row["image"], row["label"]) == (answer["image"], answer["label"])
        assert {name: float(row[name]) for name in ("blue", "green", "red")} == answer["probabilities"]


def test_predict_answers_the_good_names_the_bad_and_ends_with_status_1(run: Run, model: Path) -> None:
    Path("pictures/green/2.png").write_text("no picture")
    code, out, err = run("predict", "pictures", "--model", str(model))
    assert code == 1
    assert out.count("\n") == 3
    assert err.splitlines() == [
        "headstart: pictures/green/2.png: not a picture that Pillow can read",
        "headstart: 1 of 4 pictures could not be used",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.jpg"], "headstart: gone.jpg is not there\n"),
        (["empty"], "headstart: no pictures in empty\n"),
        (["pictures", "--format", "xml"], "headstart: --format 'xml'; allowed: text, json, csv\n"),
    ],
)
def test_what_predict_cannot_do_is_one_sentence(run: Run, model: Path, arguments: list[str], sentence: str) -> None:
    Path("empty").mkdir()
    assert run("predict", *arguments, "--model", str(model)) == (1, "", sentence)


def test_track_without_a_result_is_one_sentence(run: Run) -> None:
    code, out, err = run("track")
    assert (code, out) == (1, "")
    assert err == "headstart: data/evaluate/metrics.json is not there; run `dvc pull` or `dvc repro` first\n"


def test_predicting_imports_nothing_that_only_training_needs(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from headstart.cli import app\n"
        "try: app(['predict', 'pictures', '--model', 'model'])\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print([name for name in ('mlflow', 'sklearn', 'matplotlib', 'captum', 'dvc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
