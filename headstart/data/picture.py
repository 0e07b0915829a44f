"""A picture, a listing of pictures, and what every kind of ``data.source`` has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from headstart.base.params import Data


@dataclass(frozen=True)
class Picture:
    """One row of the fetch manifest. ``split`` and ``group`` are empty where the source gives none."""

    path: str
    label: str
    split: str = ""
    group: str = ""
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Listing:
    """Pictures in order of their paths, which are relative to ``root``."""

    root: Path
    pictures: list[Picture]


class Source(ABC):
    """One kind of ``data.source``; ``headstart.data.sources`` holds the list of them.

    Attributes:
        form: how params.yaml names it, or a few words on what it looks like.
        needs_network: whether the first run downloads the pictures.
        needs_unpacking: whether the first run unpacks them from a file on this machine.
    """

    form: ClassVar[str]
    needs_network: ClassVar[bool] = False
    needs_unpacking: ClassVar[bool] = False

    def takes(self, source: str) -> bool:
        """Whether ``data.source`` is of this kind; asked in the order of the list, without touching the network."""
        return source == self.form

    @abstractmethod
    def listing(self, data: Data) -> Listing:
        """The pictures, downloaded or unpacked first where that is needed and no earlier run has done it.

        Raises:
            HeadstartError: they cannot be reached, or are not arranged as this kind of source has to be.
        """

    def root(self, data: Data) -> Path:
        """The folder that the paths of the last listing start from. Nothing is fetched anew: between two listings the
        pictures stay what they were."""
        return self.listing(data).root
