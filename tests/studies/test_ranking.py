"""Which backbone: the measures are right, the hopeless are dropped and never the best, and the words fit the numbers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression

from headstart.base.artifacts import PrepareFolder
from headstart.base.artifacts.rank import RankedBackbone, Ranking
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Budget, Data, View
from headstart.data.decode import decode, encode
from headstart.data.fetch import fetch
from headstart.data.packed import Pixels
from headstart.data.sources import locate
from headstart.studies import ranking_report
from headstart.studies.candidates import Candidate, Sample, features_of, file_of, stored_candidates
from headstart.studies.combination import Combination, Members, search
from headstart.studies.halving import Standing, choose, halve, over_budget
from headstart.studies.ranking import rank
from headstart.studies.transferability import Probe, knn_accuracy, log_me, probe
from headstart.training.features import FeatureExtractor
from headstart.training.linear_probe import folds_of
from tests.training.test_features import packed

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def table_of(counts: dict[str, int], groups: int = 0) -> pd.DataFrame:
    """A manifest with so many pictures of each class in training and validation, and as many in test."""
    rng = np.random.default_rng(0)
    labels = rng.permutation([label for label, count in counts.items() for _ in range(2 * count)])
    seen: dict[str, int] = {}
    splits = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        splits.append("test" if seen[label] % 2 else ("val" if seen[label] % 10 == 0 else "train"))
    names = [f"{n}.png" for n in range(len(labels))]
    group = [f"g{n % groups}" for n in range(len(labels))] if groups else names
    return pd.DataFrame({"path": names, "label": labels, "split": splits, "group": group})


# --- the sample -------------------------------------------------------------------------------------------------------


def test_every_beginning_of_the_sample_is_stratified_and_none_of_it_is_test() -> None:
    manifest = table_of({"ant": 300, "bee": 100, "wolf": 20})
    sample = Sample.of(manifest, seed=0)
    assert len(sample.rows) == len(set(sample.rows)) == 420
    assert not (manifest["split"].iloc[sample.rows] == "test").any()
    assert [sample.classes[n] for n in sample.labels] == manifest["label"].iloc[sample.rows].tolist()
    for count in (42, 84, 210):
        shares = np.bincount(sample.labels[:count]) / count
        assert shares == pytest.approx([300 / 420, 100 / 420, 20 / 420], abs=0.12)
        assert np.bincount(sample.labels[:count]).min() >= 5


def test_a_larger_sample_holds_the_smaller_and_the_seed_decides_which() -> None:
    manifest = table_of({"ant": 60, "bee": 60})
    assert Sample.of(manifest, 0).rows.tolist() == Sample.of(manifest, 0).rows.tolist()
    assert Sample.of(manifest, 0).rows.tolist() != Sample.of(manifest, 1).rows.tolist()
    sample = Sample.of(manifest, 0)
    assert sample.sizes(20, 90) == [20, 40, 80, 90]
    assert sample.sizes(20, 5000) == [20, 40, 80, 120]
    assert sample.sizes(500, 2000) == [120]


def test_classes_of_too_few_pictures_are_left_out_and_named() -> None:
    sample = Sample.of(table_of({"ant": 30, "bee": 30, "wolf": 4}), 0)
    assert (sample.classes, sample.left_out) == (("ant", "bee"), ("wolf",))
    assert set(sample.labels) == {0, 1}
    with pytest.raises(HeadstartError, match="two classes with at least 5"):
        Sample.of(table_of({"ant": 30, "wolf": 4}), 0)


def test_pictures_of_one_group_count_as_one() -> None:
    manifest = pd.concat([table_of({"ant": 30, "bee": 30}), table_of({"wolf": 30}, groups=4)], ignore_index=True)
    assert Sample.of(manifest, 0).left_out == ("wolf",)
    with pytest.raises(HeadstartError, match="no near-duplicates nor of one group; found 0"):
        Sample.of(table_of({"ant": 30, "bee": 30}, groups=3), 0)


def test_a_sample_has_five_of_each_class_even_of_many() -> None:
    sample = Sample.of(table_of({f"c{n:02}": 10 for n in range(20)}), 0)
    assert sample.sizes(20, 40) == [100]
    assert (np.bincount(sample.labels[:100]) == 5).all()


def test_groups_stay_on_one_side_of_a_fold() -> None:
    sample = Sample.of(table_of({"ant": 60, "bee": 60}, groups=40), 0)
    for fitted, held_out in folds_of(sample.labels, sample.groups):
        assert not set(sample.groups[fitted]) & set(sample.groups[held_out])


# --- the measures -----------------------------------------------------------------------------------------------------


def clusters(
    count: int, width: int, apart: float, classes: int = 3, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, D) features of classes whose centres are so far apart, in deviations."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, width)) * apart / np.sqrt(2 * width)
    return (rng.normal(size=(count, width)) + centres[labels]).astype(np.float32), labels


def evidence_by_brute_force(features: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """LogME as it is defined: the density of the answers under a Gaussian process, maximised by a general optimiser."""
    n, gram, found = len(labels), features.astype(float) @ features.astype(float).T, []
    for number in np.unique(labels):
        y = (labels == number).astype(float)

        def surprise(p: NDArray[np.float64], y: NDArray[np.float64] = y) -> float:
            return -float(multivariate_normal(np.zeros(n), gram * np.exp(p[0]) + np.eye(n) * np.exp(p[1])).logpdf(y))

        starts = [(a, b) for a in (-8.0, -4.0, 0.0) for b in (-4.0, -1.0)]
        found.append(-min(minimize(surprise, start, method="Nelder-Mead").fun for start in starts) / n)
    return float(np.mean(found))


@pytest.mark.parametrize(("count", "width"), [(60, 8), (40, 70)], ids=["more pictures", "more features"])
def test_logme_is_the_maximal_evidence(count: int, width: int) -> None:
    features, labels = clusters(count, width, 3.0)
    assert log_me(features, labels) == pytest.approx(evidence_by_brute_force(features, labels), abs=2e-3)


def test_logme_of_features_that_say_nothing_is_a_number() -> None:
    _, labels = clusters(60, 4, 1.0)
    nothing = log_me(np.zeros((60, 4), np.float32), labels)
    assert np.isfinite(nothing)
    assert nothing < log_me(clusters(60, 4, 5.0)[0], labels)
    assert np.isfinite(log_me(np.ones((60, 4), np.float32), labels))


def test_logme_and_knn_prefer_features_that_tell_classes_apart() -> None:
    (near, labels), (far, _) = clusters(200, 16, 1.0), clusters(200, 16, 5.0)
    folds = folds_of(labels)
    assert log_me(far, labels) > log_me(near, labels)
    assert knn_accuracy(torch.from_numpy(far), labels, folds) > knn_accuracy(torch.from_numpy(near), labels, folds) + 0.1


def test_the_probe_is_scikit_learns_cross_validated_regression() -> None:
    features, labels = clusters(240, 12, 2.0)
    folds = folds_of(labels)
    found = probe(torch.from_numpy(features), labels, folds)
    right = 0
    for fitted, held_out in folds:
        scaled = (features - features[fitted].mean(0)) / features[fitted].std(0)
        model = LogisticRegression(C=0.1, max_iter=1000).fit(scaled[fitted], labels[fitted])
        right += int((model.predict(scaled[held_out]) == labels[held_out]).sum())
    assert found.correct.sum() == pytest.approx(right, abs=6)
    assert found.losses.mean() < np.log(3)


# --- halving and the choice, on constructed outcomes -------------------------------------------------------------------


class World:
    """Candidates with known mean log-losses on pictures that are hard for all of them alike."""

    def __init__(self, means: dict[str, float], seed: int = 0, most: int = 800) -> None:
        rng = np.random.default_rng(seed)
        hard = rng.exponential(0.3, most)
        self.losses = {name: hard + rng.normal(mean, 0.2, most) for name, mean in means.items()}
        self.looked: list[tuple[str, int]] = []

    def look(self, name: str, count: int) -> Probe:
        self.looked.append((name, count))
        return Probe(self.losses[name][:count], self.losses[name][:count] < 0.7)


def outcome(
    means: dict[str, float], speeds: dict[str, float] | None = None, budget: dict[str, str] | None = None, seed: int = 0
) -> tuple[World, dict[str, Standing], str | None, str]:
    world = World(means, seed)
    standings = [Standing(name, (speeds or {}).get(name, 100.0), (budget or {}).get(name)) for name in means]
    halve(standings, [100, 200, 400, 800], world.look)
    return world, {s.name: s for s in standings}, *choose(standings)


def test_a_hopeless_candidate_is_dropped_early_and_keeps_its_figures() -> None:
    world, standings, choice, reason = outcome({"good": 0.5, "hopeless": 2.0, "near": 0.51})
    assert ("hopeless", 200) not in world.looked
    assert standings["hopeless"].pictures == 100
    assert standings["hopeless"].dropped is not None
    assert "on 100 pictures" in standings["hopeless"].dropped
    assert standings["good"].pictures > 100
    assert choice == min("good", "near", key=lambda name: standings[name].log_loss)
    assert reason.startswith("Too close to call between")
    assert "hopeless" not in reason.split(".")[0]


@pytest.mark.parametrize("seed", range(12))
def test_the_best_is_never_dropped(seed: int) -> None:
    _, standings, choice, _ = outcome({"a": 0.9, "best": 0.5, "b": 0.58, "c": 1.2}, seed=seed)
    assert standings["best"].dropped is None
    assert choice == "best"


def test_one_that_is_left_alone_is_shown_no_more_pictures() -> None:
    world, standings, choice, reason = outcome({"best": 0.3, "worse": 1.5})
    assert standings["best"].pictures == 100
    assert choice == "best"
    assert max(count for _, count in world.looked) == 100
    assert "the next, worse, is behind by 1." in reason
    assert "close" not in reason


def test_what_is_too_close_to_call_is_called_that_and_the_fastest_is_named() -> None:
    means = {"slow": 0.500, "quick": 0.502, "middle": 0.501}
    _, standings, choice, reason = outcome(means, {"slow": 50, "quick": 200, "middle": 100}, seed=1)
    assert choice == min(standings.values(), key=lambda s: s.log_loss).name
    assert "Where speed counts take quick, the fastest of them here (200 images/s against" in reason
    assert reason.startswith("Too close to call between ")
    assert "on 800 pictures" in reason
    best = min(standings.values(), key=lambda s: s.log_loss)
    told = re.search(r"differs by (-?[\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", reason)
    assert told is not None
    _, by, low, high = standings["quick"].behind(best)
    assert [float(x) for x in told.groups()] == pytest.approx([by, low, high], abs=5e-4)
    assert low <= 0


def test_a_tie_whose_best_is_the_fastest_says_so() -> None:
    means = {"a": 0.5, "b": 0.5}
    _, standings, _, _ = outcome(means)
    best = min(standings.values(), key=lambda s: s.log_loss).name
    _, _, choice, reason = outcome(means, {best: 300.0})
    assert choice == best
    assert "is the fastest of them here" in reason


def test_a_budget_that_excludes_the_best_is_told_with_the_price() -> None:
    told = over_budget(Budget(images_per_s=100.0), 20.0, 5.0)
    world, standings, choice, reason = outcome({"best": 0.3, "light": 0.6, "weak": 1.5}, budget={"best": str(told)})
    assert choice == "light"
    assert ("best", 200) not in world.looked
    assert "best has a lower log-loss, by 0." in reason
    assert "over the budget: 20 images/s, at least 100 are asked" in reason
    assert standings["best"].dropped is None


def test_where_nobody_is_within_the_budget_there_is_no_choice() -> None:
    told = str(over_budget(Budget(megabytes=3.0), 20.0, 13.66))
    _, _, choice, reason = outcome({"a": 0.3, "b": 0.6}, budget={"a": told, "b": told})
    assert choice is None
    assert "No candidate is within rank.budget" in reason
    assert "a: 13.7 MB, at most 3 are allowed" in reason


def test_where_nobody_has_weights_there_is_no_choice() -> None:
    assert choose([]) == (None, "Nothing could be measured: no candidate's weights were found.")


def test_the_only_candidate_is_called_that() -> None:
    assert "only candidate whose weights were found" in outcome({"a": 0.3})[3]
    assert "only candidate within rank.budget" in outcome({"a": 0.3, "b": 0.6}, budget={"b": "too slow"})[3]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, None),
        ({"images_per_s": 50.0}, None),
        ({"images_per_s": 51.0}, "50 images/s, at least 51 are asked"),
        ({"megabytes": 13.0}, "13.7 MB, at most 13 are allowed"),
        ({"images_per_s": 60.0, "megabytes": 1.0}, "50 images/s, at least 60 are asked, 13.7 MB, at most 1 are allowed"),
    ],
)
def test_budgets(budget: dict[str, float], expected: str | None) -> None:
    assert over_budget(Budget(**budget), 50.0, 13.7) == expected


# --- real networks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    """Weights of three small networks, in the publishers' places below a folder. Random ones: what they are worth is
    not the question here."""
    for name in ("test_resnet", "test_efficientnet", "test_vit"):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False)
        cfg = timm.models.get_pretrained_cfg(name)
        file = tmp_path / "mirror" / f"timm/{cfg.architecture}.{cfg.tag}" / "model.safetensors"
        file.parent.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return str(tmp_path / "mirror")


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing in torch's cache."""
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HEADSTART_WEIGHTS_MIRROR", raising=False)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Pixels, pd.DataFrame]:
    pixels, manifest = packed(tmp_path / "prepare", 120, None)
    manifest["group"] = manifest["path"]
    return pixels, manifest


