"""A new model takes over only by the rules, on pictures that neither has learned from, and the decision is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.stats import binom, permutation_test

from bench.gate import false_promotions
from headstart.base.artifacts import DataFolder, ModelFolder, PrepareFolder
from headstart.base.artifacts.card import Card, Preprocessing, WeightsSource
from headstart.base.artifacts.classifier import ClassifierDetails
from headstart.base.artifacts.metrics import Chance
from headstart.base.artifacts.track import TrackedResult
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import Gate
from headstart.evaluation.metrics import Scores, metrics_of
from headstart.inference.provenance import digest_of_model, remember, write_sums
from headstart.models.backbones import architecture
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.task import MULTI_LABEL, SINGLE_LABEL, MultiLabel, Task
from headstart.tracking import gate, store
from headstart.tracking import judge as judging
from headstart.tracking.judge import Decision, Side, judge
from headstart.tracking.registry import Registry, Version
from headstart.tracking.result import result_digest
from headstart.tracking.track import track
from tests.inference.test_predictor import NETWORK

NAMES = ["ants", "bees"]
RULES = Gate()


def side(
    number: int, right: list[bool], labels: list[int], confidence: float = 0.9, seconds: float = 0.01, arithmetic: str = ""
) -> Side:
    """One that answers each picture rightly or wrongly, always equally sure."""
    rows = np.array([label if hit else 1 - label for hit, label in zip(right, labels, strict=True)])
    probabilities = np.full((len(rows), 2), 1 - confidence)
    probabilities[np.arange(len(rows)), rows] = confidence
    return Side(number, Scores(probabilities, np.array(labels)), frozenset({0, 1}), seconds, arithmetic)


def with_wrong(number: int, wrong: dict[int, int], pictures: int = 100, **more: Any) -> Side:
    """Half ants, half bees, so many of each class answered wrongly."""
    labels = [n % 2 for n in range(pictures)]
    left = dict(wrong)
    right = []
    for label in labels:
        right.append(not left.get(label))
        left[label] = max(left.get(label, 0) - 1, 0)
    return side(number, right, labels, **more)


def decided(champion: Side | None, challenger: Side, rules: Gate = RULES, **more: Any) -> Decision:
    return judge(champion, challenger, NAMES, rules, 200, 0, **more)


# --- the rules ----------------------------------------------------------------------------------------------------------


def test_the_first_result_is_promoted_whatever_it_is() -> None:
    decision = decided(None, with_wrong(1, {0: 40, 1: 40}))
    assert decision.outcome == "promoted"
    assert "first champion" in decision.sentence
    assert "0.200" in decision.sentence
    assert "champion" not in decision.numbers


def test_one_that_is_better_takes_over() -> None:
    decision = decided(with_wrong(3, {0: 6, 1: 6}), with_wrong(4, {0: 3, 1: 4}))
    assert decision.outcome == "promoted"
    assert "Version 4 takes over from version 3" in decision.sentence
    assert "0.930 (version 4) against 0.880 (version 3) on the same 100 test pictures" in decision.sentence
    assert ", p 0.031." in decision.sentence  # five pictures, all of them gained
    assert decision.numbers["gain"]["value"] == pytest.approx(0.05)
    assert decision.numbers["gain"]["p"] == 0.5**5


def test_chance_in_training_counts_where_it_is_known_and_is_missed_where_it_is_not() -> None:
    sides = [with_wrong(3, {0: 6, 1: 6}), with_wrong(4, {0: 1, 1: 1})]
    once = decided(*sides)
    assert once.outcome == "promoted"
    assert once.sentence.endswith(
        "Chance in the training of version 3 and of version 4 is not counted: see finetune.repeats."
    )
    far, near, none = (Chance(variance=v, degrees=4) for v in (0.06**2, 0.001**2, 0.0))
    wide = decided(*(replace(side, training=far) for side in sides))
    assert wide.outcome == "kept"
    assert "Chance in the training" not in wide.sentence
    assert wide.numbers["gain"]["p"] > 0.05
    assert wide.numbers["gain"]["low"] < 0 < once.numbers["gain"]["low"]
    assert decided(*(replace(side, training=near) for side in sides)).outcome == "promoted"
    of_heads = decided(*(replace(side, training=none) for side in sides))
    assert of_heads.numbers["gain"] == once.numbers["gain"]
    assert "Chance in the training" not in of_heads.sentence
    mixed = decided(sides[0], replace(sides[1], training=far)).sentence
    assert mixed.endswith("Chance in the training of version 3 is not counted: see finetune.repeats.")


@pytest.mark.parametrize("after", [{0: 6, 1: 4}, {0: 3, 1: 5}, {0: 6, 1: 5}], ids=["equal", "hardly better", "worse"])
def test_one_that_is_not_clearly_better_is_kept_out_without_a_complaint(after: dict[int, int]) -> None:
    decision = decided(with_wrong(3, {0: 5, 1: 5}), with_wrong(4, after))
    assert decision.outcome == "kept"
    assert decision.sentence.startswith("Version 3 stays: version 4 is not clearly better (gate.max_p 0.05).")
    assert decision.numbers["broken"] == []
    measured_alone = decided(with_wrong(3, {0: 5, 1: 5}), with_wrong(4, after), Gate(max_p=1)).outcome
    assert measured_alone == ("kept" if decision.numbers["gain"]["value"] < 0 else "promoted")


def test_a_p_value_of_exactly_the_limit_is_within_it() -> None:
    champion, challenger = with_wrong(3, {0: 5}), with_wrong(4, {})
    assert decided(champion, challenger, Gate(max_p=0.5**5)).outcome == "promoted"
    assert decided(champion, challenger, Gate(max_p=0.5**5 - 1e-9)).outcome == "kept"


@pytest.mark.parametrize(("metric", "draws"), [("accuracy", 300), ("log_loss", 100), ("matthews_corrcoef", 40)])
def test_one_that_is_no_better_is_promoted_no_more_often_than_the_gate_says(metric: str, draws: int) -> None:
    """`python bench/gate.py` draws 2,000 for each metric and case."""
    by_chance = binom.ppf(0.99, draws, Gate().max_p)
    assert 0 < false_promotions("alike", metric, draws) <= by_chance


def test_one_that_is_worse_by_exactly_the_margin_is_within_it() -> None:
    champion, challenger = with_wrong(3, {0: 2, 1: 2}), with_wrong(4, {0: 3, 1: 3})
    assert decided(champion, challenger, Gate(margin=0.02)).outcome == "kept"
    assert decided(champion, challenger, Gate(margin=0.019)).outcome == "refused"


def test_one_that_is_worse_by_more_is_refused_with_the_figures() -> None:
    decision = decided(with_wrong(3, {0: 2, 1: 2}), with_wrong(4, {0: 5, 1: 5}))
    assert decision.outcome == "refused"
    assert "Accuracy is 0.060 worse, more than gate.margin 0.01 allows" in decision.sentence


def test_one_that_is_better_by_giving_up_a_class_is_refused() -> None:
    decision = decided(with_wrong(3, {0: 0, 1: 20}), with_wrong(4, {0: 6, 1: 0}))
    assert decision.outcome == "refused"
    assert decision.numbers["gain"]["value"] > 0
    assert "gate.class_margin 0.1: 'ants' from 1.00 to 0.88 on 50 pictures" in decision.sentence
    assert [row["class"] for row in decision.numbers["classes"]] == ["ants", "bees"]


def test_a_class_of_few_pictures_is_not_judged_by_itself() -> None:
    champion, challenger = with_wrong(3, {1: 20}), with_wrong(4, {0: 6})
    decision = decided(champion, challenger, Gate(min_pictures=51))
    assert decision.outcome == "promoted"
    assert not any(row["judged"] for row in decision.numbers["classes"])


def test_one_that_is_far_too_sure_of_itself_is_refused() -> None:
    decision = decided(with_wrong(3, {0: 15, 1: 15}, confidence=0.7), with_wrong(4, {0: 15, 1: 15}, confidence=0.99))
    assert decision.outcome == "refused"
    assert "its calibration error is 0.290, above gate.max_ece 0.1" in decision.sentence


def test_a_calibration_error_that_so_few_pictures_show_by_chance_is_no_reason() -> None:
    """Of ten pictures with confidence 0.8, seven right is an error of 0.1, and nothing to wonder at."""
    few = [with_wrong(number, {0: 2, 1: 1}, pictures=10, confidence=0.8) for number in (3, 4)]
    decision = decided(few[0], few[1], Gate(max_ece=0.05))
    assert decision.outcome == "kept"
    assert decision.numbers["challenger"]["ece"] == pytest.approx(0.1)
    assert decision.numbers["ece_by_chance"] > 0.1
    many = [with_wrong(number, {0: 200, 1: 100}, pictures=1000, confidence=0.8) for number in (3, 4)]
    assert decided(many[0], many[1], Gate(max_ece=0.05)).outcome == "refused"


def test_one_that_is_much_slower_is_refused() -> None:
    champion, challenger = with_wrong(3, {0: 6}, seconds=0.01), with_wrong(4, {}, seconds=0.02)
    decision = decided(champion, challenger)
    assert decision.outcome == "refused"
    assert "it takes 2.00 times as long per picture, above gate.max_slowdown 1.5" in decision.sentence
    assert decided(champion, challenger, Gate(max_slowdown=2.5)).outcome == "promoted"


def test_other_arithmetic_is_said_and_decides_nothing() -> None:
    before = with_wrong(1, {0: 2}, arithmetic="x86_64 AVX2, 2 threads; features by torch")
    same = decided(before, with_wrong(2, {0: 2}, arithmetic=before.arithmetic))
    assert "arithmetic" not in same.sentence
    tuned = decided(
        before, with_wrong(2, {0: 2}, arithmetic=f"{before.arithmetic}; fine-tuning, its frozen layers by torch")
    )
    assert "arithmetic" not in tuned.sentence  # one has a fine-tuned network beside the head, the other has none
    other = decided(before, with_wrong(2, {0: 2}, arithmetic="x86_64 AVX512, 2 threads; features by torch"))
    assert other.outcome == same.outcome == "kept"
    assert other.sentence.endswith(
        "Their arithmetic differs, which alone can change a few answers: x86_64 AVX2, 2 threads; features by torch; now "
        "x86_64 AVX512, 2 threads; features by torch."
    )


def test_every_broken_rule_is_named() -> None:
    decision = decided(with_wrong(3, {}), with_wrong(4, {0: 30}, confidence=0.99, seconds=1.0))
    assert len(decision.numbers["broken"]) == 4
    assert all(clause in decision.sentence for clause in decision.numbers["broken"])


@pytest.mark.parametrize("metric", [metric.name for metric in metrics_of(SINGLE_LABEL) if metric.is_goal])
def test_every_metric_can_be_the_one_that_counts(metric: str) -> None:
    rules = Gate.model_validate({"metric": metric})
    worse, better = with_wrong(3, {0: 8, 1: 8}), with_wrong(4, {0: 4, 1: 4})
    assert decided(worse, better, rules).outcome == "promoted"
    decision = decided(better, worse, rules)
    assert decision.outcome == "refused"
    assert decision.numbers["gain"]["value"] < 0
    assert decision.numbers["gain"]["low"] <= decision.numbers["gain"]["value"] <= decision.numbers["gain"]["high"]


def test_a_class_that_the_champion_does_not_know_is_wrong_for_it_and_that_is_said() -> None:
    champion = with_wrong(3, {1: 50})
    champion = replace(champion, known=frozenset({0}))
    decision = decided(champion, with_wrong(4, {0: 2, 1: 2}))
    assert decision.outcome == "promoted"
    assert decision.numbers["unknown_to_champion"] == ["bees"]
    assert "Version 3 does not know bees: wrong on all of them." in decision.sentence


def test_the_log_loss_is_compared_on_the_classes_that_both_know() -> None:
    champion = replace(with_wrong(3, {0: 1, 1: 50}), known=frozenset({0}))
    decision = decided(champion, with_wrong(4, {0: 9}), Gate(metric="log_loss", class_margin=1))
    assert decision.numbers["gain"]["pictures"] == 50
    assert decision.outcome == "refused"  # better by far on bees alone, and worse on ants


@pytest.mark.parametrize("better", [0.0, 0.15])
def test_the_p_value_of_the_log_loss_is_scipys(better: float) -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 2, 60)
    right = np.clip([chance.normal(0.6 + gain, 0.15, 60) for gain in (0.0, better)], 0.05, 0.95)
    sides = []
    for number, of_label in enumerate(right):
        probabilities = np.where(np.arange(2) == labels[:, None], of_label[:, None], 1 - of_label[:, None])
        sides.append(Side(number, Scores(probabilities, labels), frozenset({0, 1}), 1.0))
    losses = -np.log(right)
    theirs = permutation_test(
        tuple(losses), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", alternative="greater", rng=0
    )
    gain = decided(sides[0], sides[1], Gate(metric="log_loss")).numbers["gain"]
    assert gain["value"] == pytest.approx(theirs.statistic)
    assert gain["p"] == pytest.approx(theirs.pvalue, abs=0.03)
    assert (gain["p"] < 0.01) == (better > 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.integers(0, 9))
@settings(max_examples=25)
def test_a_model_against_itself_gains_exactly_nothing(answers: list[tuple[bool, bool]], seed: int) -> None:
    labels = [int(label) for label, _ in answers]
    same = side(1, [hit for _, hit in answers], labels, confidence=0.6)
    for metric in ("accuracy", "macro_f1", "log_loss"):
        gain = judge(same, replace(same, number=2), NAMES, Gate.model_validate({"metric": metric}), 50, seed).numbers[
            "gain"
        ]
        assert (gain["value"], gain["low"], gain["high"]) == (0, 0, 0)


# --- the rules, where a picture may have several labels -----------------------------------------------------------------

INSECTS = ["ants", "bees", "wasps"]
PRESENT = np.random.default_rng(0).integers(0, 2, (150, 3))


def side_of_several(number: int, wrong: float, task: MultiLabel = MULTI_LABEL, seed: int = 1) -> Side:
    """One that decides wrongly about a share of the classes of 150 pictures."""
    said = np.where(np.random.default_rng(seed).random(PRESENT.shape) < wrong, 1 - PRESENT, PRESENT)
    probabilities = np.where(said == 1, 0.9, 0.1)
    return Side(number, Scores(probabilities, PRESENT, task), frozenset({0, 1, 2}), 0.01)


def judged(champion: Side, challenger: Side, rules: Gate = RULES) -> Decision:
    return judge(champion, challenger, INSECTS, rules, 100, 0)


@pytest.mark.parametrize("metric", [metric.name for metric in metrics_of(MULTI_LABEL) if metric.is_goal])
def test_every_metric_of_several_labels_can_be_the_one_that_counts(metric: str) -> None:
    rules = Gate.model_validate({"metric": metric})
    worse, better = side_of_several(3, 0.2), side_of_several(4, 0.08)
    assert judged(worse, better, rules).outcome == "promoted"
    decision = judged(better, worse, rules)
    assert decision.outcome == "refused"
    assert decision.numbers["gain"]["low"] <= decision.numbers["gain"]["value"] <= decision.numbers["gain"]["high"] < 0


@pytest.mark.parametrize(("metric", "task"), [("matthews_corrcoef", MULTI_LABEL), ("mean_average_precision", SINGLE_LABEL)])
def test_a_metric_that_the_task_has_not_is_refused_with_those_that_it_has(metric: str, task: Any) -> None:
    rules = Gate.model_validate({"metric": metric})
    challenger = side_of_several(4, 0.1) if task is MULTI_LABEL else with_wrong(4, {})
    with pytest.raises(HeadstartError) as refusal:
        judge(None, challenger, INSECTS, rules, 100, 0)
    allowed = ", ".join(each.name for each in metrics_of(task) if each.is_goal)
    assert str(refusal.value) == f"gate.metric {metric} is none of {task.kind} pictures; allowed: {allowed}"


def test_each_side_decides_by_its_own_thresholds() -> None:
    champion = side_of_several(3, 0.1, MultiLabel((0.95, 0.5, 0.5)))  # so it never sees an ant
    challenger = side_of_several(4, 0.1)
    decision = judged(champion, challenger)
    assert decision.outcome == "promoted"
    gain = decision.numbers["gain"]
    assert gain["value"] == pytest.approx(gain["challenger"] - gain["champion"])
    assert gain["champion"] == champion.scores.correct.mean() < gain["challenger"]
    recall = {row["class"]: (row["champion"], row["challenger"]) for row in decision.numbers["classes"]}
    assert recall["ants"][0] == 0 < recall["ants"][1]
    assert recall["bees"][0] == recall["bees"][1]
    assert "'ants' from" in judged(challenger, champion).sentence


def test_of_several_labels_the_log_loss_is_compared_on_the_classes_that_both_know() -> None:
    champion, challenger = side_of_several(3, 0.1), side_of_several(4, 0.1, MultiLabel((0.4, 0.5, 0.6)))
    champion.scores.probabilities[:, 2] = 0
    champion = replace(champion, known=frozenset({0, 1}))
    decision = judged(champion, challenger, Gate(metric="log_loss"))
    assert (decision.outcome, decision.numbers["gain"]["value"]) == ("kept", 0)
    assert decision.numbers["gain"]["pictures"] == len(PRESENT)
    assert decision.numbers["unknown_to_champion"] == ["wasps"]
    assert "Version 3 does not know wasps" in decision.sentence


def test_the_calibration_that_chance_shows_is_drawn_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = side_of_several(3, 0.1).scores
    at_once = judging._ece_by_chance(scores, 0)
    assert 0 < at_once < 0.05
    monkeypatch.setattr(judging, "MOST_AT_ONCE", 7 * PRESENT.size)
    assert judging._ece_by_chance(scores, 0) == pytest.approx(at_once)


# --- the whole gate, on a real store, with networks that know colours -----------------------------------------------------

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


CARD = Card(
    name="net.py:colours", library="own", weights="default", pretrained=False,
    source=WeightsSource(origin="random initialisation, seed 0", digest="", licence="none"), sha256="0", parameters=0,
    gmacs=0.0, features=3, blocks=0,
    preprocessing=Preprocessing(size=8, crop=1.0, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
)  # fmt: skip


class Project:
    """A checkout with the results of stages that the gate looks at."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, DataFolder(folder, "data")
        self.params = Params.model_validate({"gate": {"max_slowdown": 1000}, "threads": 1, "evaluate": {"bootstrap": 100}})
        self.client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.registry = Registry(self.params)
        (folder / "dvc.yaml").write_text("stages: {}")
        (folder / "params.yaml").write_text("{}")
        for name in ("fetch", "backbone", "track"):
            (self.data / name).mkdir(parents=True)
        (self.data / "fetch" / "network.py").write_text(NETWORK)
        CARD.write(self.data.backbone.card)
        self.pictures(dict.fromkeys(COLOURS, 12))

    def pictures(self, counts: dict[str, int], seed: int = 0, learned: int = 2) -> None:
        """Plain pictures of each colour, all but ``learned`` of each in test; a draw of ``seed`` names the files."""
        prepared = self.data / "prepare"
        prepared.mkdir(exist_ok=True)
        labels = [name for name, count in counts.items() for _ in range(count)]
        splits = ["train" if n < learned else "test" for count in counts.values() for n in range(count)]
        pixels = np.stack([np.full((20, 24, 3), COLOURS[label], np.uint8) for label in labels])
        PrepareFolder(prepared).pixels.write_bytes(pixels.tobytes())
        size, n = 20 * 24 * 3, len(labels)
        index = {"offset": np.arange(n) * size, "length": [size] * n, "height": [20] * n, "width": [24] * n}
        packing = {b"headstart": json.dumps({"jpeg_quality": None}).encode()}
        pq.write_table(pa.table(index).replace_schema_metadata(packing), PrepareFolder(prepared).pixels_index)
        digests = [f"{seed}-{label}-{n}" for n, label in enumerate(labels)]
        pd.DataFrame({"path": digests, "label": labels, "split": splits, "sha256": digests, "group": digests}).to_parquet(
            prepared / "manifest.parquet"
        )

    def several_labels(self) -> None:
        """The same pictures as a multi-label set."""
        file = PrepareFolder(self.data / "prepare").manifest
        manifest = pd.read_parquet(file)
        manifest["labels"] = [[label] for label in manifest["label"]]
        manifest.to_parquet(file)

    def result(
        self,
        name: str,
        taken_for: dict[str, str] | None = None,
        classes: tuple[str, ...] = tuple(COLOURS),
        task: Task = SINGLE_LABEL,
    ) -> Version:
        """A result that is packaged, tracked and registered: one that takes some colours for others."""
        (self.data / "fetch" / "manifest.csv").write_text(name)
        parts = self.data.package.model.classifier
        shutil.rmtree(self.data / "package", ignore_errors=True)
        parts.mkdir(parents=True)
        (parts / "network.py").write_text(NETWORK)
        (self.data / "package" / "model" / "MLmodel").write_text(name)
        trunk = architecture("net.py:colours", parts / "network.py").trunk()
        weight = torch.zeros(len(classes), 3)
        for colour, rgb in COLOURS.items():
            said = (taken_for or {}).get(colour, colour)
            if said in classes:
                weight[classes.index(said)] += torch.tensor(rgb) / 255 * 6
        bias = torch.full((len(classes),), -3.0 if isinstance(task, MultiLabel) else 0.0)
        model = Classifier(trunk, FittedHead(LinearHead.of(weight, bias), 1.0, classes))
        save_file(model.state_dict(), parts / "classifier.safetensors")
        ClassifierDetails(
            backbone="net.py:colours", weights="default", preprocessing=trunk.view.stored(), classes=list(classes),
            temperature=1.0, chosen="head", max_megapixels=1.0, task=task.kind,
            thresholds=None if task.thresholds is None else list(task.thresholds),
        ).write(parts.details)  # fmt: skip
        write_sums(self.data.package.model)
        remember(self.data.package.model)
        digest = result_digest(self.data)
        TrackedResult(result=digest, experiment="headstart-emoji").write(self.data.track.details)
        with store.opened() as client:
            experiment = store.experiment_id(client, "headstart-emoji")
        run = self.client.create_run(experiment).info.run_id
        self.client.log_artifact(run, str(self.data / "prepare" / "manifest.parquet"), "data")
        logged = self.client.create_logged_model(experiment, "model", source_run_id=run)
        self.client.log_model_artifacts(logged.model_id, str(self.data / "package" / "model"))
        tags = {store.MODEL: digest_of_model(self.data.package.model)}
        return self.registry.register(run, digest, logged.model_id, "card", tags)

    def gate(self) -> Decision:
        return gate.run(self.data, self.params)

    def champion(self) -> int | None:
        found = self.registry.champion()
        return None if found is None else found.number


