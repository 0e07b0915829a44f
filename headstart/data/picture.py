"""A picture, a listing of pictures, and what every kind of ``data.source`` has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from headstart.base.sections import Data


SEPARATOR = ";"  # between the class names of a picture in headstart's own tables; no class name may hold it
READS_AT_ONCE = 32  # of pictures that are no files of this machine, while others are on their way
LARGEST = 100 << 20  # bytes of one that is read whole


@dataclass(frozen=True)
class Picture:
    """One row of the fetch manifest. ``split`` and ``group`` are empty where the source gives none.

    Attributes:
        label: the class; in a multi-label set the text of ``labels``, joined by SEPARATOR.
        labels: in a multi-label set the sorted names of the picture's classes, of which there may be none; else None.
    """

    path: str
    label: str
    split: str = ""
    group: str = ""
    size: int = 0
    sha256: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it belongs to: one, or any number in a multi-label set."""
        return (self.label,) if self.labels is None else self.labels

    def with_labels(self, names: Iterable[str]) -> Picture:
        """The picture with these classes, in a multi-label set."""
        labels = tuple(sorted(set(names)))
        return replace(self, label=SEPARATOR.join(labels), labels=labels)


def names_in(label: str) -> list[str]:
    """The class names in the text that a multi-label set has for a label."""
    return label.split(SEPARATOR) if label else []


def is_multi_label(pictures: list[Picture]) -> bool:
    """Whether they are of a multi-label set."""
    return bool(pictures) and pictures[0].labels is not None


def classes_of(pictures: list[Picture]) -> set[str]:
    """The names of all their classes."""
    return {name for picture in pictures for name in picture.classes}


class InPlace(ABC):
    """What reads pictures that are no files of this machine, or no files of their own. Safe to use from several threads,
    and picklable; as text it is where the pictures are."""

    @property
    @abstractmethod
    def is_everywhere(self) -> bool:
        """Whether other machines can read them too, as far as can be told."""

    @abstractmethod
    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The content of a picture, or those bytes of it.

        Raises:
            HeadstartError: it cannot be read.
        """


@dataclass(frozen=True)
class Listing:
    """Pictures in order of their paths.

    Attributes:
        root: the folder that the paths start from, or what reads the pictures where they are.
        stamps: of pictures that are read where they are, by path: what tells one version from the next without reading it;
            empty where nothing surely does.
    """

    root: Path | InPlace
    pictures: list[Picture]
    stamps: Mapping[str, str] = field(default_factory=dict)


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

    def root(self, data: Data) -> Path | InPlace:
        """The folder that the paths of the last listing start from, or what reads them. Nothing is listed or fetched anew:
        between two listings the pictures stay what they were."""
        return self.listing(data).root
