"""Labels that were made wrong are found, what is strange and what is double is found, and test is never looked at."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from headstart.base.artifacts import DATA, LabelsFolder
from headstart.base.artifacts.labels import LabelIssues
from headstart.base.errors import HeadstartError
from headstart.studies import label_issues_report
from headstart.studies.label_issues import (
    FENCE,
    examine,
    find_duplicates,
    find_outliers,
    find_suspects,
    neighbours,
)
from headstart.training.feature_files import training_and_validation
from tests.training.test_features import packed

CPU = torch.device("cpu")
NAMES = ["ant", "bee", "wolf"]


def clouds(counts: tuple[int, ...], seed: int, apart: float = 7.0, width: int = 24) -> tuple[pd.DataFrame, NDArray[Any]]:
    """Pictures of so many in each class and their features: a cloud for each class, a few deviations from the others."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(size=(len(counts), width)) * apart / np.sqrt(2 * width) + 1
    features = rng.normal(size=(len(labels), width)) + centres[labels]
    names = [f"{NAMES[label]}/{n:03d}.png" for n, label in enumerate(labels)]
    pictures = pd.DataFrame({"path": names, "label": [NAMES[n] for n in labels], "split": "train", "group": names})
    pictures.loc[::7, "split"] = "val"
    return pictures, features