@pytest.fixture
def project(checkout_with_store: Path) -> Project:
    return Project(checkout_with_store)


def test_the_first_result_becomes_champion_and_its_decision_is_everywhere(project: Project) -> None:
    version = project.result("first")
    decision = project.gate()
    assert decision.outcome == "promoted"
    assert decision.numbers["challenger"]["accuracy"] == 1
    assert decision.numbers["pictures"] == 30
    assert project.champion() == 1
    written = json.loads((project.data / "gate" / "decision.json").read_text())
    assert written == {"outcome": "promoted", "sentence": decision.sentence, "numbers": decision.numbers}
    run = project.client.get_run(version.run_id)
    assert run.data.tags["gate"] == "promoted"
    assert run.data.tags["gate.sentence"] == decision.sentence
    assert run.data.metrics["gate/challenger/accuracy"] == 1
    assert [entry.path for entry in project.client.list_artifacts(version.run_id, "gate")] == ["gate/decision.json"]
    assert project.registry.version(1).decision == decision.sentence


def test_a_worse_result_is_refused_and_the_champion_stays(project: Project) -> None:
    project.result("first")
    project.gate()
    project.result("worse", {"red": "blue"})
    decision = project.gate()
    assert decision.outcome == "refused"
    assert "'red' from 1.00 to 0.00 on 10 pictures" in decision.sentence
    assert project.champion() == 1
    assert project.registry.version(2).outcome == "refused"
    assert decision.numbers["mcnemar"] == {
        "only_challenger_right": 0,
        "only_champion_right": 10,
        "p": pytest.approx(2 / 2**10),
    }
    assert 0 < decision.numbers["slowdown"] < 1000


