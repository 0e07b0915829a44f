"""Predictions in parts: each picture is answered once, whatever is killed, changed or added in between."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.core import set_initial_no_auth_action_count

from headstart.data.in_place import Place
from headstart.inference import parts as parts_module
from tests import test_cli
from tests.data.test_in_place import reads, uploaded  # noqa: F401 - reads is a fixture
from tests.inference.test_predictor import CLASSES, known, plain, png, put_model
from tests.test_cli import Run

run = test_cli.run  # a fixture

ORDER = ("red", "green", "blue")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return known(put_model(tmp_path / "model/artifacts/classifier"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "ROWS", 3)


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        (folder / f"{n:03}.png").write_bytes(png(plain(ORDER[n % 3], width=20 + n)))
    return folder


def as_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def answers(place: str | Path) -> list[dict[str, str]]:
    """The rows of all parts, which have the same columns."""
    rows = []
    where = Place(str(place).rstrip("/"))
    for name in where.names():
        content = where.read(name)
        if name.endswith(".csv"):
            rows += as_rows(content.decode())
        else:
            rows += pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def keys(bucket: str, prefix: str) -> list[str]:
    return [e["Key"] for e in boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


@pytest.mark.usefixtures("model", "small_parts")
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_bucket_is_answered_into_a_bucket_as_its_files_would_be(bucket: str, tmp_path: Path, run: Run, form: str) -> None:
    folder = pictures(tmp_path / "set", 8)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / ".hidden.png").write_bytes(b"hidden")
    where = uploaded(folder, bucket, "in")
    asked = ("predict", where, "--model", "model", "--output", f"s3://{bucket}/out", "--format", form)
    code, out, err = run(*asked)
    assert (code, out) == (1, "")
    assert "9 pictures are answered below s3://pictures/out\n" in err
    assert "headstart: 1 of 9 pictures could not be used; the column problem says why" in err
    rows = answers(f"s3://{bucket}/out")
    assert [row["image"] for row in rows] == [f"{where}/{n:03}.png" for n in range(8)] + [f"{where}/broken.png"]
    assert [row["label"] for row in rows[:8]] == [ORDER[n % 3] for n in range(8)]
    assert (rows[8]["label"] or "", rows[8]["problem"]) == ("", "not a picture that Pillow can read")
    assert keys(bucket, "out/") == [f"out/part-{n:05}.{form}" for n in range(3)]
    run("predict", str(folder), "--model", "model", "--output", f"here.{form}")
    here = as_rows(Path("here.csv").read_text()) if form == "csv" else pq.read_table("here.parquet").to_pylist()
    columns = ["label", "probability", *CLASSES]
    assert [[row[c] for c in columns] for row in rows[:8]] == [[row[c] for c in columns] for row in here]
    assert run(*asked)[2].startswith("9 pictures are answered below")  # and the one that cannot be used is not tried again


@pytest.mark.usefixtures("model", "small_parts")
def test_a_second_run_reads_only_what_is_new_or_has_changed(
    bucket: str,
    tmp_path: Path,
    run: Run,
    reads: Counter[str],  # noqa: F811
) -> None:
    folder = pictures(tmp_path / "set", 8)
    where = uploaded(folder, bucket, "all")
    out = f"{where}/answers/"  # among the pictures
    asked = ("predict", where, "--model", "model", "--output", out)
    assert run(*asked)[0] == 0
    first = answers(out)
    reads.clear()
    assert run(*asked)[0] == 0
    assert {name for name in reads if name.endswith(".png")} == set()
    assert answers(out) == first
    pictures(folder, 2, first=8)
    (folder / "001.png").write_bytes(png(plain("blue", width=99)))
    (folder / "005.png").unlink()
    boto3.client("s3").delete_object(Bucket=bucket, Key="all/005.png")
    uploaded(folder, bucket, "all")
    reads.clear()
    code, _, err = run(*asked)
    assert code == 0
    assert "6 of 9 pictures are answered already" in err
    assert {name for name in reads if name.endswith(".png")} == {"001.png", "008.png", "009.png"}
    labels = {row["image"][-7:-4]: row["label"] for row in answers(out)}
    assert len(labels) == len(answers(out)) == 10  # what was said of the one that is gone stays
    assert labels["001"] == "blue"
    assert [labels[f"{n:03}"] for n in (0, 2, 8, 9)] == ["red", "blue", "blue", "red"]


@pytest.mark.usefixtures("model", "small_parts")
def test_another_model_answers_anew_and_the_old_answers_stay_until_then(
    bucket: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = uploaded(pictures(tmp_path / "set", 7), bucket, "in")
    asked = ("predict", where, "--output", f"s3://{bucket}/out/", "--model")
    assert run(*asked, "model")[0] == 0
    old = answers(f"s3://{bucket}/out")
    known(put_model(tmp_path / "other/artifacts/classifier", temperature=2.0))
    real = Place.read

    def fails(self: Place, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if path == "005.png":
            raise parts_module.HeadstartError("the line is cut")
        return real(self, path, start, end)

    with monkeypatch.context() as broken:
        broken.setattr(Place, "read", fails)
        code, _, err = run(*asked, "other")
    assert (code, err.splitlines()[-1]) == (1, "headstart: the line is cut")
    assert [row for row in answers(f"s3://{bucket}/out") if row in old] == old
    assert run(*asked, "other")[0] == 0
    new = answers(f"s3://{bucket}/out")
    assert sorted(row["image"] for row in new) == [row["image"] for row in old]
    assert not {row["model_digest"] for row in new} & {row["model_digest"] for row in old}


@pytest.mark.usefixtures("model")
def test_a_run_that_is_killed_goes_on_and_every_key_is_answered_once(bucket: str, tmp_path: Path) -> None:
    where = uploaded(pictures(tmp_path / "set", 200), bucket, "in")
    out = f"s3://{bucket}/out"
    program = (
        "import sys; from headstart.inference import parts; parts.ROWS = 20; from headstart import cli; "
        f"sys.argv = ['headstart', 'predict', {where!r}, '--model', 'model', '--output', {out!r}]; cli.main()"
    )
    command = [sys.executable, "-c", program]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(keys(bucket, "out/")) < 3:
        assert first.poll() is None, first.communicate()[1].decode()
        assert time.monotonic() < deadline
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = answers(out)
    assert 60 <= len(before) < 200
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 200 pictures are answered already" in done.stderr
    rows = answers(out)
    assert [row["image"] for row in rows] == [f"{where}/{n:03}.png" for n in range(200)]
    assert [row["label"] for row in rows] == [ORDER[n % 3] for n in range(200)]
    assert rows[: len(before)] == before


@pytest.mark.usefixtures("model", "small_parts")
def test_a_number_that_somebody_else_has_taken_is_passed_over(
    bucket: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at once into one place: no part is lost, and the next run leaves one answer of each picture."""
    where = uploaded(pictures(tmp_path / "set", 7), bucket, "in")
    asked = ("predict", where, "--model", "model", "--output", f"s3://{bucket}/out")
    assert run(*asked)[0] == 0
    first = answers(f"s3://{bucket}/out")
    real = parts_module._Parts.read
    with monkeypatch.context() as blind:
        blind.setattr(parts_module._Parts, "read", lambda self: {})  # as of one that has begun before there were any
        blind.setattr(parts_module, "_digest", lambda *_: "another")
        assert run(*asked)[0] == 0
    assert real is parts_module._Parts.read
    assert len(answers(f"s3://{bucket}/out")) == 14
    assert run(*asked)[0] == 0
    assert answers(f"s3://{bucket}/out") == first


