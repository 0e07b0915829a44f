"""The head is logistic regression's optimum at the strength validation supports, with an honest temperature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json
from headstart.base.sections import Head
from headstart.models.backbones import load_trunk
from headstart.models.calibration import TEMPERATURE_PRIOR, fit_temperature
from headstart.models.task import SINGLE_LABEL
from headstart.models.weights import store_backbone
from headstart.training.head_files import load_head
from headstart.training.linear_probe import LEAST_DEVIATION, stacked, train_head, within_one_standard_error

NAMES = ["ant", "bee", "wolf"]
Split = tuple[Tensor, Tensor]


def blobs(classes: int, counts: tuple[int, ...], seed: int, width: int = 12) -> Split:
    """Overlapping clouds, one per class, with features of very different scales and offsets."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(0, 1, (classes, width))
    labels = np.repeat(np.arange(classes), counts)
    x = centres[labels] + rng.normal(0, 1.3, (len(labels), width))
    x = x * np.geomspace(0.01, 100, width) + np.linspace(-50, 50, width)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


class Scaler(StandardScaler):  # type: ignore[misc]
    """scikit-learn's, but for features that hardly vary."""

    def fit(self, x: NDArray[np.float64], y: None = None) -> Scaler:
        super().fit(x)
        self.scale_ = np.maximum(self.scale_, LEAST_DEVIATION * np.sort(self.scale_)[(len(self.scale_) - 1) // 2])
        return self


def optimum(x: Tensor, y: Tensor, strength: float, weights: str | None = None) -> object:
    """scikit-learn's own, to a tolerance far below ours."""
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8, class_weight=weights)
    return make_pipeline(Scaler(), model).fit(x.double().numpy(), y.numpy())


@pytest.mark.parametrize("classes", [2, 3], ids=["two classes", "three classes"])
@pytest.mark.parametrize("weights", [None, "balanced"])
@pytest.mark.parametrize("width", [12, 300], ids=["more pictures than features", "fewer"])
def test_the_head_is_scikit_learns_optimum_on_raw_features(
    classes: int, weights: str | None, width: int, tmp_path: Path
) -> None:
    counts = (60, 25, 15)[:classes]
    train, val, new = (blobs(classes, n, seed, width) for seed, n in enumerate((counts, counts, (40,) * classes), start=1))
    strength = 0.03
    head = train_head(train, val, NAMES[:classes], Head(C=[strength], class_weight=weights), tmp_path)  # type: ignore[arg-type]
    refit = load_head(tmp_path, refit=True)
    both = tuple(torch.cat(pair) for pair in zip(train, val, strict=True))
    for found, (x, y) in ((head, train), (refit, both)):
        expected = optimum(x, y, strength, weights).predict_proba(new[0].double().numpy())  # type: ignore[attr-defined]
        probabilities = torch.softmax(found.logits(new[0]), dim=1).numpy()
        assert probabilities.shape == (40 * classes, classes)
        np.testing.assert_allclose(probabilities, expected, atol=0.01)
    assert not torch.equal(head.module.first.weight, refit.module.first.weight)


def test_balanced_weights_are_scikit_learns_and_are_kept_for_fine_tuning(tmp_path: Path) -> None:
    train, val = blobs(3, (60, 25, 15), 1), blobs(3, (10, 10, 10), 2)
    head = train_head(train, val, NAMES, Head(class_weight="balanced"), tmp_path)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=train[1].numpy())
    assert head.class_weight == pytest.approx(expected)
    assert train_head(train, val, NAMES, Head(), tmp_path / "plain").class_weight is None


def test_balancing_finds_more_of_a_rare_class(tmp_path: Path) -> None:
    train, val, new = blobs(2, (300, 12), 1, 3), blobs(2, (60, 6), 2, 3), blobs(2, (0, 200), 3, 3)
    recall = []
    for weights in (None, "balanced"):
        settings_ = Head(C=[0.01], class_weight=weights)
        head = train_head(train, val, NAMES[:2], settings_, tmp_path / str(weights))
        recall.append(float((head.logits(new[0]).argmax(1) == 1).float().mean()))
    assert recall[1] > recall[0] + 0.2


