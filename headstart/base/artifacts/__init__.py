"""The names of all files that stages write. What stands in the JSON files is in the modules beside this one.

A folder here is a path with its files as attributes: ``DataFolder("data").evaluate.metrics`` is data/evaluate/metrics.json.
"""

from __future__ import annotations

from pathlib import Path, PosixPath
from typing import Generic, TypeVar

from headstart.base.paths import file_name_of


class Folder(PosixPath):
    """A path whose attributes are the paths of the files in it."""


F = TypeVar("F", bound=Folder)


class File:
    """An attribute of a folder: the path of a file in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Folder, owner: type[Folder]) -> Path:
        return Path(folder, self.name)


class Subfolder(Generic[F]):
    """An attribute of a folder: a folder in it."""

    def __init__(self, name: str, kind: type[F]) -> None:
        self.name, self.kind = name, kind

    def __get__(self, folder: Folder, owner: type[Folder]) -> F:
        return self.kind(folder, self.name)


# --- the pipeline -------------------------------------------------------------------------------------------------------


class CodeFolder(Folder):
    def of(self, stage: str) -> Path:
        """What shapes the output of a stage, as ``base.identity`` has it."""
        return Path(self, f"{stage}.json")


class FetchFolder(Folder):
    manifest = File("manifest.csv")
    network = File("network.py")  # the user's own, or empty
    weights_digest = File("weights.sha256")

    code = Subfolder("code", CodeFolder)


class PrepareFolder(Folder):
    manifest = File("manifest.parquet")
    audit = File("audit.json")
    pixels = File("pixels.bin")
    pixels_index = File("pixels.parquet")
    pixels_digest = File("pixels.sha256")  # of the index, which has those of the pixels
    sheet = File("sheet.png")


MEMBERS = "members"


class BackboneFolder(Folder):
    card = File("card.json")
    weights = File("weights.safetensors")
    imagenet_classifier = File("classifier.safetensors")

    def member(self, name: str) -> BackboneFolder:
        """Of several networks side by side, the one called ``name``; all of them have only the card here."""
        return BackboneFolder(self, MEMBERS, file_name_of(name))


class FeaturesFolder(Folder):
    details = File("features.json")

    def split(self, name: str) -> Path:
        return Path(self, f"{name}.safetensors")


class HeadFolder(Folder):
    details = File("head.json")
    weights = File("head.safetensors")
    sweep = File("sweep.csv")

    @property
    def of_first(self) -> HeadFolder:
        """Of several networks side by side, the head on the features of the first one alone."""
        return HeadFolder(self, "first")


class FinetuneFolder(Folder):
    details = File("finetune.json")
    weights = File("weights.safetensors")
    val_logits = File("val_logits.safetensors")
    curve = File("curve.csv")

    def repeat(self, number: int) -> FinetuneFolder:
        """One of ``finetune.repeats`` trainings, where there are several; the first is number 1."""
        return FinetuneFolder(self, "repeats", str(number))


class FiguresFolder(Folder):
    confusion = File("confusion.png")
    confusion_table = File("confusion.csv")
    reliability = File("reliability.png")
    reliability_table = File("reliability.csv")
    sweep = File("sweep.png")
    curve = File("curve.png")
    mistakes = File("mistakes.png")
    per_class = File("per_class.csv")


class EvaluateFolder(Folder):
    metrics = File("metrics.json")
    summary = File("summary.json")
    predictions = File("predictions.parquet")
    report = File("report.html")
    figures = Subfolder("figures", FiguresFolder)


class ClassifierFolder(Folder):
    details = File("classifier.json")
    weights = File("classifier.safetensors")
    network = File("network.py")
    familiarity = File("familiarity.json")  # like the next, not in models with few validation pictures
    reference = File("familiarity.safetensors")


class ModelFolder(Folder):
    """An MLflow model; a packaged one may lie anywhere."""

    mlmodel = File("MLmodel")
    sums = File("SHA256SUMS")  # of all other files
    classifier = Subfolder("artifacts/classifier", ClassifierFolder)


class PackageFolder(Folder):
    model = Subfolder("model", ModelFolder)


class TrackFolder(Folder):
    details = File("track.json")


# --- beside the pipeline ------------------------------------------------------------------------------------------------


class RankFolder(Folder):
    details = File("rank.json")
    page = File("rank.html")


class WhyFolder(Folder):
    details = File("why.json")
    page = File("story.html")


class LabelsFolder(Folder):
    details = File("labels.json")
    page = File("labels.html")
    suspects = File("suspects.csv")


class GroupsFolder(Folder):
    details = File("groups.json")
    page = File("groups.html")
    table = File("groups.csv")


class ShortcutsFolder(Folder):
    details = File("shortcuts.json")
    page = File("shortcuts.html")


class TuneFolder(Folder):
    details = File("tune.json")
    page = File("tune.html")


class ToLabelFolder(Folder):
    table = File("to_label.csv")


class DriftFolder(Folder):
    details = File("drift.json")
    page = File("drift.html")
    to_label = Subfolder("to_label", ToLabelFolder)


class GateFolder(Folder):
    decision = File("decision.json")


class DataFolder(Folder):
    """The folder of the stages' folders."""

    fetch = Subfolder("fetch", FetchFolder)
    prepare = Subfolder("prepare", PrepareFolder)
    backbone = Subfolder("backbone", BackboneFolder)
    features = Subfolder("features", FeaturesFolder)
    head = Subfolder("head", HeadFolder)
    finetune = Subfolder("finetune", FinetuneFolder)
    evaluate = Subfolder("evaluate", EvaluateFolder)
    package = Subfolder("package", PackageFolder)
    track = Subfolder("track", TrackFolder)
    rank = Subfolder("rank", RankFolder)
    why = Subfolder("why", WhyFolder)
    labels = Subfolder("labels", LabelsFolder)
    groups = Subfolder("groups", GroupsFolder)
    shortcuts = Subfolder("shortcuts", ShortcutsFolder)
    tune = Subfolder("tune", TuneFolder)
    drift = Subfolder("drift", DriftFolder)
    gate = Subfolder("gate", GateFolder)


DATA = DataFolder("data")