def tensor(features: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(features.astype(np.float32))


def flipped(pictures: pd.DataFrame, rows: NDArray[Any], seed: int) -> pd.DataFrame:
    """With another label for each of ``rows``."""
    rng, wrong = np.random.default_rng(seed), pictures.copy()
    classes = sorted(set(pictures["label"]))
    for row in rows:
        wrong.loc[row, "label"] = rng.choice([name for name in classes if name != pictures["label"][row]])
    return wrong


# --- suspects ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([(60, 60), (60, 40, 25), (90, 30, 12)]), st.integers(1, 8))
@settings(max_examples=10)
def test_labels_that_were_made_wrong_head_the_list(seed: int, counts: tuple[int, ...], many: int) -> None:
    pictures, features = clouds(counts, seed, apart=10.0)
    rows = np.random.default_rng(seed).choice(len(pictures), many, replace=False)
    wrong = flipped(pictures, rows, seed)
    found = examine(wrong, tensor(features))
    first = found.suspects[: many + 2]
    right = {pictures["path"][row]: pictures["label"][row] for row in rows}
    hits = [row for row in first if row.path in right]
    assert len(hits) >= 0.8 * many - 0.5
    assert sum(right[row.path] == row.suggested for row in hits) >= 0.8 * len(hits) - 1
    assert abs(found.counts.label_issues - many) <= max(4, many)


def test_a_suspect_is_what_held_out_regressions_contradict() -> None:
    pictures, features = clouds((60, 50, 40), 3, apart=3.0)
    suspects, wrong = find_suspects(pictures, tensor(features), NAMES)
    assert suspects
    assert 0 <= wrong <= len(suspects)
    assert [row.quality for row in suspects] == sorted(row.quality for row in suspects)
    labels = dict(zip(pictures["path"], pictures["label"], strict=True))
    for row in suspects:
        assert row.label == labels[row.path] != row.suggested
        assert 0 <= row.probability <= row.suggested_probability <= 1


def test_the_pictures_of_a_rare_class_are_not_suspects_for_that() -> None:
    pictures, features = clouds((150, 150, 8), 5, apart=8.0)
    rows = np.random.default_rng(0).choice(300, 10, replace=False)
    suspects = examine(flipped(pictures, rows, 0), tensor(features)).suspects
    rare = set(pictures["path"][pictures["label"] == "wolf"])
    assert len(rare & {row.path for row in suspects[:12]}) <= 2


def test_classes_that_cannot_be_cross_validated_are_named_and_not_judged() -> None:
    pictures, features = clouds((40, 40, 30), 0)
    wolves = pictures.index[pictures["label"] == "wolf"]
    pictures.loc[wolves, "group"] = [f"pack {n % 4}" for n in range(len(wolves))]  # thirty pictures of four packs
    found = examine(pictures, tensor(features))
    assert found.left_out == ["wolf"]
    assert found.counts.judged == 80
    assert "wolf" not in {row.label for row in found.suspects} | {row.suggested for row in found.suspects}
    pictures["group"] = [f"group {n % 4}" for n in range(len(pictures))]
    with pytest.raises(HeadstartError, match="two classes with at least 5 training and validation pictures"):
        examine(pictures, tensor(features))


def test_a_twin_in_training_does_not_vouch_for_a_wrong_label() -> None:
    """Ten copies of one picture under one wrong label: they are held out together."""
    pictures, features = clouds((60, 60), 1)
    copies = np.flatnonzero(pictures["label"] == "ant")[:10]
    features[copies] = features[copies[0]] + np.random.default_rng(0).normal(size=(10, features.shape[1])) * 1e-3
    pictures.loc[copies, "group"] = pictures["path"][copies[0]]
    pictures.loc[copies, "label"] = "bee"
    found = examine(pictures, tensor(features))
    suspects = {row.path for row in found.suspects[:12]}
    assert len(suspects & set(pictures["path"][copies])) == 10


# --- outliers and duplicates ------------------------------------------------------------------------------------------


def test_the_neighbours_are_the_nearest_by_cosine() -> None:
    _, features = clouds((30, 20), 0)
    graph = neighbours(tensor(features))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    assert np.diff(graph.indptr).tolist() == [10] * 50
    for row in range(50):
        found = graph.data[graph.indptr[row] : graph.indptr[row + 1]]
        assert found == pytest.approx(np.sort(distance[row])[:10], abs=1e-5)


@pytest.mark.parametrize("count", [12, 200])
def test_outliers_are_far_from_even_their_neighbours_and_the_distance_is_in_medians(count: int) -> None:
    pictures, features = clouds((count, count), 2)
    features[5] = -4 * features[5]
    x = tensor(features)
    graph = neighbours(x)
    found = find_outliers(pictures, graph)
    assert found[0].path == pictures["path"][5]
    mean = graph.data.reshape(2 * count, -1).mean(axis=1)
    mean /= np.median(mean)
    low, high = np.percentile(mean, [25, 75])
    assert found[0].distance == pytest.approx(mean[5], rel=1e-3)
    assert len(found) == (mean > high + FENCE * (high - low)).sum() < 0.1 * count
    assert [row.distance for row in found] == sorted((row.distance for row in found), reverse=True)


@pytest.mark.parametrize("apart", [0.0, 1e-7])
def test_outliers_among_pictures_that_are_all_the_same_have_a_distance(apart: float) -> None:
    pictures, features = clouds((20, 14), 3)
    features[:30] = features[0] + apart * features[:30]
    found = find_outliers(pictures, neighbours(tensor(features)))
    assert {row.path for row in found} == set(pictures["path"][30:])
    assert np.isfinite([row.distance for row in found]).all()


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=20)
def test_pairs_that_look_the_same_are_found_once_those_under_two_labels_first(seed: int, many: int) -> None:
    pictures, features = clouds((40, 40), seed)
    rng = np.random.default_rng(seed)
    rows = rng.choice(80, 2 * many, replace=False).reshape(many, 2)
    for a, b in rows:
        features[b] = features[a] * 1.5 + rng.normal(size=features.shape[1]) * 0.02
    found = find_duplicates(pictures, neighbours(tensor(features)))
    assert {frozenset(pair.paths) for pair in found} == {frozenset(pictures["path"][row]) for row in rows}
    assert len(found) == many
    same = [pair.labels[0] == pair.labels[1] for pair in found]
    assert same == sorted(same)
    for pair in found:
        rows_of = [pictures.index[pictures["path"] == path][0] for path in pair.paths]
        assert pair.labels == [pictures["label"][row] for row in rows_of]
        assert pair.splits == [pictures["split"][row] for row in rows_of]


def test_a_set_without_duplicates_or_strangers_is_given_none() -> None:
    rng = np.random.default_rng(0)
    pictures, _ = clouds((50, 50), 0)
    graph = neighbours(tensor(rng.normal(size=(100, 64))))
    assert find_duplicates(pictures, graph) == []
    assert len(find_outliers(pictures, graph)) <= 2


def test_features_that_are_all_the_same_break_nothing() -> None:
    pictures, features = clouds((12, 12), 0)
    found = examine(pictures, tensor(np.ones_like(features)))
    assert found.outliers == []
    assert found.counts.duplicates > 0


# --- what is written of it ----------------------------------------------------------------------------------------------