def written(folder: Path, images: list[Image.Image]) -> Pixels:
    """Packed as prepare packs them."""
    packed_bytes = [encode(image, None) for image in images]
    lengths = np.array([len(part) for part in packed_bytes])
    widths, heights = zip(*(image.size for image in images), strict=True)
    folder.mkdir()
    PrepareFolder(folder).pixels.write_bytes(b"".join(packed_bytes))
    pq.write_table(
        pa.table({"offset": np.cumsum(lengths) - lengths, "length": lengths, "height": heights, "width": widths}),
        PrepareFolder(folder).pixels_index,
    )
    return Pixels(folder)


def in_folder(folder: Path) -> Callable[[str], Path]:
    def state(name: str) -> Path:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return folder / name

    return state


def stored(mirror: str | None, folder: Path, *names: str) -> list[Candidate]:
    return stored_candidates(Params.model_validate({"weights_mirror": mirror, "rank": {"candidates": list(names)}}), folder)


@pytest.mark.usefixtures("closed")
def test_no_weights_is_recorded_in_one_sentence_and_told_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (candidate,) = stored(None, tmp_path, "squeezenet1_0")
    assert candidate.missing is not None
    assert candidate.missing.startswith("no weights: ")
    assert "\n" not in candidate.missing
    assert "Tried: " in capsys.readouterr().err
    assert not candidate.folder.exists() or not list(candidate.folder.iterdir())
    file = tmp_path / "torch/hub/checkpoints" / torchvision.models.SqueezeNet1_0_Weights.DEFAULT.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torchvision.models.squeezenet1_0().state_dict(), file)  # another digest than is published
    assert stored(None, tmp_path, "squeezenet1_0")[0].missing is not None
    assert "is published" in capsys.readouterr().err


