"""card.json: the backbone and where its weights are from."""

from __future__ import annotations

from typing import ClassVar, Literal

from headstart.base.artifacts.json_file import JsonFile, Part, absent, default

Frame = Literal["centre", "squeeze", "pad"]  # what of a picture the network is shown


class WeightsSource(Part):
    """
    Attributes:
        digest: SHA-256 of the publisher's file; empty where the weights are random.
    """

    origin: str
    digest: str
    licence: str


class Preprocessing(Part):
    """As ``models.preprocessing.View``.

    Attributes:
        stages: whether the mean features of all stages stand beside those of the last layer.
        built_for: pixels that the network was built for, where it was trained to be shown another size.
        beside: the same for the networks beside the first, where several stand side by side.
    """

    size: int
    frame: Frame = default("centre")
    stages: bool = default(False)
    built_for: int | None = absent()
    crop: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    beside: list[Preprocessing] | None = absent()

    def described(self) -> str:
        """For people: "224 px, bicubic, centre crop 0.875"."""
        frames = {
            "centre": f"centre crop {self.crop:.3f}",
            "squeeze": "squeezed into a square",
            "pad": "padded to a square",
        }
        own = f"{self.size} px, {self.interpolation}, {frames[self.frame]}{', all stages' if self.stages else ''}"
        return "; ".join([own, *(other.described() for other in self.beside or ())])


class Card(JsonFile):
    """
    Attributes:
        library: timm, torchvision or own.
        weights: as params.yaml names them.
        sha256: of weights.safetensors beside this file.
        features: width of the output.
        blocks: parts that can be unfrozen one by one.
        digest: of all else in this file and of classifier.safetensors, which are kept with the weights; empty in those of
            older versions.
    """

    made_by: ClassVar[str] = "dvc repro backbone"

    name: str
    library: str
    weights: str
    pretrained: bool
    source: WeightsSource
    sha256: str
    parameters: int
    gmacs: float
    features: int
    blocks: int
    preprocessing: Preprocessing
    digest: str = ""