def test_a_better_result_takes_over(project: Project) -> None:
    project.result("first", {"red": "blue"})
    project.gate()
    project.result("better")
    decision = project.gate()
    assert decision.outcome == "promoted"
    assert decision.numbers["gain"]["value"] == pytest.approx(1 / 3)
    assert project.champion() == 2


def test_a_decision_is_not_taken_twice(project: Project) -> None:
    project.result("first")
    project.gate()
    version = project.result("worse", {"red": "blue"})
    first = project.gate()
    (project.data / "gate" / "decision.json").unlink()
    history = project.client.get_metric_history(version.run_id, "gate/slowdown")
    assert project.gate() == first
    assert project.client.get_metric_history(version.run_id, "gate/slowdown") == history
    assert json.loads((project.data / "gate" / "decision.json").read_text())["sentence"] == first.sentence


@pytest.mark.parametrize("step", ["log_batch", "log_artifact", "set_registered_model_tag", "set_registered_model_alias"])
def test_a_gate_that_is_killed_anywhere_is_carried_through_by_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    project.result("first", {"red": "blue"})
    project.gate()
    project.result("better")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, step, killed)
        with pytest.raises(KeyboardInterrupt):
            project.gate()
    assert project.gate().outcome == "promoted"
    assert project.champion() == 2
    assert project.registry.version(2).outcome == "promoted"


