"""From a stored picture to what a network sees: one object, so that a model and its preprocessing cannot be mismatched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class View:
    """The evaluation view of a backbone: the centre of the picture, resized and normalised as its publisher did.

    Attributes:
        size: height and width of the network's input, in pixels.
        crop: the fraction of the resized picture's short side that the centre crop takes.
        interpolation: a key of ``INTERPOLATIONS``.
        mean, std: per channel, of pixel values in [0, 1].
    """

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Self:
        p = card["preprocessing"]
        return cls(p["size"], p["crop"], p["interpolation"], tuple(p["mean"]), tuple(p["std"]))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of any size → (size, size, 3) uint8.

        Resizing the short side to ``size / crop`` and cutting the centre is the same as resizing the centre alone, which
        touches fewer pixels.
        """
        height, width = pixels.shape[:2]
        side = min(height, width) * self.crop
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = Image.fromarray(pixels).resize((self.size, self.size), INTERPOLATIONS[self.interpolation], box=box)
        return np.asarray(image)

    def normalise(self, batch: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 → float32, centred and scaled, channels last in memory."""
        mean = torch.tensor(self.mean, device=batch.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=batch.device).view(1, 3, 1, 1) * 255
        return batch.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def batch(self, pictures: Iterable[NDArray[np.uint8]]) -> Tensor:
        """Pictures of any sizes → (N, 3, size, size) normalised."""
        views = np.stack([self(picture) for picture in pictures])
        return self.normalise(torch.from_numpy(views).permute(0, 3, 1, 2))


def batches(
    view: View, pictures: Sequence[NDArray[np.uint8]] | Any, rows: Sequence[int], size: int
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Batches of ``rows`` of ``pictures``, the next one made while the network works on this one."""
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(lambda c: view.batch(pictures[r] for r in c), chunks[0]) if chunks else None
        for number, chunk in enumerate(chunks):
            assert pending is not None
            batch = pending.result()
            if number + 1 < len(chunks):
                pending = ahead.submit(lambda c: view.batch(pictures[r] for r in c), chunks[number + 1])
            yield chunk, batch
