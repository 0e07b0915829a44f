"""torchvision's labelled data sets as sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError, nearest
from headstart.base.files import replacing
from headstart.base.kept import read_kept, write_kept
from headstart.base.paths import state_folder
from headstart.base.safe_text import shortened
from headstart.base.sections import Data
from headstart.data.picture import Listing, Picture, Source

# The constructor arguments of each split. Left out are sets whose publisher holds back the test labels and sets that do
# not give each picture one label.
_TRAIN_TEST_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}

_TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}

_TRAIN_VAL_TEST: dict[str, dict[str, Any]] = _TRAIN_TEST | {"val": {"split": "val"}}

_WHOLE: dict[str, dict[str, Any]] = {"": {}}

TORCHVISION_SETS: dict[str, dict[str, dict[str, Any]]] = {
    "CIFAR10": _TRAIN_TEST_FLAG,
    "CIFAR100": _TRAIN_TEST_FLAG,
    "MNIST": _TRAIN_TEST_FLAG,
    "FashionMNIST": _TRAIN_TEST_FLAG,
    "KMNIST": _TRAIN_TEST_FLAG,
    "QMNIST": _TRAIN_TEST_FLAG,
    "EMNIST": {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}},
    "USPS": _TRAIN_TEST_FLAG,
    "SEMEION": _WHOLE,
    "SVHN": _TRAIN_TEST,
    "STL10": _TRAIN_TEST,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "CLEVRClassification": {"train": {"split": "train"}, "test": {"split": "val"}},
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "DTD": _TRAIN_VAL_TEST,
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _TRAIN_VAL_TEST,
    "Flowers102": _TRAIN_VAL_TEST,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "INaturalist": {"train": {"version": "2021_train_mini"}, "test": {"version": "2021_valid"}},
    "LFWPeople": _TRAIN_TEST,
    "Omniglot": {"": {"background": True}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _TRAIN_VAL_TEST,
    "Places365": {"train": {"split": "train-standard", "small": True}, "test": {"split": "val", "small": True}},
    "RenderedSST2": _TRAIN_VAL_TEST,
    "StanfordCars": _TRAIN_TEST,
    "SUN397": _WHOLE,
}

# Their publishers are gone and torchvision no longer tries to download them; the files can be put in place by hand.
NOT_DOWNLOADABLE = ("LFWPeople", "StanfordCars")


class Torchvision(Source):
    """A torchvision data set, downloaded once. Where torchvision keeps picture files these are used; arrays are written
    as PNG files."""

    form = "torchvision:NAME"
    needs_network = True

    def takes(self, source: str) -> bool:
        return source.startswith("torchvision:")

    def listing(self, data: Data) -> Listing:
        return _listing(data.source.removeprefix("torchvision:"))


def _listing(name: str) -> Listing:
    if name not in TORCHVISION_SETS:
        hint = nearest(name, TORCHVISION_SETS) or f"known: {', '.join(TORCHVISION_SETS)}"
        raise HeadstartError(
            f"data.source 'torchvision:{name}' is not a labelled set that torchvision can download; {hint}"
        )
    root = state_folder("downloads") / f"torchvision-{name}"
    index = root / "index.json"
    rows: list[tuple[str, str, str]] = read_kept(index) or []
    if not rows:
        for split, arguments in TORCHVISION_SETS[name].items():
            rows += _export(name, split, arguments, root)
        os.sync()
        write_kept(index, rows)
    pictures = [Picture(path, label, split) for path, label, split in rows]
    return Listing(root, sorted(pictures, key=lambda picture: picture.path))


def _export(name: str, split: str, arguments: dict[str, Any], root: Path) -> Iterator[tuple[str, str, str]]:
    """Path, label and split of each picture of one split; a picture that is no file is written as one."""
    import inspect

    import torchvision

    kind = getattr(torchvision.datasets, name)
    # A loader that returns the path, so that files on disk are used as they are and not decoded here.
    loader = {"loader": str} if "loader" in inspect.signature(kind).parameters else {}
    try:
        dataset = kind(str(root), download=name not in NOT_DOWNLOADABLE, **arguments, **loader)
    except Exception as error:  # download errors, missing extras (scipy, h5py), broken publishers
        raise HeadstartError(
            f"torchvision could not give {name}: {shortened(str(error), 300)}. Ways out: a machine with network, "
            f"the set's files placed in {root}, or another data.source"
        ) from None
    attributes = (getattr(dataset, attribute, None) for attribute in ("classes", "categories", "all_categories"))
    classes = next((names for names in attributes if names), None)
    folder = root / "pictures" / (split or "all")
    for number in range(len(dataset)):
        picture, label = dataset[number]
        class_name = str(classes[int(label)] if classes else label).strip()
        if loader:
            yield os.path.relpath(picture, root), class_name, split
        else:
            path = folder / f"{number:07d}.png"
            if not path.exists():
                with replacing(path, sync=False) as part:
                    picture.save(part, format="png")
            yield path.relative_to(root).as_posix(), class_name, split