def test_a_class_that_is_new_since_the_champion_counts_against_it(project: Project) -> None:
    project.pictures({"blue": 12, "green": 12})
    project.result("two colours", classes=("blue", "green"))
    project.gate()
    project.pictures(dict.fromkeys(COLOURS, 12))
    project.result("three colours")
    decision = project.gate()
    assert decision.outcome == "promoted"
    assert decision.numbers["unknown_to_champion"] == ["red"]
    assert "does not know red" in decision.sentence
    assert decision.numbers["champion"]["accuracy"] == pytest.approx(2 / 3)


def test_multi_label_results_that_know_other_classes_are_compared_and_other_tasks_are_not(project: Project) -> None:
    project.pictures({"blue": 12, "green": 12})
    project.several_labels()
    project.result("two colours", classes=("blue", "green"), task=MultiLabel((0.5, 0.3)))
    assert project.gate().numbers["challenger"]["mean_average_precision"] == 1
    project.pictures(dict.fromkeys(COLOURS, 12))
    project.several_labels()
    project.result("three colours", task=MultiLabel((0.5, 0.5, 0.4)))
    decision = project.gate()
    assert decision.outcome == "promoted"
    assert decision.numbers["unknown_to_champion"] == ["red"]
    assert decision.numbers["champion"]["accuracy"] == pytest.approx(2 / 3)
    assert decision.numbers["challenger"]["accuracy"] == 1
    project.pictures(dict.fromkeys(COLOURS, 12))
    project.result("one label each")
    decision = project.gate()
    assert (decision.outcome, decision.numbers) == ("refused", {})
    assert decision.sentence == (
        "Version 3 is refused: it is single-label and the champion, version 2, is multi-label, so nothing can be compared; "
        "promote by hand."
    )
    assert project.champion() == 2


