"""A packaged model that was changed is not used, and code is run from none that is not known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from headstart.base.artifacts import DATA, ModelFolder
from headstart.base.dvc_files import listing_of, md5_of_listing
from headstart.base.errors import HeadstartError
from headstart.inference.batch import BatchPredictor
from headstart.inference.predictor import load_predictor
from headstart.inference.provenance import digest_of_model
from tests.inference.test_batch import put_network
from tests.inference.test_predictor import known, plain, put_model
from tests.test_cli import Run, run  # noqa: F401

CLASSIFIER = "artifacts/classifier/"
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "a bit flipped": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "junk": lambda content: b"\xff\xfe junk",
    "something appended": lambda content: content + b" ",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """In a checkout that has made it."""
    monkeypatch.chdir(tmp_path)
    folder = put_model(tmp_path / "data/package/model" / CLASSIFIER).parents[1]
    (folder / "code/headstart").mkdir(parents=True)
    (folder / "code/headstart/__init__.py").write_text("# a line that is long enough to be damaged")
    return known(folder / CLASSIFIER)


@pytest.mark.parametrize("damage", [*BYTES, "gone"])
@pytest.mark.parametrize(
    "name",
    [f"{CLASSIFIER}classifier.json", f"{CLASSIFIER}classifier.safetensors", f"{CLASSIFIER}network.py", "MLmodel",
     "code/headstart/__init__.py", "SHA256SUMS"],
)  # fmt: skip
def test_any_edit_of_any_file_is_one_sentence_with_what_mends_it(name: str, damage: str, model: ModelFolder) -> None:
    content = (model / name).read_bytes().ljust(60)
    (model / name).unlink()
    if damage != "gone":
        (model / name).write_bytes(BYTES[damage](content))
    with pytest.raises(HeadstartError) as refusal:
        load_predictor(model, trust=True)
    said = str(refusal.value)
    assert said.startswith(f"{model} is not as it was packaged: ")
    assert name in said or name == "SHA256SUMS"
    assert said.endswith("; run `dvc repro --force --single-item package`")
    assert "\n" not in said


def test_a_file_that_was_added_is_noticed_and_what_python_and_mlflow_add_is_not(model: ModelFolder) -> None:
    (model / "code/headstart/__pycache__").mkdir()
    (model / "code/headstart/__pycache__/__init__.pyc").touch()
    (model / "registered_model_meta").touch()
    load_predictor(model)
    (model / "code/headstart/evil.py").touch()
    with pytest.raises(HeadstartError, match=r"code/headstart/evil\.py was added; run"):
        load_predictor(model)


def test_a_copy_elsewhere_is_to_be_copied_again(model: ModelFolder, tmp_path: Path) -> None:
    copy = ModelFolder(shutil.copytree(model, tmp_path / "copy"))
    load_predictor(copy)  # of a model that was made here, and so known
    copy.mlmodel.write_text("edited")
    with pytest.raises(HeadstartError, match=r"MLmodel was changed; take a fresh copy of it$"):
        load_predictor(copy)


def test_weights_that_are_no_numbers_are_not_answered_with(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model" / CLASSIFIER)  # by an older version, without digests
    state = load_file(folder / "classifier.safetensors")
    state["head.bias"][0] = float("nan")
    save_file(state, folder / "classifier.safetensors")
    with pytest.raises(HeadstartError, match=r"safetensors is damaged \(it holds numbers that are not finite\)"):
        load_predictor(tmp_path / "model", trust=True)


# --- code in a model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """A model that this checkout does not know, whole in itself. Its network leaves a trace."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "stranger"
    put_model(folder / CLASSIFIER)
    with (folder / CLASSIFIER / "network.py").open("a") as stream:
        stream.write(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    found = known(folder / CLASSIFIER)
    Path(".headstart/packaged", digest_of_model(found)).unlink()
    return found


@pytest.mark.parametrize("command", [["predict", "a.png"], ["serve", "--port", "0"], ["export", "--to", "onnx"]])
def test_no_code_is_run_from_a_model_that_is_not_known(
    command: list[str],
    stranger: ModelFolder,
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    plain("red").save("a.png")
    code, _, said = run(*command, "--model", str(stranger))
    assert (code, said.count("\n")) == (1, 1)
    assert "stranger was not made here, and to load it runs the code in " in said
    assert "--trust" in said
    assert not (tmp_path / "trace").exists()
    for load in (load_predictor, BatchPredictor):
        with pytest.raises(HeadstartError, match="was not made here"):
            load(stranger)
    assert not (tmp_path / "trace").exists()


def test_a_flag_names_one_that_may_run(stranger: ModelFolder, run: Run, tmp_path: Path) -> None:  # noqa: F811
    plain("red").save("a.png")
    code, answer, _ = run("predict", "a.png", "--model", str(stranger), "--trust")
    assert (code, answer.split()[1]) == (0, "red")
    assert (tmp_path / "trace").exists()
    assert run("predict", "a.png", "--model", str(stranger))[0] == 1  # it was for once


def test_a_model_that_is_data_alone_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (answer,) = load_predictor(put_network(tmp_path / "model")).predict([np.zeros((40, 40, 3), np.uint8)])
    assert answer.probability > 0


def test_a_fresh_clone_knows_the_model_that_its_dvc_lock_names(model: ModelFolder) -> None:
    shutil.rmtree(".headstart")
    with pytest.raises(HeadstartError, match="was not made here"):
        load_predictor(model)
    out = {"path": "data/package", "hash": "md5", "md5": md5_of_listing(listing_of(DATA.package))}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"package": {"cmd": "x", "outs": [out]}}}))
    load_predictor(model)
    Path("dvc.lock").write_text("junk: [")
    with pytest.raises(HeadstartError, match="was not made here"):
        load_predictor(model)
