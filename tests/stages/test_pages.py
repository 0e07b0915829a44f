"""Every page that stages and studies write, in a real browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.drift import ClassCount, Drift, NewInKind, NewPictures, Separability, Strangeness
from headstart.base.artifacts.groups import GroupSuggestion, GroupSuggestions
from headstart.base.artifacts.json_file import Interval
from headstart.base.artifacts.metrics import Metrics
from headstart.base.artifacts.rank import RankedBackbone, Ranking
from headstart.base.artifacts.shortcuts import BlindScore, Shortcut, Shortcuts
from headstart.base.params import Params
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.evaluation import pages
from headstart.monitoring import drift_report
from headstart.studies import groups_report, label_issues_report, ranking_report, shortcuts_report, tuning_report
from headstart.studies.label_issues import examine, training_and_validation
from headstart.studies.summary import Story
from tests.pages_in_browser import look_through
from tests.stages.conftest import Clone
from tests.stages.test_ui import BROWSERS, browser_page
from tests.studies.test_summary import outcome
from tests.studies.test_tuning import found_of, row_of

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SHOWN = {"report": ("1280-light", "1280-dark")}  # in the documentation


def ranking() -> Ranking:
    names = {"resnet18": (0.91, 210.0), "tf_efficientnet_lite0": (0.93, 160.0), "densenet161": (0.94, 21.0)}
    rows = [
        RankedBackbone(
            backbone=name, size=224, frame="centre", probe_accuracy=accuracy, low=accuracy - 0.03, high=accuracy + 0.02,
            log_loss=1 - accuracy, logme=0.5, knn_accuracy=accuracy - 0.1, imagenet_top1=75.0, gmacs=1.8, megabytes=45.0,
            images_per_s=speed, finetune_minutes=3.2, pictures=500,
        )
        for name, (accuracy, speed) in names.items()
    ]  # fmt: skip
    rows.append(RankedBackbone(backbone="vgg16", note="dropped after 120 pictures: its log-loss is higher"))
    reason = "Too close to call between resnet18 and densenet161 on 500 pictures. Take it with `headstart rank --apply`."
    return Ranking(choice="resnet18", reason=reason, table=rows)


def drift(paths: list[str]) -> Drift:
    test = Separability(auc=1.0, low=1.0, high=1.0, p=0.001, new=24, old=100, differ=True)
    strange = [NewInKind(path=path, label="Flags", distance=3.2) for path in paths]
    new = NewPictures(
        pictures=24, old=100, test=test, test_within_classes=None, test_of_old_halves=as_a_control(test),
        classes=[ClassCount(label="Flags", new=24, old=0)], champion=None,
        strange=Strangeness(count=4, share=0.17, low=0.05, high=0.37, p=0.001, differ=True, pictures=strange),
    )  # fmt: skip
    return Drift(real=True, sentence=drift_report.sentence(new, None), new=new)


def as_a_control(test: Separability) -> Separability:
    return test.model_copy(update={"auc": 0.52, "low": 0.41, "high": 0.63, "p": 0.4, "differ": False})


def write_all(data: DataFolder) -> None:
    """All pages but the report, which is there, by what writes them, from small results and the pictures of ``data``."""
    manifest, pixels = read_manifest(data.prepare), Pixels(data.prepare)
    learned = manifest[manifest["split"] != "test"]
    ranking_report.write_page(ranking(), data.rank.page)
    tuned = found_of(row_of(3, 0.6, lr=0.00031), row_of(0, 0.7), row_of(1, 0.9, "pruned"), row_of(2, None, "failed"))
    tuning_report.write_page(tuned, data.tune.page)
    pictures, features = training_and_validation(manifest, data.features, torch.device("cpu"))
    issues = examine(pictures, features)
    label_issues_report.write(issues, pixels, pictures, 6, data.labels)
    optimism = Interval(value=0.05, low=0.02, high=0.08)
    suggestion = GroupSuggestion(
        by="the first word of the file name", setting="{name}", groups=2, pictures=8, largest=4, accuracy_apart=0.9,
        accuracy_together=0.85, optimism=optimism,
    )  # fmt: skip
    words = groups_report.sentence([suggestion], 0, False)
    found = GroupSuggestions(suggestions=[suggestion], best=0, given=False, sentence=words)
    names = [f"group {n // 4}" if n < 8 else "" for n in range(len(learned))]
    groups_report.write(found, names, learned.reset_index(drop=True), pixels, data.groups)
    score = BlindScore(sees="file", accuracy=Interval(value=0.9, low=0.8, high=0.95), guessing=0.5, p=0.001, probe=0.97)
    shortcut = Shortcut(
        **score.model_dump(), kind="shortcut", clue="", sentence="the file tells the classes: 0.900 (0.800–0.950)"
    )
    blind = Shortcuts(
        pictures=80, left_out=[], alarms=0.05, sees={"file": "what the file says"}, found=[shortcut], scores=[score]
    )
    shortcuts_report.write(blind, [{"most like Flags": [0, 1, 2]}], pixels, manifest, data.shortcuts)
    drift_report.write_page(drift(manifest["path"].tolist()[:4]), manifest, pixels, None, data.drift.page)
    why = outcome([0.6, 0.7, 0.78, 0.84], [0.6, 0.7, 0.78, 0.84], [0.5] * 4)
    audit, result = AuditReport.read(data.prepare.audit), Metrics.read(data.evaluate.metrics)
    Story(Params(), why, audit, issues, ranking(), tuned, result).write_page(data.why.page, data)


def test_every_page_can_be_read_on_a_phone_and_a_desk_in_light_and_dark(finished: Clone, tmp_path: Path) -> None:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    data = DataFolder(tmp_path / "data")
    shutil.copytree(finished.folder / "data", data, ignore=shutil.ignore_patterns("package"))
    write_all(data)
    titles = {path.relative_to("data").as_posix(): title for path, title in pages.TITLES.items()}
    with browser_page(tmp_path / "profile") as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(request.url))
        for path, title in titles.items():
            page.goto((data / path).as_uri())
            links = page.get_by_role("navigation").get_by_role("link")
            page.get_by_role("navigation").get_by_text(title, exact=True).wait_for()
            assert links.all_inner_texts() == [other for other in titles.values() if other != title]
            told = page.locator("footer").inner_text()
            assert re.fullmatch(r"headstart; pictures [0-9a-f]{16}; made \d{4}-\d\d-\d\d \d\d:\d\d(, commit \S+)?", told)
            assert "`" not in page.locator("main").inner_text()
            for link in page.locator("a[href]").all():
                target = (data / path).parent / str(link.get_attribute("href"))
                assert target.exists(), f"{path}: {target}"
            look_through(page, f"page-{Path(path).stem}", tmp_path, SHOWN.get(Path(path).stem, ()))
    assert not errors