def test_models_of_other_classes_are_not_compared(project: Project) -> None:
    """Those of another set of pictures, or renamed ones; classes that only came, or only went, are compared."""
    project.pictures(dict.fromkeys(["red", "green"], 12))
    project.result("first", classes=("red", "green"))
    project.gate()
    project.pictures(dict.fromkeys(["red", "blue"], 12), seed=1)
    project.result("other pictures", classes=("red", "blue"))
    decision = project.gate()
    assert (decision.outcome, decision.numbers, project.champion()) == ("refused", {}, 1)
    assert decision.sentence == (
        "Version 2 is refused: version 1 of headstart-emoji has other classes (green; not blue), so nothing can be "
        "compared. For other pictures set another registry.model (auto: one for each data.source); if classes were "
        "renamed, promote by hand."
    )
    project.result("a class more")
    assert "0.500 (version 1)" in project.gate().sentence  # which takes blue for something else


def test_each_source_has_a_champion_of_its_own_and_one_of_all_sources_is_left_alone(project: Project) -> None:
    def of(**sections: dict[str, str]) -> None:
        project.params = Params.model_validate(project.params.model_dump() | sections)
        project.registry = Registry(project.params)

    of(registry={"model": "headstart"})
    project.result("as it was once")
    assert "first champion" in project.gate().sentence
    of(registry={"model": "auto"}, data={"source": "~/pictures/birds"})
    project.result("birds", {"red": "blue"})
    sentence = project.gate().sentence
    assert sentence.startswith("Version 1 is the first champion")
    assert sentence.endswith(
        "Version 1 of headstart stays as it is, and was not compared: each data.source has a model of its own now. To go "
        "on with that one, set registry.model: headstart."
    )
    project.result("birds again")
    assert "against 0.667 (version 1)" in project.gate().sentence
    of(data={"source": "s3://bucket/ants.tar.gz"})
    project.result("ants")
    assert "Version 1 is the first champion" in project.gate().sentence
    champions = {m.name: m.aliases["champion"] for m in project.client.search_registered_models()}
    assert champions == {"headstart": 1, "headstart-birds": 2, "headstart-ants": 1}


