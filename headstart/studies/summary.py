"""The answers in the order in which people ask: your pictures, is it worth it, which network, how much of it, the result,
and what to do next. From whatever branches of the pipeline have been run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.labels import LabelIssues
from headstart.base.artifacts.metrics import Metrics
from headstart.base.artifacts.rank import Ranking
from headstart.base.artifacts.tune import Tuning
from headstart.base.artifacts.why import TransferGain
from headstart.base.params import Params
from headstart.base.yaml_file import set_values
from headstart.evaluation.summary import headline
from headstart.studies.ranking_report import try_it

WORTH_COLLECTING = 0.01  # of accuracy, by twice as many pictures


@dataclass(frozen=True)
class Story:
    """What the stages and branches have found; None for a branch that was not run.

    Attributes:
        why: why.json, without which there is nothing to tell.
    """

    params: Params
    why: TransferGain
    audit: AuditReport | None
    labels: LabelIssues | None
    rank: Ranking | None
    tune: Tuning | None
    result: Metrics | None

    @classmethod
    def of(cls, data: DataFolder, params: Params) -> Story:
        """
        Raises:
            HeadstartError: why.json is not there.
        """
        return cls(
            params,
            TransferGain.read(data.why.details),
            AuditReport.read_if_made(data.prepare.audit),
            LabelIssues.read_if_made(data.labels.details),
            Ranking.read_if_made(data.rank.details),
            Tuning.read_if_made(data.tune.details),
            Metrics.read_if_made(data.evaluate.metrics),
        )

    def lines(self) -> list[str]:
        """Ten at most."""
        first, *answers = self.why.sentences
        told = [self.pictures(), first]
        told += [self.rank.reason if self.rank else "Which network: not compared yet."]
        told += answers
        if self.result:
            told.append(self.outcome())
        return [*told, "Next: " + "; ".join(self.next_steps()) + "."]

    def pictures(self) -> str:
        freeze = self.why.freeze
        kept = f"{self.audit.kept} kept, {len(self.audit.dropped)} left out; " if self.audit else ""
        wrong = f"; about {self.labels.counts.label_issues} labels look wrong" if self.labels else ""
        return f"Your pictures: {kept}{freeze.per_class} per class for training and validation{wrong}."

    def outcome(self) -> str:
        assert self.result is not None
        return headline(self.result)

    def next_steps(self) -> list[str]:
        """What follows from the answers, and which questions were not asked."""
        steps = []
        if self.audit and self.audit.known_shortcuts():
            steps.append("see to the shortcut that data/prepare/audit.json warns of (docs/shortcuts.md)")
        if self.labels is None:
            steps.append("`dvc repro studies/dvc.yaml:labels` looks for wrong labels")
        elif self.labels.counts.label_issues:
            steps.append("look at data/labels/labels.html and put wrong labels right")
        if self.rank is None:
            steps.append("`dvc repro studies/dvc.yaml:rank` compares networks")
        elif self.rank.choice is not None and (command := try_it(self.rank.choice, self.params)):
            steps.append(f"`{command}` tries the network that was ranked first")
        if self.why.freeze.measured != self.params.finetune.unfreeze:
            steps.append(f"`headstart why --apply` sets finetune.unfreeze: {self.why.freeze.measured}")
        if self.tune is None and self.why.freeze.measured != "none":
            steps.append("`dvc repro studies/dvc.yaml:tune` tries other settings of fine-tuning")
        more = self.why.more
        if more.accuracy is not None and more.accuracy - self.now() >= WORTH_COLLECTING:
            steps.append("collect more pictures")
        return steps or ["use it: `headstart predict`"]

    def now(self) -> float:
        """Accuracy of the better pre-trained start on all pictures."""
        points = [row for row in self.why.curves if row.start == self.why.pretrained]
        return points[-1].accuracy

    def write_page(self, path: Path, data: DataFolder) -> None:
        """One page that needs no network."""
        from headstart.base.terminal import cells
        from headstart.evaluation import pages
        from headstart.studies import figures, ranking_report

        sheet, why = data.prepare.sheet, self.why
        drawings = {
            "curves": figures.accuracy_over_pictures(why.curves),
            "cuts": figures.accuracy_by_cut(why.freeze.table, why.freeze.measured),
            "ranking": figures.accuracy_over_speed(self.rank.table, self.rank.choice) if self.rank else [],
        }
        pages.write(
            path,
            pages.template("story.html.j2", percent=lambda value: f"{100 * value:.1f}%"),
            story=self,
            why=why,
            drawings=drawings,
            sheet=pages.embedded(sheet.read_bytes()) if sheet.exists() else None,
            headings=[heading for heading, _, _ in ranking_report.COLUMNS],
            rows=[(row, cells(row, ranking_report.COLUMNS)) for row in self.rank.table] if self.rank else [],
        )

    def apply(self, params: Path) -> str:
        """Write how much to train into params.yaml, whose comments stay; what to say about it."""
        told = set_values(params, {"finetune.unfreeze": self.why.freeze.measured})
        return f"{params}: {', '.join(told)}" if told else f"{params} has finetune.unfreeze as measured already"
