"""From a stored picture to what a network sees: one object, so that a model and its preprocessing cannot be mismatched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headstart.base.artifacts.card import Frame, Preprocessing

CPU = torch.device("cpu")
STRIP = 16  # times its own height, or width: what the centre crop shows of a longer strip is far from its ends
INTERPOLATIONS = ("bilinear", "bicubic")  # what torchvision's and timm's networks were trained with, all of them


@dataclass(frozen=True)
class View:
    """What a backbone is shown of a picture: resized and normalised as its publisher did, unless the user chose otherwise.

    Attributes:
        size: height and width of the network's input, in pixels.
        crop: the fraction of the resized picture's short side that the centre crop takes, at most 1.
        interpolation: one of ``INTERPOLATIONS``.
        mean, std: per channel, of pixel values in [0, 1].
        frame: ``centre`` cuts the centre out. The others show all of the picture: ``squeeze`` changes its proportions
            (timm's squash), ``pad`` fills the space beside it with the mean colour (a letterbox).
        stages: of the network, whether its features are those of all its stages (``models.trunk.Trunk``).
        beside: views of further networks, which stand side by side with the one that this is of. They all get one tensor,
            in which each different view of a picture stands below the one before; what is left over on the right is black.
    """

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    frame: Frame = "centre"
    stages: bool = False
    beside: tuple[View, ...] = ()

    @classmethod
    def of(cls, stored: Preprocessing) -> Self:
        own = stored.model_dump(exclude={"built_for", "beside"})
        return cls(**own, beside=tuple(cls.of(other) for other in stored.beside or ()))

    def stored(self) -> Preprocessing:
        return Preprocessing(**vars(self) | {"beside": [other.stored() for other in self.beside] or None})

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @property
    def short_side(self) -> int:
        """Pixels that the short side is resized to before the centre is cut out."""
        return int(self.size / self.crop + 1e-6)

    @property
    def first(self) -> View:
        """That of the first network alone."""
        return replace(self, beside=())

    @property
    def different(self) -> list[View]:
        """The views that differ, in the order in which they stand in the tensor."""
        return list(dict.fromkeys(view.shown for view in [self.first, *self.beside]))

    @property
    def shown(self) -> View:
        """The same without what makes no difference to the picture."""
        return replace(self, stages=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the tensor."""
        sizes = [view.size for view in self.different]
        return sum(sizes), max(sizes)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of any size → (*shape, 3) uint8."""
        if not self.beside:
            return self.framed(pixels)
        whole, top = np.zeros((*self.shape, 3), np.uint8), 0
        for view in self.different:
            whole[top : top + view.size, : view.size] = view.framed(pixels)
            top += view.size
        return whole

    def framed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of any size → (size, size, 3) uint8.

        For the centre, the short side is resized to ``short_side`` and the centre is cut out, as torchvision's and timm's
        presets do. torch resizes uint8 as Pillow does, to a level or two, in half the time.
        """
        height, width = pixels.shape[:2]
        if self.frame == "squeeze":
            return self._resized(pixels, self.size, self.size)
        if self.frame == "pad":
            rows, columns = (max(1, round(self.size * side / max(height, width))) for side in (height, width))
            whole = np.empty((self.size, self.size, 3), np.uint8)
            whole[:] = [round(255 * value) for value in self.mean]
            top, left = (self.size - rows) // 2, (self.size - columns) // 2
            whole[top : top + rows, left : left + columns] = self._resized(pixels, rows, columns)
            return whole
        reach = STRIP * min(height, width)
        if max(height, width) > reach:  # resized whole, a line of a hundred thousand pixels would fill the memory
            top, left = (max(0, (side - reach) // 2) for side in (height, width))
            pixels = pixels[top : top + reach, left : left + reach]
            height, width = pixels.shape[:2]
        rows, columns = (int(self.short_side * side / min(height, width)) for side in (height, width))
        top, left = (round((side - self.size) / 2) for side in (rows, columns))
        return self._resized(pixels, rows, columns)[top : top + self.size, left : left + self.size]

    def _resized(self, pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = functional.interpolate(picture, (rows, columns), mode=self.interpolation, antialias=True)
        whole: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
        return whole

    def stacked(self, pictures: Iterable[NDArray[np.uint8]]) -> Tensor:
        """Pictures of any sizes → (N, 3, *shape) uint8, channels last in memory."""
        return torch.from_numpy(np.stack([self(picture) for picture in pictures])).permute(0, 3, 1, 2)

    def batch(self, pictures: Iterable[NDArray[np.uint8]]) -> Tensor:
        """Pictures of any sizes → (N, 3, *shape) float32, normalised."""
        normalised: Tensor = Normalise(self)(self.stacked(pictures))
        return normalised


class Normalise(nn.Module):
    """(N, 3, H, W) uint8 → float32, centred and scaled as a view has it, channels last in memory. The first layer of every
    network here, so that pictures travel as bytes, a quarter of the size."""

    mean: Tensor
    scale: Tensor

    def __init__(self, view: View) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (view.mean, view.std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", 1 / std, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = pictures.float().contiguous(memory_format=torch.channels_last)
        return (pictures - self.mean) * self.scale


def batches(
    view: View, pictures: Sequence[NDArray[np.uint8]] | Any, rows: Sequence[int], size: int, device: torch.device = CPU
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Batches of ``rows`` of ``pictures``, each (N, 3, *shape) uint8 on the CPU, the next one made while the network works
    on this one.

    Args:
        device: of the network. For a GPU as many batches are made at once as there are threads, and in memory that it reads
            by itself.
    """
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    ahead = 1 if device.type == "cpu" else torch.get_num_threads()

    def made(chunk: Sequence[int]) -> Tensor:
        batch = view.stacked(pictures[row] for row in chunk)
        return batch.pin_memory() if device.type == "cuda" else batch

    with ThreadPoolExecutor(ahead) as pool:
        pending = deque(pool.submit(made, chunk) for chunk in chunks[:ahead])
        for number, chunk in enumerate(chunks):
            batch = pending.popleft().result()
            if number + ahead < len(chunks):
                pending.append(pool.submit(made, chunks[number + ahead]))
            yield chunk, batch
