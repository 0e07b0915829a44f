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
from tests.inference.test_predictor import known, plain, png, put_model

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
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    known(put_model(tmp_path / "model/artifacts/classifier"))
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
    for name in (
        "predict",
        "export",
        "serve",
        "track",
        "models",
        "rank",
        "why",
        "labels",
        "review",
        "export-labels",
        "import-labels",
        "groups",
        "shortcuts",
        "tune",
        "drift",
        "retrain",
        "init",
        "upgrade",
        "gate",
        "promote",
        "rollback",
        "doctor",
        "verify",
    ):
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


ARTICLE = ["alexnet", "squeezenet1_0", "resnet18", "vgg16", "densenet161", "inception_v3"]


def test_models_is_a_table_with_a_line_for_each(run: Run) -> None:
    code, out, _ = run("models", *ARTICLE, "--sort", "top1")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == (
        ["backbone", "library", "top-1", "top-5", "tested", "at", "depth", "parameters", "GMACs", "input", "at", "hand"]
    )
    assert [line.split()[0] for line in lines[1:]] == [*ARTICLE[::-1]]
    assert lines[-1].split()[:10] == ["alexnet", "torchvision", "56.522", "79.066", "224", "8", "61.1", "M", "0.714", "224"]


def test_the_table_of_the_articles_six_is_what_models_prints(run: Run) -> None:
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| ([\d. M|]+) \|$", text, re.MULTILINE)
    told = {name: cells.split(" | ") for name, cells in found}
    lines = [line.split() for line in run("models", *ARTICLE)[1].splitlines()[1:]]
    assert {
        name: [top1, top5, depth, f"{parameters} {unit}", gmacs, size]
        for name, _, top1, top5, _, depth, parameters, unit, gmacs, size, *_ in lines
    } == told


def test_models_as_json_and_csv_say_the_same(run: Run) -> None:
    arguments = ["models", "test_resnet", "squeezenet1_0", "tf_efficientnet_lite0", "vit_small_patch14_dinov2"]
    as_json = [json.loads(line) for line in run(*arguments, "--format", "json")[1].splitlines()]
    as_csv = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv")[1])))
    assert [row["backbone"] for row in as_json] == sorted(arguments[1:])
    for row, strings in zip(as_json, as_csv, strict=True):
        assert list(row) == list(strings)
        assert {key: json.loads(value) if value and key not in ("backbone", "library") else value or None
                for key, value in strings.items()} == row  # fmt: skip
    assert as_json[2]["at_hand"] is True
    assert as_json[0]["parameters"] == 1248424
    assert as_json[3]["imagenet_top1"] is None


def test_models_that_do_not_exist_are_said(run: Run) -> None:
    assert run("models", "qqqq") == (1, "", "headstart: no backbone matches 'qqqq'\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sort", "speed"], "--sort 'speed'; allowed: name, top1, top5, depth, parameters, gmacs, size"),
        (["--library", "keras"], "--library 'keras'; allowed: torchvision, timm"),
        (["--format", "xml"], "--format 'xml'; allowed: text, csv, json"),
        (["--limit", "0"], "--limit 0; give 1 or more"),
        (["resnet18", "--min-top1", "99"], "none of the 1 backbones that match is within all of the options given"),
    ],
)
def test_what_models_cannot_do_is_one_sentence(run: Run, arguments: list[str], sentence: str) -> None:
    assert run("models", *arguments) == (1, "", f"headstart: {sentence}\n")


def test_models_asks_no_network(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from headstart.cli import app\n"
        "app(['models', '--at-hand', '--max-parameters', '5', '--format', 'json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["backbone"] == "tf_efficientnet_lite0"


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
        (["pictures", "--format", "xml"], "headstart: --format 'xml'; allowed: text, json, csv, parquet\n"),
    ],
)
def test_what_predict_cannot_do_is_one_sentence(run: Run, model: Path, arguments: list[str], sentence: str) -> None:
    Path("empty").mkdir()
    assert run("predict", *arguments, "--model", str(model)) == (1, "", sentence)


def test_what_the_system_refuses_is_one_sentence(run: Run) -> None:
    Path(".headstart").write_text("not a folder")
    code, out, err = run("models", "resnet18")
    assert (code, out) == (1, "")
    assert err.startswith("headstart: ")
    assert ".headstart" in err
    assert err.count("\n") == 1


def test_track_without_a_result_is_one_sentence(run: Run) -> None:
    code, out, err = run("track")
    assert (code, out) == (1, "")
    assert err == "headstart: data/evaluate/metrics.json is not there; run `dvc pull` or `dvc repro` first\n"


@pytest.mark.usefixtures("model")
def test_predicting_imports_nothing_that_only_training_needs(tmp_path: Path) -> None:
    code = (
        "import sys; from headstart.cli import app\n"
        "try: app(['predict', 'pictures', '--model', 'model'])\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print([name for name in ('mlflow', 'sklearn', 'matplotlib', 'captum', 'dvc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("ends", "status"), [("pass", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("raise OSError(2, 'no')", 1)]
)
def test_a_process_ends_with_all_that_was_to_be_done_at_its_end(ends: str, status: int, tmp_path: Path) -> None:
    code = (
        "import atexit, sys, tempfile, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from headstart.base.errors import run_cleanly\n"
        "folder = tempfile.TemporaryDirectory(dir='.')\n"
        "def late(): time.sleep(0.3); sys.stdout.write('thread\\n')\n"
        "def main():\n"
        "    atexit.register(print, 'handler')\n"
        "    ThreadPoolExecutor(1).submit(late)\n"
        "    threading.Thread(target=late).start()\n"
        "    print('work')\n"
        f"    {ends}\n"
        "run_cleanly(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (status, ["work", "thread", "thread", "handler"]), done.stderr
    assert list(tmp_path.iterdir()) == []  # the temporary folder is gone
