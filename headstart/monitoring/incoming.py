"""Pictures without labels, as they come in use: their features, and the classifier's probabilities."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from headstart.base.arrays import Floats, Ints
from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.base.threads import cores
from headstart.data import duplicates
from headstart.data.decode import Array, Unusable
from headstart.data.decoders import Decoders, Rules
from headstart.data.packed import Pixels
from headstart.data.sources_folder import NO_TEXT, files_below
from headstart.inference.predictor import load_predictor
from headstart.models.backbones import load_trunk
from headstart.models.task import SINGLE_LABEL, Task
from headstart.training.features import FeatureExtractor, engine_of

MAX_PICTURES = 2000  # takes a minute or two on two cores
BATCH_SIZE = 64


@dataclass(frozen=True)
class Incoming:
    """The usable pictures of a folder that are not among the labelled ones.

    Attributes:
        paths: of N pictures, relative to ``folder``.
        features: (N, D) from the frozen backbone, comparable to those in data/features.
        probabilities: (N, C) of the classifier's ``classes``, calibrated.
        groups: (N,) the same number for near-duplicates.
        files: how many the folder holds; at most 2,000 of them, drawn at random, are read.
        unusable: the reason, by path.
        task: what the probabilities mean.
    """

    folder: Path
    paths: list[str]
    features: Floats
    probabilities: Floats
    classes: tuple[str, ...]
    groups: Ints
    files: int
    unusable: dict[str, str]
    task: Task = SINGLE_LABEL


@dataclass(frozen=True)
class _Picture:
    pixels: Array
    sha256: str
    phash: int
    thumbnail: bytes


class Reader:
    """Decodes and encodes as prepare did, so that nothing but the pictures themselves can differ from the stored ones."""

    def __init__(self, pixels: Pixels, threads: int = 1) -> None:
        packing = json.loads(pixels.settings.get(b"headstart", b"{}"))
        known = {name: packing[name] for name in Rules.__dataclass_fields__ if name in packing}
        self.decoders = Decoders(threads, Rules(**known))
        self.jpeg_quality: int | None = packing.get("jpeg_quality")

    def __call__(self, path: Path) -> _Picture | str:
        """The picture, or the reason why it cannot be used."""
        try:
            digest = sha256_of(path)
            stored, data = self.decoders.pack(path, self.decoders.size(path), self.jpeg_quality)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except Unusable as reason:
            return str(reason)
        if self.jpeg_quality is not None:
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        else:
            pixels = np.frombuffer(data, np.uint8).reshape(stored.height, stored.width, 3)
        return _Picture(pixels, digest, stored.phash, stored.thumbnail)


def read_incoming(
    folder: Path, data: DataFolder, manifest: pd.DataFrame, params: Params, model: Path, device: torch.device
) -> Incoming | None:
    """The pictures in and below ``folder``; None where none is both usable and new.

    Args:
        data: the folder of the stages' folders.
        manifest: of the labelled pictures.
        model: a packaged model, the folder that holds MLmodel.

    Raises:
        HeadstartError: there is no such folder.
    """
    if not folder.is_dir():
        raise HeadstartError(f"drift.incoming {str(folder)!r}: there is no such folder; set it to null to check none")
    files = list(files_below(folder))
    drawn = np.random.default_rng(params.seed).permutation(len(files))[:MAX_PICTURES]
    pixels = Pixels(data.prepare)
    extractor = FeatureExtractor(load_trunk(data.backbone, data.fetch.network)[0], pixels, device)
    forward, _ = engine_of(extractor, manifest, params.features.engine)
    classifier = load_predictor(model).model.to(device)
    known, unusable = set(manifest["sha256"]), dict[str, str]()
    paths: list[str] = []
    fingerprints: list[tuple[int, bytes]] = []
    features: list[Any] = []
    probabilities: list[Any] = []
    threads = params.threads or cores()
    read = Reader(pixels, threads)
    chosen = [files[row] for row in sorted(drawn)]
    with (
        progress("drift", len(chosen)) as advance,
        closing(read.decoders),
        ThreadPoolExecutor(threads) as pool,
    ):
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = chosen[start : start + BATCH_SIZE]
            new: list[Array] = []
            for path, picture in zip(batch, pool.map(read, batch), strict=True):
                name = path.relative_to(folder).as_posix()
                if NO_TEXT.search(name):
                    unusable[name.encode("utf-8", "backslashreplace").decode()] = "its name is no proper text"
                elif isinstance(picture, str):
                    unusable[name] = picture
                elif picture.sha256 not in known:
                    known.add(picture.sha256)
                    paths.append(name)
                    fingerprints.append((picture.phash, picture.thumbnail))
                    new.append(picture.pixels)
            if new:
                features.append(forward(extractor.trunk.view.stacked(new)).float().cpu().numpy())
                with torch.inference_mode():
                    logits = classifier(classifier.trunk.view.batch(new).to(device))
                probabilities.append(classifier.probabilities(logits).double().cpu().numpy())
            advance(len(batch))
    if not paths:
        return None
    return Incoming(
        folder, paths, np.concatenate(features), np.concatenate(probabilities), classifier.classes,
        _groups(fingerprints, params.split.near_duplicate_bits), len(files), unusable,
        classifier.task,
    )  # fmt: skip


def _groups(fingerprints: list[tuple[int, bytes]], bits: int | None) -> Ints:
    hashes, thumbnails = zip(*fingerprints, strict=True)
    pairs = duplicates.near_pairs(
        np.array(hashes, np.uint64), np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(hashes), -1), bits
    )
    return duplicates.clusters(pairs, len(hashes)).astype(np.int64)