@pytest.mark.usefixtures("model", "small_parts")
@pytest.mark.parametrize("source", ["set", "s3"])
@pytest.mark.parametrize("target", ["out/", "s3"])
def test_pictures_and_answers_may_be_here_or_there(bucket: str, tmp_path: Path, run: Run, source: str, target: str) -> None:
    folder = pictures(tmp_path / "set", 5)
    given = uploaded(folder, bucket, "in") if source == "s3" else source
    out = f"s3://{bucket}/out/" if target == "s3" else target
    asked = ("predict", given, "--model", "model", "--output", out)
    assert run(*asked)[0] == 0
    assert [row["label"] for row in answers(out)] == [ORDER[n % 3] for n in range(5)]
    before = answers(out)
    os.utime(folder / "003.png", (1, 1))
    code, _, err = run(*asked)
    assert code == 0
    assert ("4 of 5 pictures are answered already" in err) == (source == "set")
    assert sorted(row["image"] for row in answers(out)) == [row["image"] for row in before]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_whatever_pictures_are_called_each_is_answered_once(run: Run, form: str) -> None:
    names = [
        "a,b.png",
        'quo"te.png',
        "new\nline.png",
        "re\rturn.png",
        "ü ß.png",
        "part-00000.csv.png",
        "'.png",
        os.fsdecode(b"\xe9.png"),
    ]
    Path("set").mkdir()
    for name in names:
        Path("set", name).write_bytes(png(plain("red")))
    for _ in range(2):
        code, _, err = run("predict", "set", "--model", "model", "--output", "out/", "--format", form)
        assert code == 0
        assert len({row["image"] for row in answers("out")}) == len(answers("out")) == len(names)
    assert err == "8 pictures are answered below out/\n"