@pytest.mark.usefixtures("closed")
def test_views_of_one_network_find_its_weights_once_and_again_without_the_publisher(tmp_path: Path, mirror: str) -> None:
    names = ("test_resnet", "test_resnet@96/pad", "test_resnet/squeeze")
    (first,) = stored(mirror, tmp_path / "kept", names[0])
    shutil.rmtree(mirror)
    candidates = stored(mirror, tmp_path / "kept", *names)
    assert [candidate.missing for candidate in candidates] == [None] * 3
    assert {candidate.card.sha256 for candidate in candidates} == {first.card.sha256}
    assert [candidate.trunk().view.frame for candidate in candidates] == ["centre", "pad", "squeeze"]
    assert [candidate.trunk().view.size for candidate in candidates] == [160, 96, 160]


@pytest.mark.usefixtures("closed")
def test_a_size_that_a_network_does_not_take_is_an_error_and_no_missing_file(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(HeadstartError, match=r"rank.candidates: test_vit@33: the network fails on two 33×33 pictures"):
        stored(mirror, tmp_path, "test_vit@33")


def test_a_name_nobody_knows_is_an_error_and_not_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match="did you mean 'test_resnet'"):
        stored(None, tmp_path, "test_resnett")


@pytest.mark.usefixtures("closed")
def test_ranking_measures_real_networks_and_keeps_what_took_long(
    tmp_path: Path, pictures: tuple[Pixels, pd.DataFrame], mirror: str
) -> None:
    names = ["test_resnet", "test_efficientnet"]
    candidates = stored(mirror, tmp_path / "candidates", *names, "squeezenet1_0")
    params = Params.model_validate(
        {"rank": {"candidates": names, "first": 30, "pictures": 2000, "members": 1}, "features": {"engine": "torch"}}
    )
    sample = Sample.of(pictures[1], 0)
    state = in_folder(tmp_path / "state")
    found = rank(candidates, sample, pictures[0], 60, params, CPU, state)
    assert Ranking.model_validate_json(found.model_dump_json()) == found
    assert found.choice in names
    assert [row.backbone for row in found.table][2] == "squeezenet1_0"
    assert found.table[2].note.startswith("no weights: ")
    for row in found.table[:2]:
        assert row.low <= row.probe_accuracy <= row.high
        assert row.log_loss_low <= row.log_loss <= row.log_loss_high
        assert row.images_per_s > 0
        assert row.finetune_minutes >= 0
        assert row.pictures in sample.sizes(30, 2000)
    # Random weights on random pictures: nobody can be told from the other, so all pictures were looked at.
    assert found.table[0].pictures == len(sample.rows)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "state").rglob("*") if file.is_file()}
    assert [file for file in times if file.parent.parent.name == "rank"]
    assert rank(candidates, sample, pictures[0], 60, params, CPU, state) == found
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "state").rglob("*") if file.is_file()} == times


