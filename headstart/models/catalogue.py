"""What is known of a network before it is built: the names there are, and what publishers say of accuracy and size.

torchvision's figures come with torchvision. timm's are in imagenet_timm.csv, columns of the results that its repository
publishes (docs/models.md says which, and how the file is made).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headstart.models.backbones import torchvision_weights

LIBRARIES = ("torchvision", "timm")
TIMM_RESULTS = Path(__file__).parent / "imagenet_timm.csv"


@dataclass(frozen=True)
class Figures:
    """What is published of a network with its default weights; None where nothing is.

    Attributes:
        top1, top5: accuracy on ImageNet's validation pictures, in percent.
        tested_at: height and width of the pictures that was measured on, in pixels.
        parameters: of the whole network, with its classifier and auxiliary heads.
        gmacs: billions of multiply-accumulates for one picture.
        input_size: height and width of the pictures that the network is given here, in pixels.
    """

    top1: float | None = None
    top5: float | None = None
    tested_at: int | None = None
    parameters: int | None = None
    gmacs: float | None = None
    input_size: int | None = None


def names() -> dict[str, str]:
    """Every name that ``backbone`` in params.yaml may have, in order, with the library that it belongs to.

    A timm name without a tag (convnext_atto) stands for its default weights (convnext_atto.d2_in1k); both are here.
    """
    import timm

    theirs = [name for name in {*timm.list_models(), *timm.list_pretrained()} if _takes_square_pictures(name)]
    found = dict.fromkeys(theirs, "timm") | dict.fromkeys(_torchvision_names(), "torchvision")
    return dict(sorted(found.items()))


def with_tag(name: str) -> str:
    """A timm name with the tag of the weights that it stands for: convnext_atto → convnext_atto.d2_in1k."""
    import timm

    cfg = timm.models.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    return f"{cfg.architecture}.{cfg.tag}" if cfg and cfg.tag else name


def published(name: str) -> Figures:
    """What the publisher of ``name``, of torchvision or timm, says of it."""
    return _of_torchvision(name) if name in _torchvision_names() else _of_timm(name)


@cache
def _torchvision_names() -> frozenset[str]:
    import torchvision

    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _of_torchvision(name: str) -> Figures:
    entry: Any = torchvision_weights(name, "default")
    accuracy = entry.meta["_metrics"].get("ImageNet-1K", {})
    size = entry.transforms().crop_size[0]
    return Figures(accuracy.get("acc@1"), accuracy.get("acc@5"), size, entry.meta["num_params"], entry.meta["_ops"], size)


def _of_timm(name: str) -> Figures:
    """Of several sizes that timm measured a network at, those at the size it is given here, or else at the nearest."""
    input_shape = _timm_input(name)
    size = input_shape[-1] if input_shape else None
    rows = _timm_results().get(with_tag(name))
    if not rows:
        return Figures(input_size=size)
    row = min(rows, key=lambda row: abs(int(row["size"]) - (size or 0)))
    millions = round(float(row["parameters"]) * 1e6)
    return Figures(float(row["top1"]), float(row["top5"]), int(row["size"]), millions, None, size)


@cache
def _timm_results() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with TIMM_RESULTS.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            found.setdefault(row["name"], []).append(row)
    return found


def _timm_input(name: str) -> tuple[int, int, int] | None:
    """(channels, height, width) as timm's registry has it; None where only the network itself knows."""
    import timm

    cfg = timm.models.get_pretrained_cfg(name)
    return cfg.input_size if cfg else None


def _takes_square_pictures(name: str) -> bool:
    shape = _timm_input(name)
    return shape is None or (shape[0] == 3 and shape[1] == shape[2])