@pytest.mark.usefixtures("model")
def test_an_address_is_answered_into_a_file_or_on_the_terminal_like_files(
    bucket: str, tmp_path: Path, run: Run, serve: Callable[[Path], str]
) -> None:
    where = uploaded(pictures(tmp_path / "set", 4), bucket, "in")
    assert run("predict", where, "--model", "model", "--output", "answers.csv")[0] == 0
    rows = as_rows(Path("answers.csv").read_text())
    assert [(row["image"], row["label"]) for row in rows] == [(f"{where}/{n:03}.png", ORDER[n % 3]) for n in range(4)]
    assert [*rows[0]] == ["image", "label", "probability", *CLASSES]
    site = serve(tmp_path)
    code, out, _ = run("predict", f"{where}/002.png", f"{site}/set/001.png", "set/000.png", "--model", "model")
    assert code == 0
    assert [line.split()[1:] for line in out.splitlines()] == [
        ["blue", f"{where}/002.png"], ["green", f"{site}/set/001.png"], ["red", "set/000.png"],
    ]  # fmt: skip


@pytest.mark.usefixtures("model")
def test_what_cannot_be_read_or_written_is_one_sentence(
    bucket: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = uploaded(pictures(tmp_path / "set", 3), bucket, "in")

    def said(*arguments: str, model: str = "model") -> str:
        code, out, err = run("predict", *arguments, "--model", model)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        return err.removeprefix("headstart: ").rstrip()

    assert said(f"s3://{bucket}/nothing").startswith("s3://pictures/nothing holds no files")
    assert said("s3://absent/in").startswith("s3://absent/in could not be fetched: ")
    assert said(where, "--output", "s3://absent/out").startswith("s3://absent/out could not be fetched: ")
    assert said(where, "--output", f"s3://{bucket}/a.csv").endswith(
        "answers in parts need a folder, such as s3://pictures/a.csv/"
    )
    assert said(where, "--output", "out/", "--format", "json") == "--format 'json'; parts are csv or parquet"
    assert said("s3://pictures/in", "--output", "out/", model="absent").startswith(
        "absent/artifacts/classifier/classifier.json"
    )
    boto3.client("s3").put_object(Bucket=bucket, Key="theirs/part-00007.csv", Body=b"a,b\n1,2\n")
    theirs = said(where, "--output", f"s3://{bucket}/theirs")
    assert theirs.startswith("s3://pictures/theirs/part-00007.csv is no part that headstart has written")
    with_wrong_keys = set_initial_no_auth_action_count(0)(said)
    assert "could not be fetched: The AWS Access Key Id you provided does not exist" in with_wrong_keys(where)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "could not be fetched: Could not connect to the endpoint URL" in said(where)
    assert "could not be fetched: Could not connect to the endpoint URL" in said("set", "--output", f"s3://{bucket}/out")