def test_features_kept_are_those_of_a_fresh_pass(
    tmp_path: Path, pictures: tuple[Pixels, pd.DataFrame], mirror: str
) -> None:
    (candidate,) = stored(mirror, tmp_path / "candidates", "test_resnet")
    extractor = FeatureExtractor(candidate.trunk(), pictures[0], CPU)
    rows = Sample.of(pictures[1], 0).rows[30:60]
    made: list[str] = []

    def engine() -> Any:
        made.append("once")
        return lambda batch: extractor.network(batch)

    width = candidate.card.features
    file = file_of("test_resnet", extractor, "torch", rows, tmp_path / "kept", torch.get_num_threads())
    first, second = (features_of("test_resnet", extractor, engine, rows, width, file) for _ in range(2))
    assert made == ["once"]
    assert torch.equal(first, second)
    trunk = candidate.trunk().eval()
    with torch.inference_mode():
        direct = torch.cat([trunk(trunk.view.batch([pictures[0][int(row)]])) for row in rows])
    assert first == pytest.approx(direct, abs=1e-4)


def test_weights_that_see_nothing_are_dropped_against_trained_ones(tmp_path: Path, mirror: str) -> None:
    """On emoji of four groups, which a trained network tells apart."""
    (file,) = Path(mirror).glob("timm/test_resnet.*/*")
    save_file({key: torch.zeros_like(value) for key, value in load_file(file).items()}, file)
    groups = ("Animals & Nature", "Flags", "Food & Drink", "Travel & Places")
    data = Data(limit=30)
    found = [p for p in fetch(data, tmp_path / "manifest.csv") if p.label in groups]
    root = locate(data).root
    arrays = [decode(root / picture.path).pixels for picture in found]
    manifest = pd.DataFrame({"path": [p.path for p in found], "label": [p.label for p in found], "split": "train"})
    manifest["group"] = manifest["path"]
    pictures = written(tmp_path / "prepare", [Image.fromarray(array) for array in arrays]), manifest
    names = ["tf_efficientnet_lite0", "test_resnet"]
    candidates = stored(mirror, tmp_path / "candidates", *names)
    params = Params.model_validate(
        {
            "rank": {"candidates": names, "first": 60, "members": 1},
            "features": {"engine": "torch"},
            "finetune": {"unfreeze": "none"},
        }
    )
    found_out = rank(candidates, Sample.of(manifest, 0), pictures[0], 60, params, CPU, in_folder(tmp_path / "state"))
    assert found_out.choice == "tf_efficientnet_lite0"
    assert found_out.table[1].note.startswith("dropped: log-loss behind tf_efficientnet_lite0 by 0.")
    assert found_out.table[1].finetune_minutes is None


