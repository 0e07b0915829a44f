"""JSON Schemas of all JSON files that stages write: ``python -m headstart.base.artifacts.schemas FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic.json_schema import GenerateJsonSchema

from headstart.base.artifacts import DATA
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.card import Card
from headstart.base.artifacts.classifier import ClassifierDetails, FamiliarityDetails
from headstart.base.artifacts.drift import Drift
from headstart.base.artifacts.engine import FeaturesDetails
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.artifacts.groups import GroupSuggestions
from headstart.base.artifacts.head import HeadDetails
from headstart.base.artifacts.json_file import JsonFile
from headstart.base.artifacts.labels import LabelIssues
from headstart.base.artifacts.metrics import Metrics, MetricsSummary
from headstart.base.artifacts.rank import Ranking
from headstart.base.artifacts.shortcuts import Shortcuts
from headstart.base.artifacts.track import TrackedResult
from headstart.base.artifacts.tune import Tuning
from headstart.base.artifacts.why import TransferGain
from headstart.base.files import write_json

JSON_FILES: dict[Path, type[JsonFile]] = {
    DATA.prepare.audit: AuditReport,
    DATA.backbone.card: Card,
    DATA.features.details: FeaturesDetails,
    DATA.head.details: HeadDetails,
    DATA.finetune.details: FinetuneDetails,
    DATA.evaluate.metrics: Metrics,
    DATA.evaluate.summary: MetricsSummary,
    DATA.package.model.classifier.details: ClassifierDetails,
    DATA.package.model.classifier.familiarity: FamiliarityDetails,
    DATA.track.details: TrackedResult,
    DATA.rank.details: Ranking,
    DATA.why.details: TransferGain,
    DATA.labels.details: LabelIssues,
    DATA.groups.details: GroupSuggestions,
    DATA.shortcuts.details: Shortcuts,
    DATA.tune.details: Tuning,
    DATA.drift.details: Drift,
}


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def write_schemas(folder: Path) -> None:
    """A schema for each file, under the file's name."""
    for path, model in JSON_FILES.items():
        schema = model.model_json_schema(schema_generator=_WithoutTitles)
        write_json(folder / path.name, {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
