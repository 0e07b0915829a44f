"""`headstart drift` on a finished pipeline: pictures that came in use, and pictures that are new in the set."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest

from headstart.base.sections import Data
from headstart.data.manifest import read_manifest
from headstart.data.sources import locate
from tests.data.pictures import write_pictures
from tests.stages.conftest import Clone
from tests.stages.test_pipeline import digests

pytestmark = [pytest.mark.slow]

NEW_PICTURES = """
import json, sys
from pathlib import Path
from headstart.base.artifacts import DATA
from headstart.monitoring.drift import detect_drift
from headstart.base.params import Params
known = set(json.loads(Path(sys.argv[1]).read_text()))
found = detect_drift(DATA, Params.load(), known, DATA.package.model)
print(found.real, found.sentence)
"""


def test_photographs_among_emoji_are_drift_and_those_most_worth_labelling_are_copied_out(copy_of: Clone) -> None:
    inbox = write_pictures(copy_of.folder / "inbox", {f"monday/{n}.png": n for n in range(24)})
    (inbox / "notes.txt").write_text("not a picture")
    (inbox / os.fsdecode(b"r\xe9sum\xe9.png")).write_bytes((inbox / "monday/3.png").read_bytes())
    write_pictures(inbox, {"copy of 3.png": 3})
    known = read_manifest(copy_of.folder / "data/prepare")["path"].iloc[0]
    shutil.copy(locate(Data()).root / known, inbox)
    copy_of.set(drift={"export": 5})
    told = " ".join(copy_of.measured.run("headstart", "drift", "inbox").stdout.split())
    assert told.startswith("24 incoming pictures without labels beside ")
    assert ": they differ; " in told
    assert "Files that cannot be used: 2. The 5 most worth labelling are in data/drift/to_label." in told
    assert told.endswith("With the pictures: data/drift/drift.html")
    rows = list(csv.DictReader(io.StringIO(copy_of.read("data/drift/to_label/to_label.csv"))))
    assert len(rows) == 5
    found = json.loads(copy_of.read("data/drift/drift.json"))
    assert found["real"]
    assert found["incoming"]["test"]["auc"] > 0.95
    assert found["incoming"]["strange"]["share"] > 0.9
    assert list(found["incoming"]["unusable"]) == ["notes.txt", r"r\udce9sum\udce9.png"]
    assert set(found["incoming"]["guesses"]) <= set(json.loads(copy_of.read("data/head/head.json"))["classes"])
    before = digests(copy_of.folder / "data/drift")
    copy_of.run("headstart", "drift", "inbox")
    assert digests(copy_of.folder / "data/drift") == before
    shutil.rmtree(inbox)
    inbox.mkdir()
    assert copy_of.run("headstart", "drift", "inbox").stdout == "No usable picture is new.\n"
    failed = copy_of.run("headstart", "drift", "gone", check=False)
    assert failed.returncode == 1
    assert "gone': there is no such folder" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_new_pictures_of_the_same_kinds_are_no_drift_and_a_class_of_its_own_is(copy_of: Clone) -> None:
    manifest = read_manifest(copy_of.folder / "data/prepare")
    some = np.random.default_rng(0).permutation(len(manifest)) < 25
    flags = (manifest["label"] == "Flags").to_numpy()
    reals = []
    (copy_of.folder / "stages/new_pictures.py").write_text(NEW_PICTURES)  # where it is started warm
    for new in (some, flags):
        (copy_of.folder / "known.json").write_text(json.dumps(manifest["sha256"][~new].tolist()))
        said = copy_of.run("python", "stages/new_pictures.py", "known.json").stdout.splitlines()[-1]
        real, sentence = said.split(" ", 1)
        assert sentence.startswith(f"{new.sum()} new pictures beside {(~new).sum()} old ones: ")
        found = json.loads(copy_of.read("data/drift/drift.json"))
        assert found["sentence"] == sentence
        reals.append(real == "True")
        test = set(manifest["path"][manifest["split"] == "test"])
        assert not test & {
            row["path"] for row in found["new"]["strange"]["pictures"] + found["new"]["champion"]["contradicted"]
        }
    assert reals == [False, True]
    assert found["new"]["test_within_classes"] is None
    assert found["new"]["classes"][0]["label"] == "Flags"
