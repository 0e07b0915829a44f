"""Heads: registered by name, fitted along a path of regularisation strengths, nothing but their weights ever after."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn import functional

from headstart.base.files import read_json
from headstart.base.sections import Head
from headstart.engines.openvino import converted
from headstart.inference.export import HEAD_OPERATIONS
from headstart.models.heads import HEADS, ClassifierHead, LinearHead, MlpHead
from headstart.training.head_files import load_head
from headstart.training.linear_probe import train_head

PROJECT = Path(__file__).parents[2]
KINDS = pytest.mark.parametrize("kind", HEADS)


def rings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes, one around the other: no plane separates them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    angle, radius = rng.uniform(0, 2 * np.pi, count), 1 + 2 * labels + rng.normal(0, 0.3, count)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(size=count)], axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def test_params_know_the_heads_that_are_registered() -> None:
    assert list(get_args(Head.model_fields["kind"].annotation)) == list(HEADS)


@KINDS
def test_a_head_is_its_state_and_no_more(kind: str) -> None:
    features, labels = rings(60, 1)
    ((head, steps),) = HEADS[kind].fit_path(features, labels, 2, [0.1])
    assert steps > 0
    again = HEADS[kind].from_state(head.state_dict())
    assert torch.equal(again(features), head(features))
    again.reset_parameters()
    assert not torch.equal(again(features), head(features))


@KINDS
def test_standardisation_and_temperature_are_folded_into_the_weights(kind: str) -> None:
    features, labels = rings(60, 1)
    mean, scale = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([10.0, 0.1, 2.0])
    ((head, _),) = HEADS[kind].fit_path(features, labels, 2, [0.1])
    raw = head.unstandardised(mean, scale)
    torch.testing.assert_close(raw(features * scale + mean), head(features), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.with_logits_divided(2.5)(features), head(features) / 2.5)
    assert raw is not head


@KINDS
def test_the_same_features_give_the_same_bytes_whatever_was_drawn_before(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.rand(len(name) + ord(name))
        settings = Head.model_validate({"kind": kind, "C": [0.03]})
        train_head(rings(60, 1), rings(40, 2), ["in", "out"], settings, tmp_path / name)
    for file in ("head.safetensors", "head.json", "sweep.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert read_json(tmp_path / "a" / "head.json")["kind"] == kind


def test_a_hidden_layer_tells_what_no_plane_does_and_is_chosen_by_the_same_rule(tmp_path: Path) -> None:
    train, val, new = rings(200, 1), rings(120, 2), rings(400, 3)
    right = {}
    for kind in HEADS:
        head = train_head(train, val, ["in", "out"], Head.model_validate({"kind": kind}), tmp_path / kind)
        right[kind] = float((head.logits(new[0]).argmax(1) == new[1]).float().mean())
        details = read_json(tmp_path / kind / "head.json")
        assert [row["C"] for row in details["sweep"]] == sorted(Head().C)
        assert details["chosen_by"] == "validation"
    assert right["mlp"] > 0.95
    assert right["linear"] < 0.7
    refit = load_head(tmp_path / "mlp", refit=True)
    assert isinstance(refit.module, MlpHead)
    assert (refit.logits(new[0]).argmax(1) == new[1]).float().mean() > 0.95


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_hidden_layer_is_trained_as_well_as_scikit_learns(strength: float) -> None:
    features, labels = rings(200, 1)
    ((head, _),) = MlpHead.fit_path(features, labels, 2, [strength])

    def objective(log_loss: float, weights: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]]) -> float:
        return log_loss + sum(float((w**2).sum()) for w in weights) / (2 * strength * len(labels))

    with torch.no_grad():
        log_loss = float(functional.cross_entropy(head(features), labels))
    mine = objective(log_loss, [layer.weight.detach().double().numpy() for layer in (head.hidden, head.output)])
    theirs = MLPClassifier((MlpHead.HIDDEN,), solver="lbfgs", alpha=1 / strength, max_iter=2000, random_state=0)
    theirs.fit(features.numpy(), labels.numpy())
    answered = theirs.predict_proba(features.numpy())[np.arange(len(labels)), labels.numpy()]
    assert mine < objective(float(-np.log(answered).mean()), theirs.coefs_) + 0.02


def test_balanced_weights_reach_the_hidden_layer() -> None:
    features, labels = rings(200, 1)
    keep = [n for n in range(200) if labels[n] == 0 or n < 16]
    few, few_labels = features[keep], labels[keep]
    weights = len(keep) / (2 * torch.bincount(few_labels).double())
    recall = []
    for given in (None, weights):
        ((head, _),) = MlpHead.fit_path(few, few_labels, 2, [0.1], given)
        recall.append(float((head(features[labels == 1]).argmax(1) == 1).float().mean()))
    assert recall[1] > recall[0]


@KINDS
def test_the_export_to_eight_bits_finds_every_layer_of_a_head(kind: str) -> None:
    """They stay exact there, since standardisation is folded into them."""
    import re

    class Whole(nn.Module):
        def __init__(self, head: ClassifierHead) -> None:
            super().__init__()
            self.model = nn.Module()
            self.model.head = head

        def forward(self, features: Tensor) -> Tensor:
            logits: Tensor = self.model.head(features)
            return logits

    state = LinearHead(3, 2).state_dict() if kind == "linear" else MlpHead(3, 2).state_dict()
    head = HEADS[kind].from_state(state)
    model = converted(Whole(head).eval(), torch.zeros(2, 3))
    products = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "MatMul"]
    assert len(products) == sum(isinstance(module, nn.Linear) for module in head.modules())
    assert all(re.fullmatch(HEAD_OPERATIONS, name) for name in products), products


CLASS_MEANS = '''
class ClassMeans(LinearHead):
    """The class whose mean is nearest; C draws the means towards the middle."""

    kind = "class_means"

    @classmethod
    def fit_path(cls, features, labels, classes, strengths, class_weight=None):
        for strength in strengths:
            means = torch.stack([features[labels == n].mean(0) for n in range(classes)]) * strength / (1 + strength)
            yield cls.of(2 * means, -means.square().sum(1)), 1


'''


def test_a_head_is_added_as_contributing_describes(tmp_path: Path) -> None:
    """A class in heads.py, its name in HEADS and in params.py: nothing else knows the kinds of heads."""
    shutil.copytree(PROJECT / "headstart", tmp_path / "headstart", ignore=shutil.ignore_patterns("__pycache__"))
    heads, params = (tmp_path / "headstart" / name for name in ("models/heads.py", "base/sections.py"))
    before, registry = heads.read_text().split("HEADS: ", 1)
    heads.write_text(f"{before}{CLASS_MEANS.lstrip()}HEADS: {registry.replace('MlpHead)', 'MlpHead, ClassMeans)')}")
    params.write_text(
        params.read_text().replace('kind: Literal["linear", "mlp"]', 'kind: Literal["linear", "mlp", "class_means"]')
    )
    program = """
from pathlib import Path
import torch
from headstart.base.params import Params
from headstart.training.head_files import load_head
from headstart.training.linear_probe import train_head

Path("params.yaml").write_text("head: {kind: class_means, C: [0.1, 10.0]}")
labels = torch.arange(60) % 2
features = torch.randn(60, 4) + 4 * labels[:, None]
split = features[:40], labels[:40], features[40:], labels[40:]
head = train_head(split[:2], split[2:], ["a", "b"], Params.load().head, Path("head"))
right = load_head(Path("head"), refit=True).logits(features).argmax(1) == labels
print(type(head.module).__name__, float(right.float().mean()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    name, right = done.stdout.split()
    assert name == "ClassMeans"
    assert float(right) > 0.95