def stored(folder: Path) -> tuple[pd.DataFrame, torch.Tensor, Any, pd.DataFrame]:
    """Sixty packed pictures, and features of three clouds in the files that the features stage would leave."""
    pixels, manifest = packed(folder / "prepare", 120, None)
    manifest["group"] = manifest["path"]
    manifest["path"] = [f"set, one/[{n}] <b>.png" for n in range(len(manifest))]
    rng = np.random.default_rng(0)
    centres = {name: rng.normal(size=16) * 2 for name in NAMES_OF_PACKED}
    (folder / "features").mkdir()
    for split in ("train", "val", "test"):
        rows = manifest[manifest["split"] == split]
        features = np.stack([centres[label] + rng.normal(size=16) for label in rows.label])
        tensors = {"features": tensor(features), "labels": torch.zeros(len(rows), dtype=torch.int64)}
        save_file(tensors, folder / "features" / f"{split}.safetensors")
    (folder / "features" / "test.safetensors").unlink()  # so that whoever looks at it fails
    manifest.loc[manifest.index[manifest["split"] == "train"][:4], "label"] = "ant"
    pictures, features = training_and_validation(manifest, folder / "features", CPU)
    return pictures, features, pixels, manifest


NAMES_OF_PACKED = ("ant", "bee", "wolf")


def test_test_pictures_are_never_looked_at_and_rows_keep_their_places(tmp_path: Path) -> None:
    pictures, features, _, manifest = stored(tmp_path)
    assert set(pictures["split"]) == {"train", "val"}
    assert len(pictures) == len(features) == (manifest["split"] != "test").sum()
    assert pictures["path"].tolist() == manifest["path"][pictures.index].tolist()


def test_the_same_inputs_give_the_same_bytes_and_the_files_agree(tmp_path: Path) -> None:
    pictures, features, pixels, _ = stored(tmp_path)
    for name in ("a", "b"):
        found = examine(pictures, features)
        label_issues_report.write(found, pixels, pictures, 3, LabelsFolder(tmp_path / name))
    files = LabelsFolder(tmp_path / "a")
    for file in (files.details, files.suspects, files.page):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert LabelIssues.read(files.details) == found
    rows = list(csv.DictReader(io.StringIO(files.suspects.read_text())))
    assert [row["path"] for row in rows] == [row.path for row in found.suspects]
    assert list(rows[0]) == ["path", "label", "suggested", "quality"]
    assert [float(row["quality"]) for row in rows] == [row.quality for row in found.suspects]


def test_the_page_shows_the_pictures_themselves_and_needs_no_network(tmp_path: Path) -> None:
    pictures, features, pixels, _ = stored(tmp_path)
    found = examine(pictures, features)
    assert len(found.suspects) > 2
    label_issues_report.write(found, pixels, pictures, 2, LabelsFolder(tmp_path))
    page = LabelsFolder(tmp_path).page.read_text()
    assert "://" not in page
    assert "the first 2 of " in page
    assert "[" + found.suspects[0].path.split("[")[1].replace("<b>", "&lt;b&gt;") in page
    first = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert first
    shown = Image.open(io.BytesIO(base64.b64decode(first[1])))
    row = pictures.index[pictures["path"] == found.suspects[0].path][0]
    assert shown.size == pixels[int(row)].shape[1::-1]
    grey = [np.asarray(picture.convert("L")).ravel() for picture in (shown, Image.fromarray(pixels[int(row)]))]
    assert np.corrcoef(*grey)[0, 1] > 0.9


def test_the_table_takes_paths_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, features, _, _ = stored(tmp_path)
    found = examine(pictures, features)
    label_issues_report.show(found, DATA.labels)
    printed = capsys.readouterr().out
    assert found.suspects[0].path in printed
    assert label_issues_report.sentence(found) in " ".join(printed.split())
    assert "data/labels/labels.html" in printed


def test_nothing_found_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, features = clouds((50, 50), 1, apart=14)
    found = examine(pictures, tensor(features))
    nothing = dict.fromkeys(("suspects", "label_issues", "outliers", "duplicates_under_two_labels"), 0)
    counts = found.counts.model_copy(update=nothing | {"duplicates": 1})
    found = LabelIssues(counts=counts, left_out=["yak"], suspects=[], outliers=[], duplicates=[])
    folder = LabelsFolder(tmp_path)
    pixels, _ = packed(tmp_path / "prepare", 4, None)
    label_issues_report.write(found, pixels, pictures, 30, folder)
    assert folder.page.read_text().count("<p>None.</p>") == 3
    assert folder.suspects.read_text() == "path,label,suggested,quality\n"
    label_issues_report.show(found, folder)
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 have a label that the others contradict" in printed
    assert "1 pair looks the same" in printed
    assert "too few pictures to be judged: yak." in printed


def test_before_anything_was_found_the_command_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=re.escape("run `dvc repro studies/dvc.yaml:labels`")):
        LabelIssues.read(tmp_path / "labels.json")
