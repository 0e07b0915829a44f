"""`dvc repro studies/dvc.yaml:labels`: a branch off the main path; and what the user then asks to be corrected is.

That the main path, `dvc push` and `dvc pull` do not know of it is shown in test_rank.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from headstart.data.manifest import read_manifest
from headstart.studies.label_issues import examine
from headstart.training.feature_files import training_and_validation
from tests.data.pictures import write_pictures
from tests.stages.conftest import SLICE, Clone
from tests.stages.test_photographs import PHOTOGRAPHS, photographs  # noqa: F401 - a fixture
from tests.stages.test_pipeline import digests

pytestmark = [pytest.mark.slow]

BRANCH = "studies/dvc.yaml:labels"


def manifest_of(clone: Clone) -> pd.DataFrame:
    return read_manifest(clone.folder / "data/prepare").set_index("path")


def test_corrections_rerun_what_a_changed_picture_reruns_and_decode_nothing_again(project: Callable[..., Clone]) -> None:
    clone = project(data={"source": "set"}, split={"val": 0.3, "test": 0.3})
    names = {f"{label}/{n}.png": 100 * k + n for k, label in enumerate(("ants", "bees")) for n in range(20)}
    write_pictures(clone.folder / "set", names)
    assert "prepare: 40 pictures in " in clone.repro("prepare").stderr
    before = manifest_of(clone)
    (clone.folder / "out.csv").write_text("path\nants/3.png\n")
    (clone.folder / "right.csv").write_text("path,label\nants/4.png,bees\nants/99.png,bees\n")
    clone.set(data={"exclude": "out.csv", "relabel": "right.csv"})
    done = clone.repro("prepare")
    assert "Running stage 'prepare'" in done.stdout
    assert "prepare: 0 pictures in " in done.stderr
    assert done.stderr.count("data.relabel names ants/99.png, which data.source does not have (any more)") == 1
    after = manifest_of(clone)
    assert set(before.index) - set(after.index) == {"ants/3.png"}
    assert after["label"]["ants/4.png"] == "bees"
    kept = after.index
    assert (after["split"] == before["split"][kept]).all()
    assert clone.stages_run("prepare") == []
    (clone.folder / "right.csv").write_text("path,label\nants/4.png,bees\nants/5.png,bees\n")
    assert clone.stages_run("prepare") == ["prepare"]
    assert manifest_of(clone)["label"]["ants/5.png"] == "bees"
    clone.set(data={"relabel": "gone.csv"})
    done = clone.repro("prepare", check=False)
    assert done.returncode != 0
    assert f"headstart: data.relabel 'gone.csv': there is no file {clone.folder / 'gone.csv'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_branch_runs_alone_gives_the_same_bytes_and_can_be_read_again(project: Callable[..., Clone]) -> None:
    clone = project(**SLICE)
    output = clone.measured.repro(BRANCH).stdout
    assert f"Running stage '{BRANCH}'" in output
    assert "Running stage 'head'" not in output
    before = digests(clone.folder / "data/labels")
    assert set(before) == {"labels.html", "labels.json", "suspects.csv"}
    found = json.loads(clone.read("data/labels/labels.json"))
    test = manifest_of(clone).query("split == 'test'").index
    assert not {row["path"] for row in found["suspects"] + found["outliers"]} & set(test)
    clone.set(labels={"shown": 1})
    assert clone.stages_run(BRANCH) == [BRANCH]
    after = digests(clone.folder / "data/labels")
    assert {name for name in after if after[name] != before[name]} == {"labels.html"}
    assert clone.read("data/labels/labels.html").count("<figure") <= 3
    told = clone.measured.run("headstart", "labels").stdout
    assert found["suspects"][0]["path"] in told
    assert "With the pictures, and what to do: data/labels/labels.html" in told


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not beside the project")
def test_of_ten_labels_flipped_among_ants_and_bees_eight_are_among_the_first_fifteen_suspects(
    photographs: Clone,  # noqa: F811
) -> None:
    folder = photographs.folder / "data"
    pictures, features = training_and_validation(
        read_manifest(folder / "prepare"), folder / "features", torch.device("cpu")
    )
    other = {"ants": "bees", "bees": "ants"}
    training = pictures.index[pictures["split"] == "train"]
    hits = []
    for draw in range(5):
        rows = np.random.default_rng(draw).choice(training, 10, replace=False)
        wrong = pictures.copy()
        wrong.loc[rows, "label"] = wrong.loc[rows, "label"].map(other)
        first = {row.path for row in examine(wrong, features).suspects[:15]}
        hits.append(len(first & set(pictures.loc[rows, "path"])))
    print("of ten flipped labels among the first fifteen suspects:", hits)
    assert min(hits) >= 8