def test_swapping_two_classes_names_swaps_the_answers(tmp_path: Path) -> None:
    (x, y), (v, w) = blobs(2, (50, 30), 1), blobs(2, (20, 20), 2)
    head = train_head((x, y), (v, w), NAMES[:2], Head(C=[0.1]), tmp_path / "a")
    swapped = train_head((x, 1 - y), (v, 1 - w), NAMES[:2], Head(C=[0.1]), tmp_path / "b")
    torch.testing.assert_close(head.logits(v).flip(1), swapped.logits(v), rtol=1e-2, atol=1e-2)


def test_the_strength_is_not_chosen_by_recognising_groups(tmp_path: Path) -> None:
    """Ten photographs of each of thirty birds: within a bird they are alike, and birds of a kind are not."""
    rng = np.random.default_rng(0)
    birds = np.arange(300) // 10
    labels = birds % 2
    x = rng.normal(size=(30, 40))[birds] + 0.3 * labels[:, None] + rng.normal(size=(300, 40)) * 0.3
    features, answers = torch.tensor(x, dtype=torch.float32), torch.tensor(labels)
    at = birds < 24
    sides = ((features[at], answers[at]), (features[~at], answers[~at]))
    strengths = Head(C=[0.0003, 0.003, 0.03, 0.3, 3.0])
    chosen, averaged = [], []
    for name, groups in (("apart", None), ("together", birds.astype(str))):
        train_head(*sides, NAMES[:2], strengths, tmp_path / name, groups)
        details = read_json(tmp_path / name / "head.json")
        assert details["chosen_by"] == "cross-validation"
        shares = [row["weight"] for row in details["sweep"]]
        averaged.append(np.average([np.log(row["C"]) for row in details["sweep"]], weights=shares))
        chosen.append(details["C"])
    assert chosen[1] < chosen[0]
    assert averaged[1] < averaged[0] - 1
    few = np.array(["one bird"] * 150 + [str(n) for n in range(150)])  # of which five parts cannot be made
    train_head(*sides, NAMES[:2], strengths, tmp_path / "few", np.where(labels == 0, "one bird", few))
    assert read_json(tmp_path / "few" / "head.json")["chosen_by"] == "validation"


def test_features_that_never_vary_say_nothing_and_break_nothing(tmp_path: Path) -> None:
    train, val = blobs(3, (40, 40, 40), 1), blobs(3, (20, 20, 20), 2)
    plain = train_head(train, val, NAMES, Head(C=[0.1]), tmp_path / "plain")

    def with_constant(split: Split) -> Split:
        return torch.cat([split[0], torch.full((len(split[0]), 2), 3.5)], dim=1), split[1]

    more = train_head(with_constant(train), with_constant(val), NAMES, Head(C=[0.1]), tmp_path / "more")
    assert torch.isfinite(more.module.first.weight).all()
    torch.testing.assert_close(more.logits(with_constant(val)[0]), plain.logits(val[0]), rtol=1e-2, atol=1e-2)


def test_features_that_hardly_vary_are_not_blown_up(tmp_path: Path) -> None:
    """Five hundred that vary, and four hundred of noise, a thousandth as large: as if those were not there."""
    rng = np.random.default_rng(0)

    def with_noise(split: Split) -> Split:
        noise = torch.tensor(rng.normal(0, 0.001, (len(split[0]), 400)), dtype=torch.float32)
        return torch.cat([split[0], noise], dim=1), split[1]

    def tellers(n: int, seed: int) -> Split:
        x, y = blobs(2, (n, n), seed, width=500)
        return (x - x.mean(0)) / x.std(0), y

    train, val, new = tellers(30, 1), tellers(20, 2), tellers(200, 3)
    head = train_head(with_noise(train), with_noise(val), NAMES[:2], Head(C=[0.1]), tmp_path / "more")
    plain = train_head(train, val, NAMES[:2], Head(C=[0.1]), tmp_path / "plain")
    torch.testing.assert_close(head.logits(with_noise(new)[0]), plain.logits(new[0]), rtol=0.05, atol=0.05)


