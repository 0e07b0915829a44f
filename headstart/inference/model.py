"""The packaged classifier in Python: ``headstart.load("data/package/model").predict("pictures")``."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from headstart.base.errors import HeadstartError
from headstart.data.decode import Array, Unusable, quiet
from headstart.data.in_place import Remote, named_pictures
from headstart.engines.select import WORTH_COMPARING
from headstart.inference.batch import BatchPredictor, InMemory, progress_of, readers_for, selection_for
from headstart.inference.prediction_files import PROBLEM, Table
from headstart.inference.predictor import from_array

LOSSLESS = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")  # modes of Pillow's that a PNG file keeps
PATHS = (str, os.PathLike)
FILES = (bytes, bytearray, memoryview)


def load(model: str | os.PathLike[str] = "data/package/model", *, trust: bool = False) -> Model:
    """A packaged model, ready to predict.

    Args:
        model: the folder that holds MLmodel.
        trust: run the code of a network in the model, although the model was not made in this folder's project.

    Raises:
        HeadstartError: the folder holds no model, is not as it was packaged, or holds code that is not trusted.
    """
    return Model(Path(model), trust)


class Model:
    """A packaged model, as ``headstart.load`` returns it."""

    def __init__(self, folder: Path, trust: bool = False) -> None:
        self.folder = folder
        self._trust = trust
        self._prepared_for, self._predictor = 1, BatchPredictor(folder, 1, trust=trust)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the table's last columns."""
        return self._predictor.classes

    def __repr__(self) -> str:
        return f"Model({str(self.folder)!r}, {len(self.classes)} classes: {', '.join(self.classes)})"

    def predict(self, pictures: Any, max_error: float | None = None) -> pd.DataFrame:
        """Say what is on pictures.

        Args:
            pictures: one picture or any number. A picture is a path, the bytes of a file, an array, (height, width, 3) or
                (height, width), uint8 or floats in [0, 1], or Pillow's. A path may also name a folder, which stands for
                all files below it, or an address such as s3://bucket/folder.
            max_error: give no label where not sure, so that at most this share of the labels is wrong: 0.05 is 5%.

        Returns:
            A row for each picture, in their order, with the columns that ``headstart predict --output`` writes: ``image``
            (its path, or "picture 0" and so on), ``label``, ``probability``, ``unsure`` (of several labels with
            ``max_error``), ``unfamiliar`` and ``nearest`` (if the model can say), ``problem``, and the probability of each
            class. If a picture cannot be used, ``problem`` says why, and it has no label. Otherwise ``problem`` is empty.

        Raises:
            HeadstartError: a path is not there, what is given is no picture, or ``max_error`` cannot be promised.
        """
        given = list(_named(pictures))
        files = [file for _, file in given if not isinstance(file, Unusable)]
        self._prepare_for(len(files))
        selection = selection_for(self.folder, self._predictor, max_error)
        table = Table(self.classes, selection.columns, (PROBLEM,))
        with (
            progress_of(len(given), self.folder) as advance,
            contextlib.closing(self._predictor.predict_files(files, readers_for(files))) as predictions,
            quiet(),
        ):
            for name, file in given:
                result = file if isinstance(file, Unusable) else next(predictions)[1]
                if isinstance(result, Unusable):
                    table.add(name, None, (str(result),))
                else:
                    table.add(name, selection.answer(result), ("",))
                advance()
        numbers = dict.fromkeys(["probability", *self.classes], "float64")
        frame = pd.DataFrame(table.rows, columns=table.header).astype(numbers)
        return frame.astype({"unfamiliar": "boolean"}) if "unfamiliar" in selection.columns else frame

    def _prepare_for(self, pictures: int) -> None:
        """Have an engine that suits so many pictures; another than torch takes seconds to prepare."""
        if pictures >= WORTH_COMPARING and pictures > 2 * self._prepared_for:
            self._predictor = BatchPredictor(self.folder, pictures, trust=self._trust)
            self._prepared_for = pictures


def _named(given: Any) -> Iterator[tuple[str, Path | Remote | InMemory | Unusable]]:
    """Each picture with its name.

    Raises:
        HeadstartError: something is no picture, or not there.
    """
    for number, picture in enumerate(_listed(given)):
        if isinstance(picture, PATHS):
            path = os.fspath(picture)
            if not isinstance(path, str):
                path = os.fsdecode(path)
            path = str(Path(path).absolute()) if path == "-" else path  # for the command that is standard input
            yield from ((str(file), file) for file in named_pictures([path]))
        else:
            name = f"picture {number}"
            try:
                yield name, InMemory(name, _in_memory(picture))
            except Unusable as reason:
                yield name, reason


def _listed(given: Any) -> Iterable[Any]:
    if isinstance(given, (*PATHS, *FILES, Image.Image)):
        return [given]
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OSU":
        return [given] if given.ndim < 4 else given
    if isinstance(given, pd.DataFrame | Mapping) or not isinstance(given, Iterable):
        raise HeadstartError(
            f"predict takes a picture or a list of them: paths, bytes, arrays or Pillow's; found {type(given).__name__}"
        )
    return given


def _in_memory(picture: Any) -> bytes | Array:
    """
    Raises:
        Unusable: it is no picture.
    """
    if isinstance(picture, FILES):
        return bytes(picture)
    if isinstance(picture, Image.Image):
        # As a file, it is decoded in the same way as the training pictures: transparency, 16 bits, EXIF rotation.
        stream = io.BytesIO()
        try:
            kept = picture if picture.mode in LOSSLESS else picture.convert("RGB")
            kept.save(stream, "PNG", compress_level=1, exif=picture.getexif())
        except Exception as error:  # of a damaged file Pillow says so when the pixels are asked for
            raise Unusable(f"truncated or damaged: {' '.join(str(error).split())[:120]}") from None
        return stream.getvalue()
    return from_array(picture)
