"""Which networks to put side by side: a greedy search, in which each network added has to lower the log-loss further.

All members have looked at the pictures before, so that a look at a combination is one more probe. Greedy ensembles from
cached features of frozen networks: Mustafa et al. 2020, "Deep ensembles for low-data transfer learning" (arXiv 2010.06866).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.evaluation.intervals import mean
from headstart.studies.transferability import Probe

Members = tuple[str, ...]


@dataclass(frozen=True)
class Combination:
    """The networks that together have the least log-loss.

    Attributes:
        members: names; the first is the best single one.
        alone, together: what the first says alone, and all of them, on the same pictures.
        pictures: how many those are.
    """

    members: Members
    alone: Probe
    together: Probe
    pictures: int

    @property
    def gained(self) -> tuple[float, float, float]:
        """By how much the log-loss falls, with its paired 95% interval."""
        return mean(self.alone.losses - self.together.losses, groups=self.alone.groups)

    @property
    def pays(self) -> bool:
        return self.gained[1] > 0


def search(
    first: str,
    others: Sequence[str],
    most: int,
    affordable: Callable[[Members], bool],
    look: Callable[[Members, int], Probe],
    few: int,
    count: int,
) -> Combination | None:
    """Add to ``first`` the one of ``others`` that lowers the log-loss most, and so on, as long as it falls; then look at
    the combination on more pictures. None where no other lowers it.

    Args:
        most: members.
        affordable: whether members are within the budget together.
        look: what a probe on the features of members, side by side, says of so many pictures.
        few: pictures to search with, which everybody has seen.
        count: pictures that the result is measured on.
    """
    members: Members = (first,)
    losses = look(members, few).losses.mean()
    while len(members) < most:
        wider = [(*members, name) for name in others if name not in members]
        found = {each: look(each, few).losses.mean() for each in wider if affordable(each)}
        best = min(found, key=lambda each: found[each], default=None)
        if best is None or found[best] >= losses:
            break
        members, losses = best, found[best]
    if len(members) == 1:
        return None
    return Combination(members, look((first,), count), look(members, count), count)