def test_the_sweep_is_written_with_a_row_per_strength_and_the_chosen_one_among_them(tmp_path: Path) -> None:
    train, val = blobs(3, (40, 40, 40), 1), blobs(3, (20, 20, 20), 2)
    head = train_head(train, val, NAMES, Head(C=[1.0, 0.001, 0.03]), tmp_path)
    sweep = pd.read_csv(tmp_path / "sweep.csv")
    assert sweep["C"].tolist() == [0.001, 0.03, 1.0]
    details = json.loads((tmp_path / "head.json").read_text())
    row = sweep[sweep["C"] == details["C"]].iloc[0]
    assert row["temperature"] == pytest.approx(head.temperature)
    logits = head.logits(val[0])
    assert row["val_accuracy"] == pytest.approx(float((logits.argmax(1) == val[1]).float().mean()))
    found = torch.softmax(logits.double() / head.temperature, dim=1).numpy()
    assert row["val_log_loss"] == pytest.approx(log_loss(val[1].numpy(), found), abs=1e-4)


def test_the_refitted_head_is_the_weighted_mean_of_those_at_each_strength(tmp_path: Path) -> None:
    train, val, new = (blobs(3, (n, n, n), seed) for seed, n in enumerate((40, 20, 60), start=1))
    train_head(train, val, NAMES, Head(C=[1.0, 0.001, 0.03]), tmp_path)
    weights = pd.read_csv(tmp_path / "sweep.csv").set_index("C")["weight"]
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    mean = torch.zeros(180, 3)
    for strength, weight in weights.items():
        train_head(train, val, NAMES, Head(C=[strength]), tmp_path / str(strength))
        mean += weight * load_head(tmp_path / str(strength), refit=True).logits(new[0])
    averaged = load_head(tmp_path, refit=True)
    torch.testing.assert_close(
        averaged.logits(new[0]), mean, rtol=0.02, atol=0.1
    )  # where a path starts moves its end a little
    assert averaged.temperature != load_head(tmp_path).temperature


def test_where_a_class_is_too_small_for_folds_the_refitted_head_has_the_chosen_strength(tmp_path: Path) -> None:
    train, val = blobs(3, (40, 40, 3), 1), blobs(3, (20, 20, 1), 2)
    train_head(train, val, NAMES, Head(C=[1.0, 0.001, 0.03]), tmp_path)
    details = read_json(tmp_path / "head.json")
    assert [row["C"] for row in details["sweep"] if row["weight"] == 1] == [details["C"]]
    assert details["refit_temperature"] == details["temperature"]