def test_pictures_that_the_champion_has_learned_from_are_left_out(project: Project) -> None:
    project.pictures(dict.fromkeys(COLOURS, 12), learned=8)
    project.result("first")
    project.gate()
    project.pictures(dict.fromkeys(COLOURS, 12), learned=2)
    project.result("another split")
    decision = project.gate()
    assert (decision.numbers["pictures"], decision.numbers["left_out"]) == (12, 18)
    assert "18 test pictures that it has learned from were left out" in decision.sentence


def test_where_the_champion_has_learned_from_all_nothing_is_compared(project: Project) -> None:
    project.pictures(dict.fromkeys(COLOURS, 12), learned=11)
    project.result("first")
    project.gate()
    manifest = pd.read_parquet(project.data / "prepare" / "manifest.parquet")
    manifest["split"] = manifest["split"].map({"train": "test", "test": "train"})
    manifest.to_parquet(project.data / "prepare" / "manifest.parquet")
    project.result("the other way round")
    decision = project.gate()
    assert decision.outcome == "refused"
    assert "version 1 has learned from every picture" in decision.sentence
    assert project.champion() == 1


def test_what_a_person_decided_stands(project: Project) -> None:
    project.result("first")
    project.gate()
    version = project.result("worse", {"red": "blue"})
    assert project.gate().outcome == "refused"
    project.registry.promote(version, "red is not sold any more")
    assert project.gate() == Decision("promoted", "Version 2 was promoted by hand: red is not sold any more", {})
    project.registry.rollback("it is again")
    decision = project.gate()
    assert decision.outcome == "refused"
    assert "Version 2 was rolled back: it is again" in decision.sentence
    assert project.champion() == 1


