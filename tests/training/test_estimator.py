"""The head as a scikit-learn estimator: it passes scikit-learn's own checks, and is the head that the stage fits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import headstart
from headstart.base.sections import Head
from headstart.training.head_files import load_head
from headstart.training.linear_probe import train_head

NAMES, STRENGTHS = ["ant", "bee", "wolf"], [0.003, 0.03, 0.3]
# What is skipped, and why. docs/use.md says it too.
SKIPPED = {"check_array_api_input": "it asks for SCIPY_ARRAY_API in the environment, and the fit is torch's"}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Counter[str]]:
    """How the checks ended; printed after the last (`pytest -s`)."""
    counted: Counter[str] = Counter()
    yield counted
    print(
        f"\nscikit-learn's estimator checks: {counted['passed']} passed / {counted.total()}, skipped {counted['skipped']}"
    )


@parametrize_with_checks([headstart.LinearProbe(C=[0.1])])  # one strength, to be quick
def test_scikit_learns_own_check(estimator: Any, check: Callable[[Any], None], outcomes: Counter[str]) -> None:
    try:
        check(estimator)
    except (SkipTest, pytest.skip.Exception) as reason:
        outcomes["skipped"] += 1
        assert check.func.__name__ in SKIPPED, reason  # type: ignore[attr-defined]
        raise
    except BaseException:
        outcomes["failed"] += 1
        raise
    outcomes["passed"] += 1


def blobs(classes: int, each: int, width: int = 20, seed: int = 0) -> tuple[Any, Any]:
    """Overlapping clouds, one per class: float32 features and numbers of the classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = np.random.default_rng(1).normal(size=(classes, width))
    return (centres[labels] + rng.normal(0, 1.5, (len(labels), width))).astype(np.float32), labels


@pytest.mark.parametrize(("classes", "weights", "grouped"), [(2, None, False), (3, None, True), (3, "balanced", False)])
def test_it_is_the_head_that_the_stage_refits(classes: int, weights: Any, grouped: bool, tmp_path: Path) -> None:
    """On the training pictures followed by those of validation, to the last bit."""
    x, numbers = blobs(classes, 40)
    x[numbers == 1] += 0.1
    groups = np.arange(len(x)) // 2 if grouped else None
    order = np.random.default_rng(0).permutation(len(x))
    x, numbers = x[order], numbers[order]
    split = int(0.8 * len(x))
    sides = [(torch.from_numpy(x[at]), torch.from_numpy(numbers[at])) for at in (slice(split), slice(split, None))]
    train_head(sides[0], sides[1], NAMES[:classes], Head(C=STRENGTHS, class_weight=weights), tmp_path, groups)
    stage = load_head(tmp_path, refit=True)
    probe = headstart.LinearProbe(STRENGTHS, weights).fit(x, np.array(NAMES)[numbers], groups)
    head = stage.module.with_logits_divided(stage.temperature)
    expected = [each.detach().numpy() for each in (head.first.weight, head.first.bias)]
    for found, of_stage in zip((probe.coef_, probe.intercept_), expected, strict=True):
        np.testing.assert_array_equal(found, of_stage if classes > 2 else np.diff(of_stage, axis=0))
    assert probe.classes_.tolist() == NAMES[:classes]
    assert probe.weights_.sum() == pytest.approx(1)


def test_classes_may_be_too_rare_to_hold_out() -> None:
    x, numbers = blobs(3, 20)
    kept = np.r_[0:40, 40:42]  # two of the third
    assert set(headstart.LinearProbe().fit(x[kept], numbers[kept]).predict(x)) <= {0, 1, 2}
    kept = np.r_[0:41]  # one
    probe = headstart.LinearProbe(C=[0.01, 0.1]).fit(x[kept], numbers[kept])
    assert probe.weights_.tolist() == [0.5, 0.5]
    assert probe.predict_proba(x).shape == (60, 3)
    with pytest.raises(ValueError, match="two classes at least, and found one class: 0"):
        headstart.LinearProbe().fit(x[:20], numbers[:20])


def test_at_one_strength_it_answers_as_logistic_regression_and_is_calibrated() -> None:
    x, numbers = blobs(3, 60)
    probe = headstart.LinearProbe(C=[0.1]).fit(x, numbers)
    other = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(x, numbers)
    new, _ = blobs(3, 60, seed=5)
    assert (probe.predict(new) == other.predict(new)).mean() > 0.97
    assert cross_val_score(headstart.LinearProbe(STRENGTHS), x, numbers, cv=3, scoring="neg_log_loss").mean() > -0.6


def test_the_code_in_the_documentation_compares_it_with_another_on_the_features_of_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/use.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LinearProbe" in block)
    monkeypatch.chdir(tmp_path)
    x, numbers = blobs(2, 15)
    Path("data/features").mkdir(parents=True)
    save_file({"features": x, "labels": numbers}, "data/features/train.safetensors")
    exec(code, {})
    scores = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 2
    assert all(-np.log(2) < score < 0 for score in scores)