@given(st.integers(0, 10_000), st.integers(6, 60), st.integers(2, 5), st.integers(1, 6), st.floats(0.2, 10))
@settings(max_examples=60)
def test_models_averaged_are_no_worse_than_the_best_of_them_calibrated(
    seed: int, count: int, classes: int, models: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = (
        rng.normal(0, scale, (models, count, classes)) + rng.uniform(0, 3, models)[:, None, None] * np.eye(classes)[labels]
    )
    weights = stacked(logits, labels)
    assert (weights >= 0).all()
    temperature = 1 / weights.sum()
    prior = np.log(temperature) ** 2 / (2 * TEMPERATURE_PRIOR**2)

    def objective(each: NDArray[np.float64], penalty: float) -> float:
        return float(SINGLE_LABEL.losses(each, labels).sum() + penalty)

    best = min(
        objective(each / t, np.log(t) ** 2 / (2 * TEMPERATURE_PRIOR**2))
        for each in logits
        for t in [fit_temperature(each, labels)]
    )
    assert objective(np.tensordot(weights, logits, 1), prior) <= best * 1.001 + 0.01
    again = stacked(logits[::-1], labels)[::-1]
    np.testing.assert_allclose(np.tensordot(again, logits, 1), np.tensordot(weights, logits, 1), atol=0.05 * scale + 0.05)


def test_a_model_that_knows_gets_the_weight_and_one_that_guesses_gets_none() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    guess, knows = rng.normal(0, 2, (400, 3)), 2 * np.eye(3)[labels] + rng.normal(0, 1, (400, 3))
    weights = stacked(np.stack([guess, knows]), labels)
    assert weights[0] < 0.1 * weights[1]
    assert 1 / weights[1] == pytest.approx(fit_temperature(knows, labels), rel=0.1)


def test_the_same_features_give_the_same_bytes(tmp_path: Path) -> None:
    train, val = blobs(3, (40, 40, 40), 1), blobs(3, (20, 20, 20), 2)
    for name in ("a", "b"):
        train_head(train, val, NAMES, Head(), tmp_path / name)
    for file in ("head.safetensors", "head.json", "sweep.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# --- the temperature ----------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.floats(0.1, 40))
@settings(max_examples=60)
def test_the_temperature_never_makes_the_log_loss_worse(seed: int, count: int, classes: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, scale, (count, classes)), rng.integers(0, classes, count)

    def loss(temperature: float) -> float:
        t = torch.tensor(logits / temperature)
        return float(torch.nn.functional.cross_entropy(t, torch.tensor(labels)))

    best = fit_temperature(logits, labels)
    assert 0.05 <= best <= 20
    assert loss(best) <= loss(1.0) + 1e-5


def test_a_few_pictures_that_all_happen_to_be_right_do_not_make_answers_certain() -> None:
    logits = np.tile([2.0, 0.0, 0.0], (24, 1))  # 79% sure, and right 24 times of 24: by chance once in 280
    assert 0.3 < fit_temperature(logits, np.zeros(24, int)) < 1


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_logits_too_sure_by_a_factor_are_divided_by_it(factor: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (honest.cumsum(axis=1) < rng.random((len(logits), 1))).sum(axis=1)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.05)


# --- the strength -------------------------------------------------------------------------------------------------


def test_of_strengths_that_cannot_be_told_apart_the_strongest_is_taken() -> None:
    rng = np.random.default_rng(0)
    base = rng.exponential(1, 40)
    noise = rng.normal(0, 0.3, (3, 40))
    noise -= noise.mean(axis=1, keepdims=True)
    noisy = list(base + noise)
    lowest = noisy[2] - 0.01  # the weakest wins by a hair
    assert within_one_standard_error([noisy[0], noisy[1], lowest]) == 0
    assert within_one_standard_error([base, base, base]) == 0


def test_a_strength_that_is_clearly_better_is_taken() -> None:
    rng = np.random.default_rng(0)
    base = rng.exponential(1, 40)
    clear = base - 0.5 + rng.normal(0, 0.1, 40)
    assert within_one_standard_error([base, clear, clear + 0.4]) == 1


def test_ten_pictures_of_a_group_that_agree_are_no_ten_reasons_for_a_weaker_strength() -> None:
    rng = np.random.default_rng(0)
    stronger = np.repeat(rng.exponential(1, 6), 10)
    weaker = stronger - np.repeat([0.5, -0.2, 0.4, -0.3, 0.3, -0.2], 10)
    assert within_one_standard_error([stronger, weaker]) == 1
    assert within_one_standard_error([stronger, weaker], np.repeat(list("abcdef"), 10)) == 0
    assert within_one_standard_error([stronger, weaker], np.arange(60)) == 1


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 6))
@settings(max_examples=60)
def test_what_is_taken_is_never_weaker_than_the_best_nor_clearly_worse(seed: int, count: int, strengths: int) -> None:
    rng = np.random.default_rng(seed)
    losses = [rng.exponential(1, count) for _ in range(strengths)]
    best = min(range(strengths), key=lambda n: losses[n].mean())
    taken = within_one_standard_error(losses)
    assert taken <= best
    difference = losses[taken] - losses[best]
    assert difference.mean() <= difference.std() / count**0.5


def test_a_folder_without_a_head_is_said(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"head\.json is not there; run `dvc repro head`"):
        load_head(tmp_path)


def test_a_few_pictures_of_hardly_any_kind_make_a_head(tmp_path: Path) -> None:
    """Red and blue swatches. LAPACK finds no eigenvalues of most such sets in single precision."""
    store_backbone("tf_efficientnet_lite0", "default", None, 0, tmp_path / "network.py", tmp_path / "backbone")
    trunk = load_trunk(tmp_path / "backbone")[0].eval()
    rng = np.random.default_rng(0)
    colours = [np.array([200, 40, 40] if n % 2 else [40, 40, 200]) + rng.integers(-25, 26, 3) for n in range(40)]
    pictures = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    with torch.inference_mode():
        features = torch.cat([trunk(trunk.view.batch(pictures[n : n + 20])) for n in (0, 20)])
    labels = torch.arange(40) % 2
    head = train_head(
        (features[:30], labels[:30]), (features[30:], labels[30:]), ["blue", "red"], Head(), tmp_path / "head"
    )
    assert (head.logits(features).argmax(1) == labels).all()
