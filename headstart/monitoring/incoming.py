"""Pictures as they come in use, without labels: what the frozen network and the classifier make of each."""

from __future__ import annotations

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from headstart.base.arrays import Floats, Ints
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.base.threads import cores
from headstart.data import duplicates
from headstart.data.decode import Array, Unusable, decode, encode, fingerprint, quiet
from headstart.data.packed import Pixels
from headstart.data.sources_folder import NO_TEXT, files_below
from headstart.inference.predictor import load_predictor
from headstart.models.backbones import load_trunk
from headstart.models.task import SINGLE_LABEL, Task
from headstart.training.features import Shown, engine_of

AT_MOST = 2000  # pictures: a minute or two on two cores
AT_ONCE = 64


@dataclass(frozen=True)
class Incoming:
    """The usable pictures of a folder that are not among the labelled ones.

    Attributes:
        paths: N, relative to ``folder``.
        features: (N, D) of the frozen backbone, comparable to those in data/features.
        probabilities: (N, C) of the classifier's ``classes``, calibrated.
        groups: (N,) numbers; near-duplicates have the same.
        found: files in the folder, of which at most 2,000, drawn at random, were looked at.
        unusable: why, by path.
        task: what the probabilities mean.
    """

    folder: Path
    paths: list[str]
    features: Floats
    probabilities: Floats
    classes: tuple[str, ...]
    groups: Ints
    found: int
    unusable: dict[str, str]
    task: Task = SINGLE_LABEL


@dataclass(frozen=True)
class _Seen:
    pixels: Array
    sha256: str
    phash: int
    thumbnail: bytes


class Reader:
    """Decodes as prepare did, so that nothing but the pictures themselves can differ from the stored ones."""

    def __init__(self, pixels: Pixels) -> None:
        packing = json.loads(pixels.settings.get(b"headstart", b"{}"))
        self.short_side: int | None = packing.get("short_side")
        self.max_megapixels: float = packing.get("max_megapixels", Params().prepare.max_megapixels)
        self.jpeg_quality: int | None = packing.get("jpeg_quality")

    def __call__(self, path: Path) -> _Seen | str:
        """The picture; or why it cannot be used."""
        try:
            data = path.read_bytes()
            image = decode(data, self.short_side, self.max_megapixels).image
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except Unusable as reason:
            return str(reason)
        marks = fingerprint(image)
        if self.jpeg_quality is not None:
            image = Image.open(io.BytesIO(encode(image, self.jpeg_quality))).convert("RGB")
        return _Seen(np.array(image), hashlib.sha256(data).hexdigest(), *marks)


def look_at(
    folder: Path, data: Path, manifest: pd.DataFrame, params: Params, model: Path, device: torch.device
) -> Incoming | None:
    """What there is in ``folder`` and below; None where no picture is usable and new.

    Args:
        data: the folder of the stages' folders.
        model: a packaged model, the folder that holds MLmodel.

    Raises:
        HeadstartError: there is no such folder.
    """
    if not folder.is_dir():
        raise HeadstartError(f"drift.incoming {str(folder)!r}: there is no such folder; null where pictures come labelled")
    files = list(files_below(folder))
    drawn = np.random.default_rng(params.seed).permutation(len(files))[:AT_MOST]
    pixels = Pixels(data / "prepare")
    shown = Shown(load_trunk(data / "backbone", data / "fetch" / "network.py")[0], pixels, device)
    forward, _ = engine_of(shown, manifest, params.features.engine)
    classifier = load_predictor(model).model.to(device)
    known, unusable = set(manifest["sha256"]), dict[str, str]()
    paths: list[str] = []
    seen: list[tuple[int, bytes]] = []
    features: list[Any] = []
    probabilities: list[Any] = []
    read = Reader(pixels)
    chosen = [files[row] for row in sorted(drawn)]
    with progress("drift", len(chosen)) as advance, ThreadPoolExecutor(params.threads or cores()) as pool, quiet():
        for start in range(0, len(chosen), AT_ONCE):
            part = chosen[start : start + AT_ONCE]
            fresh: list[Array] = []
            for path, picture in zip(part, pool.map(read, part), strict=True):
                name = path.relative_to(folder).as_posix()
                if NO_TEXT.search(name):
                    unusable[name.encode("utf-8", "backslashreplace").decode()] = "its name is no proper text"
                elif isinstance(picture, str):
                    unusable[name] = picture
                elif picture.sha256 not in known:
                    known.add(picture.sha256)
                    paths.append(name)
                    seen.append((picture.phash, picture.thumbnail))
                    fresh.append(picture.pixels)
            if fresh:
                features.append(forward(shown.trunk.view.stacked(fresh)).float().cpu().numpy())
                with torch.inference_mode():
                    logits = classifier(classifier.trunk.view.batch(fresh).to(device))
                probabilities.append(classifier.probabilities(logits).double().cpu().numpy())
            advance(len(part))
    if not paths:
        return None
    return Incoming(
        folder, paths, np.concatenate(features), np.concatenate(probabilities), classifier.classes,
        _groups(seen, params.split.near_duplicate_bits), len(files), unusable,
        classifier.task,
    )  # fmt: skip


def _groups(seen: list[tuple[int, bytes]], bits: int) -> Ints:
    hashes = np.array([phash for phash, _ in seen], np.uint64)
    thumbnails = np.frombuffer(b"".join(small for _, small in seen), np.uint8).reshape(len(seen), -1)
    return duplicates.clusters(duplicates.near_pairs(hashes, thumbnails, bits), len(seen)).astype(np.int64)