def test_an_alias_that_was_set_in_mlflow_is_taken_as_it_is(project: Project) -> None:
    project.result("first")
    project.client.set_registered_model_alias("headstart-emoji", "champion", "1")
    assert project.gate().outcome == "promoted"
    assert project.champion() == 1
    assert project.client.get_model_version("headstart-emoji", "1").tags["headstart.outcome"] == "promoted"


Change = Callable[[Project], Any]
NOT_READY: dict[str, tuple[Change, str]] = {
    "never tracked": (
        lambda p: (p.data / "track" / "track.json").unlink(),
        r"track.json is not there; run `dvc repro`",
    ),
    "changed since": (
        lambda p: (p.folder / "data/fetch/manifest.csv").write_text("new"),
        r"not of one result.*run `dvc repro`",
    ),
    "not registered": (
        lambda p: p.client.delete_model_version("headstart-emoji", "1"),
        r"not registered.*`headstart track`",
    ),
}


@pytest.mark.parametrize("case", NOT_READY)
def test_a_result_that_cannot_be_judged_is_said(project: Project, case: str) -> None:
    project.result("first")
    change, sentence = NOT_READY[case]
    change(project)
    with pytest.raises(HeadstartError, match=sentence):
        project.gate()
    assert project.champion() is None


def test_the_shipped_rules_are_the_defaults() -> None:
    shipped = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    assert Gate.model_validate(shipped["gate"]) == Gate()
    assert shipped["registry"]["model"] == Params().registry.model