def test_objects_at_the_ends_of_wide_pictures_are_seen_by_the_frame_that_is_chosen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays, labels = [], [("red", "blue")[n % 2] for n in range(60)]
    for n, label in enumerate(labels):
        array = rng.integers(90, 160, (80, 320, 3), dtype=np.uint8)
        place = slice(5, 45) if n % 4 < 2 else slice(-45, -5)
        array[20:60, place] = (200, 20, 20) if label == "red" else (20, 20, 200)
        arrays.append(Image.fromarray(array))
    manifest = pd.DataFrame({"path": [f"{n}.png" for n in range(60)], "label": labels, "split": "train"})
    manifest["group"] = manifest["path"]
    pictures = written(tmp_path / "prepare", arrays), manifest
    names = [f"tf_efficientnet_lite0@128{frame}" for frame in ("", "/squeeze", "/pad")]
    candidates = stored(None, tmp_path / "candidates", *names)
    params = Params.model_validate(
        {
            "rank": {"candidates": names, "first": 60, "members": 1},
            "features": {"engine": "torch"},
            "finetune": {"unfreeze": "none"},
        }
    )
    found = rank(candidates, Sample.of(manifest, 0), pictures[0], 60, params, CPU, in_folder(tmp_path / "state"))
    rows = {row.backbone: row for row in found.table}
    assert found.choice in names[1:]
    assert rows[found.choice].probe_accuracy >= rows[names[0]].probe_accuracy + 0.1
    assert {(row.size, row.frame) for row in found.table} == {(128, "centre"), (128, "squeeze"), (128, "pad")}
    assert [rows[name].imagenet_top1 for name in names] == [rows[names[0]].imagenet_top1] * 3


