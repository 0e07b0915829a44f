"""metrics.json: which classifier validation chose, and what all of them reach."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import variance
from typing import ClassVar, Literal

from headstart.base.artifacts.finetune import Kept
from headstart.base.artifacts.json_file import Interval, JsonFile, Part, absent

Name = Literal["head", "finetune", "ensemble"]  # of a classifier; the last is the average of the others
Measured = dict[str, int | float]  # each metric with its interval (accuracy, accuracy_low, accuracy_high), and n


class Gain(Part):
    """Accuracy of the fine-tuned network minus that of the head, with its 95% interval: for other pictures, and for other
    trainings where there are repeats."""

    accuracy: float
    low: float
    high: float


class Chance(Part):
    """What another training would change of a figure.

    Attributes:
        variance: of the figure.
        degrees: of freedom that the variance is known with.
    """

    variance: float
    degrees: int


class Repeats(Part):
    """What each of several trainings that differ by chance alone reaches.

    Attributes:
        kept: as in finetune.json.
        each: by classifier, split and metric, the figure of each training; of ``ensemble``, that with the head.
    """

    count: int
    kept: Kept
    each: dict[Name, dict[str, dict[str, list[float]]]]

    def chance(self, name: Name, split: str) -> dict[str, Chance]:
        """What another training would change of each metric of what was kept."""
        return {metric: chance_of(found, self.kept != "best") for metric, found in self.each[name][split].items()}


def chance_of(figures: Sequence[float], averaged: bool = True) -> Chance:
    """What another training would change of a figure of what was kept of several.

    Args:
        figures: of each training.
        averaged: whether an average of all was kept, whose variance is smaller, or one of them.
    """
    return Chance(variance=variance(figures) / (len(figures) if averaged else 1), degrees=len(figures) - 1)


class Folds(Part):
    """What heads made like this result's reach on the pictures of all splits, each tested by one that saw neither it nor
    any of its group: an estimate for heads that learned from (count - 1) / count of all pictures, not for this one.

    Attributes:
        count: of folds.
        head: over all pictures.
        quote: which estimate to quote, this one or that on the test split.
        reason: why that one, as a sentence goes on.
    """

    count: int
    head: Measured
    quote: Literal["folds", "test"]
    reason: str


class SamePicture(Part):
    """A test picture and the training or validation picture that looks the same.

    Attributes:
        distance: of their frozen features, as a multiple of the median distance to a nearest neighbour.
    """

    test: str
    learned: str
    distance: float


class Leaks(Part):
    """Test pictures that look the same to the network as one that was learned from.

    Attributes:
        pictures: how many there are.
        without: what the chosen classifier reaches on the other test pictures; absent where all or none are such pictures.
        added: test accuracy minus that of ``without``.
        pairs: the nearest first.
    """

    pictures: int
    without: Measured | None = absent()
    added: Interval | None = absent()
    pairs: list[SamePicture]


class HeatOfClass(Part):
    """A class that is told by the edges of pictures: of the heat maps for it, less lies at the centre than
    of an even one, and that is no chance, corrected for the number of classes (Holm).

    Attributes:
        centre: the mean share of the heat there.
    """

    label: str
    centre: Interval
    p: float


class Heat(Part):
    """Where the heat maps of the chosen classifier's answers lie, on a sample of the test pictures. Of several networks
    side by side it is the first one's.

    Attributes:
        pictures: how many.
        centre: the mean share of the heat at the centre of what the network is shown.
        even: the share that would be there if the heat were spread evenly.
        at_edge: classes that have less, the least first.
    """

    pictures: int
    centre: Interval
    even: float
    at_edge: list[HeatOfClass]


class Subgroup(Part):
    """Test pictures around mistakes on validation pictures that resemble each other, of which more are wrong than of the
    others.

    Attributes:
        pictures: how many there are.
        accuracy: of the chosen classifier on them; the intervals of all that were looked at hold together in 95%.
        others: the accuracy on all other test pictures.
        p: corrected for the number of subgroups that were looked at.
        labels: the commonest labels, with the number of pictures.
        nearest: pictures in the middle of it.
    """

    pictures: int
    accuracy: Interval
    others: float
    p: float
    labels: dict[str, int]
    nearest: list[str]


class Subgroups(Part):
    """
    Attributes:
        looked_at: how many were tested.
        found: those that are worse than the others and not by chance, the worst first.
    """

    looked_at: int
    found: list[Subgroup]


class MetricsSummary(JsonFile):
    """summary.json: the few figures of the chosen classifier that fit into DVC's tables.

    Attributes:
        val_log_loss: what results are chosen by.
        accuracy: on the test pictures; ``low`` and ``high`` are its 95% interval.
    """

    made_by: ClassVar[str] = "dvc repro evaluate"

    chosen: Name
    val_log_loss: float
    accuracy: float
    low: float
    high: float


class WorstClass(Part):
    """The class with the lowest F1 among those with test pictures: an average may hide it."""

    label: str
    f1: float
    pictures: int


class Metrics(JsonFile):
    """Measured by classifier. All but ``head`` and ``gain`` are absent where fine-tuning is off, and ``ensemble`` where a
    head is not linear.

    Attributes:
        test: also of ``chosen``.
        gain: by split.
        repeats: absent where ``finetune.repeats`` asks for one training.
        head_share: of the head in the ensemble, in log-probabilities.
        thresholds: where pictures have several labels, for each class the probability from which on it is an answer of
            ``chosen``; the validation pictures chose them.
        worst_class: of ``chosen`` on test; absent in files of versions that did not name it.
        folds: absent where ``evaluate.folds`` asks for none.
        leaks: absent in files of versions that did not look for them.
        heat: absent where there are no heat maps, or hardly any pictures; like ``subgroups``, in older files too.
        subgroups: absent where validation pictures have too few mistakes to look for some.
        shortcuts: sentences on what tells the classes apart without a look at what the pictures show; absent where none is
            known.
    """

    made_by: ClassVar[str] = "dvc repro evaluate"

    chosen: Name
    val: dict[Name, Measured]
    test: dict[str, Measured]
    gain: dict[str, Gain] | None = absent()
    repeats: Repeats | None = absent()
    head_share: float | None = absent()
    thresholds: tuple[float, ...] | None = absent()
    worst_class: WorstClass | None = absent()
    folds: Folds | None = absent()
    leaks: Leaks | None = absent()
    shortcuts: list[str] | None = absent()
    heat: Heat | None = absent()
    subgroups: Subgroups | None = absent()

    def summary(self) -> MetricsSummary:
        test, digits = self.test["chosen"], 4
        return MetricsSummary(
            chosen=self.chosen,
            val_log_loss=round(self.val[self.chosen]["log_loss"], digits),
            accuracy=round(test["accuracy"], digits),
            low=round(test["accuracy_low"], digits),
            high=round(test["accuracy_high"], digits),
        )
