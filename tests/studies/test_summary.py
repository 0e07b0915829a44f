"""The ten lines and the page: from whatever was run, true to it, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.labels import Counts, LabelIssues
from headstart.base.artifacts.metrics import Gain, Measured, Metrics
from headstart.base.artifacts.rank import RankedBackbone, Ranking
from headstart.base.artifacts.shortcuts import Shortcut
from headstart.base.artifacts.tune import Tuning
from headstart.base.artifacts.why import TransferGain
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.evaluation import pages
from headstart.studies.summary import Story
from headstart.studies.transfer_gain import Set, conclude
from tests.studies.test_transfer_gain import HERE, curves

RANK = Ranking(
    choice="resnet18",
    reason="resnet18 has the lowest log-loss.",
    table=[
        RankedBackbone(
            backbone="resnet18", probe_accuracy=0.9, low=0.8, high=0.95, log_loss=0.3, logme=0.1, knn_accuracy=0.8,
            imagenet_top1=69.8, gmacs=1.8, megabytes=44.0, images_per_s=50.0, finetune_minutes=2.0, pictures=500,
        )
    ],
)  # fmt: skip
M: Measured = {"accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.95, "n": 300}
RESULT = Metrics(chosen="head", val={}, test={"chosen": M}, gain={"test": Gain(accuracy=-0.01, low=-0.02, high=0.0)})


def outcome(*accuracies: list[float], pictures: Set = HERE) -> TransferGain:
    return conclude("resnet50", curves(*accuracies), "half", pictures)


def labels(label_issues: int) -> LabelIssues:
    counts = dict.fromkeys(Counts.model_fields, 0) | {"label_issues": label_issues}
    return LabelIssues(counts=Counts(**counts), left_out=[], suspects=[], outliers=[], duplicates=[])


AUDIT = AuditReport(kept=500, dropped=[], warnings=[], leaks=0, converted={}, classes={})
TUNED = Tuning(best={}, sentence="", command=None, gain=None, present={}, choices={}, by_logarithm=[], trials=[])


@pytest.fixture
def story() -> Story:
    """Frozen is as good as it gets, and twice the pictures would help; no other branch was run."""
    why = outcome([0.6, 0.7, 0.78, 0.84], [0.6, 0.7, 0.78, 0.84], [0.5] * 4)
    return Story(Params(), why, AUDIT, None, None, None, None)


def test_what_was_not_run_is_among_the_next_steps(story: Story) -> None:
    steps = " ".join(story.next_steps())
    for part in ("studies/dvc.yaml:labels", "studies/dvc.yaml:rank", "finetune.unfreeze: none", "collect more pictures"):
        assert part in steps
    assert "studies/dvc.yaml:tune" not in steps, "who does not fine-tune has nothing to tune"


def test_where_all_is_known_and_done_what_is_left_is_to_use_it() -> None:
    why = outcome([0.9] * 4, [0.9] * 4, [0.5] * 4)
    params = Params.model_validate({"backbone": "resnet18", "finetune": {"unfreeze": "none"}})
    story = Story(params, why, None, labels(0), RANK, TUNED, RESULT)
    assert story.next_steps() == ["use it: `headstart predict`"]


def test_a_known_shortcut_comes_first_and_stands_beside_the_result(story: Story) -> None:
    score = Interval(value=0.99, low=0.97, high=1.0)
    known = Shortcut(
        sees="file", accuracy=score, guessing=0.5, p=0.001, kind="shortcut", clue="", sentence="the files tell"
    )
    looks = known.model_copy(update={"kind": "look"})
    assert "shortcut" not in replace(story, audit=AUDIT.model_copy(update={"shortcuts": [looks]})).next_steps()[0]
    audit = AUDIT.model_copy(update={"shortcuts": [looks, known]})
    found = replace(story, audit=audit, result=RESULT.model_copy(update={"shortcuts": audit.known_shortcuts()}))
    assert found.next_steps()[0].startswith("see to the shortcut")
    assert "Beware of a shortcut: the files tell." in found.outcome()


def test_another_network_and_label_issues_are_named(story: Story) -> None:
    found = replace(story, rank=RANK, labels=labels(7))
    steps = " ".join(found.next_steps())
    assert "dvc exp run -S backbone=resnet18" in steps
    assert "data/labels/labels.html" in steps
    assert "about 7 labels look wrong" in found.pictures()


def test_the_counts_that_are_told_are_those_that_labels_writes(story: Story) -> None:
    import torch

    from headstart.studies.label_issues import examine

    names = ["a", "b"] * 10
    paths = [f"{n}.png" for n in range(20)]
    pictures = pd.DataFrame({"path": paths, "label": names, "split": "train", "group": paths})
    found = examine(pictures, torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    assert f"about {found.counts.label_issues} labels look wrong" in replace(story, labels=found).pictures()
    assert replace(story, labels=found).next_steps()


def test_it_is_told_in_ten_lines(story: Story) -> None:
    full = replace(story, rank=RANK, result=RESULT, labels=labels(7))
    assert len(full.lines()) == 10
    assert set(full.why.sentences) <= set(full.lines())
    assert RANK.reason in full.lines()
    assert any("test accuracy 0.900 (0.850–0.950) on 300 pictures" in line for line in full.lines())


def test_the_page_needs_no_network_and_has_its_plots(story: Story, tmp_path: Path) -> None:
    for found, plots in ((story, 3), (replace(story, rank=RANK, result=RESULT), 4)):
        found.write_page(tmp_path / "story.html", DataFolder(tmp_path))
        text = (tmp_path / "story.html").read_text(encoding="utf-8")
        assert text.count("<svg") == plots
        assert "://" not in text
        assert pages.prose(story.why.sentences[0]) in text


def test_how_much_to_train_is_written_into_params_and_the_comments_stay(story: Story, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("seed: 1  # mine\nfinetune:\n  unfreeze: half  # how much\n")
    assert "finetune.unfreeze: none" in story.apply(file)
    assert file.read_text() == "seed: 1  # mine\nfinetune:\n  unfreeze: none  # how much\n"
    assert yaml.safe_load(file.read_text())["finetune"]["unfreeze"] == "none"
    assert "already" in story.apply(file)


def test_without_why_there_is_no_story(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"run `dvc repro studies/dvc\.yaml:why`"):
        Story.of(DataFolder(tmp_path), Params())
    outcome([0.9] * 4, [0.9] * 4, [0.5] * 4).write(DataFolder(tmp_path).why.details)
    assert Story.of(DataFolder(tmp_path), Params()).rank is None