# --- side by side -----------------------------------------------------------------------------------------------------


def probes(*losses: float) -> Probe:
    return Probe(np.array(losses), np.zeros(len(losses), bool))


def test_networks_are_added_as_long_as_the_log_loss_falls() -> None:
    worth = {"a": 0.4, "b": 0.2, "c": 0.25, "d": -0.3, "e": 0.01}
    looks: list[tuple[Members, int]] = []

    def look(members: Members, count: int) -> Probe:
        looks.append((members, count))
        loss = 1 - sum(worth[name] for name in members)
        return probes(*(loss + 0.01 * np.arange(count)))

    def found(most: int, affordable: Callable[[Members], bool] = lambda members: True) -> Combination | None:
        return search("a", list(worth), most, affordable, look, few=3, count=9)

    wide = found(8)
    assert wide is not None
    assert wide.members == ("a", "c", "b", "e")
    assert wide.gained[0] == pytest.approx(0.46)
    assert wide.pays
    assert {count for members, count in looks if members not in ((*wide.members,), ("a",))} == {3}
    assert looks[-2:] == [(("a",), 9), (wide.members, 9)]
    assert (two := found(2)) is not None
    assert two.members == ("a", "c")
    assert (cheap := found(8, lambda members: "c" not in members)) is not None
    assert cheap.members == ("a", "b", "e")
    assert found(8, lambda members: set(members) <= {"a", "d"}) is None
    assert not Combination(("a", "b"), probes(0.4, 0.2, 0.3), probes(0.1, 0.4, 0.3), 3).pays


def test_views_that_see_different_halves_pay_side_by_side_and_can_be_applied(tmp_path: Path) -> None:
    """The class is told by a colour in the centre, which a centre crop sees large, and one at the ends, which it cuts."""
    rng = np.random.default_rng(0)
    arrays, labels = [], [f"{a}{b}" for _ in range(30) for a in "rb" for b in "rb"]
    colours = {"r": (220, 10, 10), "b": (10, 10, 220)}
    for label in labels:
        array = rng.integers(60, 200, (80, 480, 3), dtype=np.uint8)
        array[36:44, 236:244] = colours[label[0]]
        array[20:60, :40] = array[20:60, -40:] = colours[label[1]]
        arrays.append(Image.fromarray(array))
    manifest = pd.DataFrame({"path": [f"{n}.png" for n in range(len(labels))], "label": labels, "split": "train"})
    manifest["group"] = manifest["path"]
    pictures = written(tmp_path / "prepare", arrays), manifest
    names = ["tf_efficientnet_lite0@96", "tf_efficientnet_lite0@96/squeeze"]
    given: dict[str, Any] = {"rank": {"candidates": names, "first": 120}, "finetune": {"unfreeze": "none"}}
    given["features"] = {"engine": "torch"}
    params = Params.model_validate(given)
    candidates = stored(None, tmp_path / "candidates", *names)

    def ranked(params: Params) -> Ranking:
        state = in_folder(tmp_path / "state")
        return rank(candidates, Sample.of(manifest, 0), pictures[0], 60, params, CPU, state)

    found = ranked(params)
    assert found.choice is not None
    assert set(found.choice.split("+")) == set(names)
    rows = {row.backbone: row for row in found.table}
    together, singles = rows[found.choice], [rows[name] for name in names]
    assert together.log_loss < min(row.log_loss for row in singles)
    assert together.megabytes == pytest.approx(sum(row.megabytes for row in singles), abs=0.02)
    assert together.images_per_s < min(row.images_per_s for row in singles)
    assert "beside its own the log-loss is lower by" in found.reason
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert found.choice in ranking_report.apply(found, path)
    assert [name for name, _ in Params.load(path).members] == ["tf_efficientnet_lite0"] * 2
    given["rank"] |= {"budget": {"megabytes": together.megabytes - 1}}
    assert ranked(Params.model_validate(given)).choice in names


