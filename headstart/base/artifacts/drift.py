"""drift.json: how new pictures differ from those that the champion was made from."""

from __future__ import annotations

from typing import ClassVar

from headstart.base.artifacts.json_file import Interval, JsonFile, Part, absent


class Separability(Part):
    """How well new pictures are told from old ones.

    Attributes:
        auc: how often, given one new and one old picture, a classifier picks the new one; chance is 0.5.
        low, high: its 95% interval, by bootstrap.
        p: the share of random divisions of the same pictures that are told apart as well.
        new, old: pictures that were compared.
    """

    auc: float
    low: float
    high: float
    p: float
    new: int
    old: int
    differ: bool


class NewInKind(Part):
    """A picture that is farther from the old ones than is usual.

    Attributes:
        label: absent where it has none.
        distance: as a multiple of the median old picture's.
    """

    path: str
    label: str | None = absent()
    distance: float


class Strangeness(Part):
    """How many pictures are new in kind.

    Attributes:
        p: how likely so many are where all are of known kinds.
        pictures: those that may be shown, the strangest first.
    """

    count: int
    share: float
    low: float
    high: float
    p: float
    differ: bool
    pictures: list[NewInKind]


class ClassCount(Part):
    label: str
    new: int
    old: int


class Asked(Part):
    new: int
    old: int


class Difference(Part):
    """Means of new and old pictures, and new minus old; None where there are no old ones."""

    new: Interval
    old: Interval | None
    difference: Interval | None


class Contradicted(Part):
    """A new picture whose label the champion contradicts."""

    path: str
    label: str
    guess: str
    probability: float


class ChampionAnswers(Part):
    """
    Attributes:
        asked: how many pictures.
        unknown_classes: labels that it does not know.
        confidence: probability of its answer.
        disagreement: share of the labels that it contradicts.
    """

    asked: Asked
    unknown_classes: list[str]
    confidence: Difference
    disagreement: Difference
    contradicted: list[Contradicted]


class NewPictures(Part):
    """New labelled pictures against old ones; None where too few can be compared.

    Attributes:
        test_within_classes: new against old ones of their own class.
        test_of_old_halves: a control, in which nothing should be found.
        champion: None where there is none.
    """

    pictures: int
    old: int
    test: Separability | None
    test_within_classes: Separability | None
    test_of_old_halves: Separability | None
    classes: list[ClassCount]
    strange: Strangeness | None
    champion: ChampionAnswers | None


class WorthLabelling(Part):
    """
    Attributes:
        path: of the copy in to_label.
        original: in the incoming folder.
    """

    path: str
    original: str
    guess: str
    probability: float
    why: str


class IncomingPictures(Part):
    """Pictures without labels against labelled ones.

    Attributes:
        pictures: those that were looked at.
        found: files in the folder.
        unusable: why, by path.
        guesses: how often the classifier chose each class.
    """

    pictures: int
    found: int
    unusable: dict[str, str]
    old: int
    test: Separability | None
    confidence: Interval
    guesses: dict[str, int]
    strange: Strangeness | None
    to_label: list[WorthLabelling]


class Drift(JsonFile):
    """
    Attributes:
        real: whether new or incoming pictures differ from the old ones.
        sentence: all of it in words.
    """

    made_by: ClassVar[str] = "headstart drift"

    real: bool
    sentence: str
    new: NewPictures | None = absent()
    incoming: IncomingPictures | None = absent()