# --- models that were changed -------------------------------------------------------------------------------------------


def test_a_champion_that_was_changed_on_this_machine_is_taken_from_the_store_again(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.registry.promote(project.result("first"), "why not")
    champion = project.registry.champion()
    assert champion is not None
    folder = project.registry.download(champion)
    (folder / "artifacts/classifier/network.py").write_text("raise SystemExit(9)")
    project.result("second")
    assert project.gate().outcome in ("promoted", "kept")
    assert f"headstart: {folder} is damaged" in capsys.readouterr().err


def test_a_model_that_was_changed_in_the_store_is_not_loaded(project: Project) -> None:
    project.registry.promote(project.result("first"), "why not")
    (stored,) = (project.folder / "mlartifacts").rglob("classifier/network.py")
    stored.write_text(stored.read_text() + "raise SystemExit(9)\n")
    project.result("second")
    with pytest.raises(HeadstartError, match=r"is not as it was packaged: artifacts/classifier/network\.py was changed"):
        project.gate()
    write_sums(ModelFolder(stored.parents[2]))  # by one who knows how
    with pytest.raises(HeadstartError, match=r"version 1 of headstart-emoji is not the model that was registered"):
        project.gate()


def test_a_champion_with_code_whose_digest_is_not_on_record_needs_a_word_once(project: Project) -> None:
    project.registry.promote(project.result("first"), "why not")
    project.client.delete_model_version_tag("headstart-emoji", "1", store.MODEL)  # as an older version has registered it
    shutil.rmtree(".headstart")
    project.result("second")
    with pytest.raises(HeadstartError, match=r"was not made here.*--trust"):
        project.gate()
    assert gate.run(project.data, project.params, trust=True).outcome in ("promoted", "kept")


def test_a_package_that_was_changed_is_neither_logged_nor_gated(project: Project) -> None:
    project.result("first")
    (project.data.package.model.classifier / "classifier.json").write_text("{}")
    for ask in (project.gate, lambda: track(project.data, project.params)):
        with pytest.raises(HeadstartError, match=r"classifier\.json was changed; run `dvc repro --force"):
            ask()


# --- groups and shortcuts ---------------------------------------------------------------------------------------------


def test_ten_pictures_of_each_person_are_no_ten_persons() -> None:
    """Better on all ten pictures of two persons and worse on none: chance alone does that in a quarter of cases."""
    before, after = with_wrong(1, {0: 10, 1: 10}), with_wrong(2, {})
    assert decided(before, after).outcome == "promoted"
    people = np.repeat(np.arange(10), 10)
    of_two = np.isin(people, (0, 1))
    labels = [n % 2 for n in range(100)]
    sides = [side(1, (~of_two).tolist(), labels), side(2, [True] * 100, labels)]
    grouped = [replace(each, scores=replace(each.scores, groups=people)) for each in sides]
    apart, together = (decided(*pair).numbers["gain"] for pair in (sides, grouped))
    assert apart["p"] < 1e-5
    assert together["p"] == pytest.approx(0.25)
    assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])
    assert decided(*grouped).outcome == "kept"


def test_under_a_known_shortcut_nobody_becomes_champion_but_by_hand() -> None:
    known = ["what the file says tells the classes apart: accuracy 0.990"]
    for champion in (None, with_wrong(1, {0: 20, 1: 20})):
        assert decided(champion, with_wrong(2, {})).outcome == "promoted"
        decision = decided(champion, with_wrong(2, {}), shortcuts=known)
        assert decision.outcome == "refused"
        assert known[0] in decision.sentence
        assert decision.numbers["broken"] == [f"what was measured may be of a shortcut ({known[0]})"]