# --- what is done with it ---------------------------------------------------------------------------------------------


def ranking_of(choice: str | None) -> Ranking:
    keys = ["probe_accuracy", "low", "high", "log_loss", "logme", "knn_accuracy", "imagenet_top1", "gmacs", "megabytes"]
    measured = dict.fromkeys([*keys, "images_per_s", "finetune_minutes"], 0.5)
    rows = [RankedBackbone(backbone="resnet18", pictures=100, **measured)]
    rows.append(RankedBackbone(backbone="vgg16", note="no weights: <none>"))
    return Ranking(choice=choice, reason="It is so.", table=rows)


def test_the_choice_is_written_into_params_and_every_other_line_stays(tmp_path: Path) -> None:
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(shipped, encoding="utf-8")
    assert "backbone: resnet18" in ranking_report.apply(ranking_of("resnet18"), path)
    before, after = shipped.splitlines(), path.read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0][1].startswith("backbone: resnet18 ")
    assert changed[0][1].split("#")[1] == changed[0][0].split("#")[1]
    assert Params.load(path).backbone == "resnet18"
    assert "already" in ranking_report.apply(ranking_of("resnet18"), path)


def test_weights_and_the_view_of_another_network_do_not_stay_behind(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("backbone: alexnet\nweights: mine.pth  # by hand\n")
    now = Params.load(path)
    assert ranking_report.try_it("resnet18", now) == "dvc exp run -S backbone=resnet18 -S weights=default"
    ranking_report.apply(ranking_of("resnet18"), path)
    assert path.read_text() == "backbone: resnet18\nweights: default   # by hand\n"
    assert ranking_report.try_it("resnet18@160/pad", Params.load(path)) == (
        "dvc exp run -S view.size=160 -S view.frame=pad"
    )
    ranking_report.apply(ranking_of("resnet18@160/pad"), path)
    assert ranking_report.try_it("resnet18@160/pad", Params.load(path)) is None
    assert Params.load(path).view == View(size=160, frame="pad")
    assert ranking_report.try_it("resnet18", Params.load(path)).endswith("-S view.size=null -S view.frame=centre")
    ranking_report.apply(ranking_of("resnet18"), path)
    assert Params.load(path).view == View()


def test_without_a_choice_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"no choice to apply\. It is so"):
        ranking_report.apply(ranking_of(None), tmp_path / "params.yaml")


def test_the_table_and_the_page_name_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranking_report.show(ranking_of("resnet18"), Params())
    printed = capsys.readouterr().out
    for words in ("resnet18", "vgg16: no weights: <none>", "It is so.", "dvc exp run -S backbone=resnet18"):
        assert words in printed
    ranking_report.write_page(ranking_of("resnet18"), tmp_path / "rank.html")
    page = (tmp_path / "rank.html").read_text()
    assert "<svg" in page
    assert "no weights: &lt;none&gt;" in page
    assert "://" not in page
    nothing = ranking_of(None).model_copy(update={"table": ranking_of(None).table[1:]})
    ranking_report.write_page(nothing, tmp_path / "rank.html")
    assert "No choice" in (tmp_path / "rank.html").read_text()


def test_without_a_ranking_the_command_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=re.escape("dvc repro studies/dvc.yaml:rank")):
        Ranking.read(tmp_path / "rank.json")
