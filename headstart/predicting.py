"""Many pictures, answered fast: decoded by all cores while the engine that suits the network works on those before."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.checkout import read_json, replacing
from headstart.compute import inference_batch, set_up
from headstart.data.decode import Array, Unusable, quiet
from headstart.engines import SAMPLE, engine_for
from headstart.errors import HeadstartError
from headstart.progress import Advance, progress
from headstart.selective import threshold_for
from headstart.served import CLASSIFIER, DETAILS, load_predictor
from headstart.views import Normalise, View

Floats = NDArray[np.float64]
FORMATS = ("text", "json", "csv", "parquet")
ENDLESS = 10**9  # pictures: what a server expects
FEW = 64  # pictures that are answered sooner than engines are compared, and before a bar is worth drawing
ROWS = 10_000  # of a Parquet file that are written at once


class Batched:
    """A packaged classifier and the engine that runs it fastest on this machine. Any number of threads may ask it.

    Attributes:
        predictor: the same classifier as ``served.load_predictor`` gives it, on the CPU.
        lock: held while the network works. Whoever hangs hooks into ``predictor.model``, as Grad-CAM does, holds it too:
            it may be that very network that answers.
        batch: how many pictures are best passed at once.
        told: which engine runs, and why (``engine``, ``why``).
    """

    def __init__(
        self,
        model: Path,
        pictures: int = ENDLESS,
        engine: str = "auto",
        threads: int | None = None,
        timings: Path | None = None,
    ) -> None:
        """Load the model and pick the engine, with what is known of its speed in ``timings``.

        Args:
            model: the folder that holds MLmodel.
            pictures: how many will come; compiling pays for many.
            engine, timings: as ``engines.engine_for`` takes them.
            threads: None: all cores.

        Raises:
            HeadstartError: the folder holds no model.
        """
        self.predictor = load_predictor(model)
        self.lock = threading.Lock()
        device = set_up(threads)
        network = nn.Sequential(Normalise(self.view), self.predictor.model).eval()
        if device.type != "cpu":
            network = copy.deepcopy(network).to(device)
        self.batch = inference_batch(network, self.view, device)
        wanted = "torch" if pictures <= FEW and device.type == "cpu" else engine
        with contextlib.redirect_stdout(sys.stderr):  # answers go to standard output, and nothing else
            self._engine, self.told = engine_for(
                network, pictures, self.view.stacked(_clouds(self.view.size)), device, wanted, timings=timings
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    @property
    def view(self) -> View:
        view: View = self.predictor.model.trunk.view
        return view

    @property
    def max_megapixels(self) -> float:
        return self.predictor.max_megapixels

    def decode(self, source: bytes | Path) -> Array:
        """A picture file, or its bytes, as (height, width, 3) uint8.

        Raises:
            Unusable: it is no picture, damaged or too large.
        """
        return self.predictor.decoded(source)

    def probabilities(self, pictures: Sequence[Array]) -> Floats:
        """Pictures of any sizes, each (height, width, 3) uint8 → (N, classes) calibrated probabilities."""
        if not pictures:
            return np.zeros((0, len(self.classes)))
        return self._answered(self.view.stacked(pictures))

    def answers(self, files: Iterable[Path]) -> Iterator[tuple[Path, Floats | Unusable]]:
        """Each file with its (classes,) probabilities, or with the reason why it cannot be used, in the order given.

        Files are decoded by a thread per core while the network works on the batch before: Pillow decodes, and torch
        resizes, without Python's lock. Memory does not grow with their number.
        """
        waiting, ahead = iter(files), deque[tuple[Path, Future[Array | Unusable]]]()
        pool = ThreadPoolExecutor(torch.get_num_threads())

        def decode_ahead() -> None:
            for path in islice(waiting, 2 * self.batch - len(ahead)):
                ahead.append((path, pool.submit(self._seen, path)))

        try:
            decode_ahead()
            while ahead:
                chunk = [ahead.popleft() for _ in range(min(self.batch, len(ahead)))]
                seen = [(path, future.result()) for path, future in chunk]
                decode_ahead()
                usable = [picture for _, picture in seen if not isinstance(picture, Unusable)]
                rows = iter(self._answered(torch.from_numpy(np.stack(usable)).permute(0, 3, 1, 2)) if usable else ())
                for path, picture in seen:
                    yield path, picture if isinstance(picture, Unusable) else next(rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def _seen(self, path: Path) -> Array | Unusable:
        try:
            return self.view(self.decode(path))
        except Unusable as reason:
            return reason

    def _answered(self, pictures: Tensor) -> Floats:
        """(N, 3, size, size) uint8 → (N, classes)."""
        with self.lock:
            logits = self._engine(pictures)
        return self.predictor.model.probabilities(logits.double().cpu()).numpy()


def _clouds(size: int) -> list[Array]:
    """Pictures that engines are timed and compared on, the same for every model: smooth, as photographs are."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (SAMPLE, 3, 8, 8), np.uint8))
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic", antialias=True)
    return list(smooth.permute(0, 2, 3, 1).contiguous().numpy())
