"""Successive halving: which candidates see more pictures, and which one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from headstart.base.sections import Budget
from headstart.base.wording import log_loss_difference
from headstart.evaluation.intervals import mean
from headstart.studies.transferability import Probe


@dataclass
class Standing:
    """How far a candidate got.

    Attributes:
        probes: by the number of pictures.
        over_budget: in what way, or None.
        dropped: why it was not shown more pictures, or None.
    """

    name: str
    images_per_s: float
    over_budget: str | None = None
    dropped: str | None = None
    probes: dict[int, Probe] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        return max(self.probes)

    @property
    def last(self) -> Probe:
        return self.probes[self.pictures]

    @property
    def log_loss(self) -> float:
        return float(self.last.losses.mean())

    @property
    def note(self) -> str | None:
        if self.dropped:
            return f"dropped: {self.dropped}"
        return f"over the budget: {self.over_budget}" if self.over_budget else None

    def behind(self, other: Standing) -> tuple[int, float, float, float]:
        """On the largest sample that both saw: its size, this one's log-loss minus the other's on the same pictures, and
        the paired 95% interval of that."""
        count = max(self.probes.keys() & other.probes.keys())
        return count, *mean(self.probes[count].losses - other.probes[count].losses, groups=other.probes[count].groups)


def halve(
    standings: list[Standing],
    sizes: list[int],
    look: Callable[[str, int], Probe],
    announce: Callable[[list[str], int], None] = lambda names, count: None,
) -> None:
    """Fill in ``probes`` and ``dropped``. Everybody sees ``sizes[0]`` pictures; who is within budget and not clearly worse
    than the best such candidate sees the next size, as long as there are two of them.

    Args:
        announce: told who will look at how many pictures next.
    """
    announce([standing.name for standing in standings], sizes[0])
    for standing in standings:
        standing.probes[sizes[0]] = look(standing.name, sizes[0])
    running = [standing for standing in standings if standing.over_budget is None]
    for count in sizes:
        announce([standing.name for standing in running if count not in standing.probes], count)
        for standing in running:
            if count not in standing.probes:
                standing.probes[count] = look(standing.name, count)
        best = min(running, key=lambda s: s.log_loss, default=None)
        for standing in running:
            assert best is not None
            _, by, low, high = standing.behind(best)
            if low > 0:
                worse = log_loss_difference(by, low, high)
                standing.dropped = f"log-loss behind {best.name} by {worse} on {count} pictures"
        running = [standing for standing in running if standing.dropped is None]
        if len(running) < 2:
            return


def choose(standings: list[Standing]) -> tuple[str | None, str]:
    """The candidate to take, or None, and the reason in words.

    Among those in the running to the end the lowest log-loss is taken. Where others cannot be told from it, that is said,
    and which of them is the fastest.
    """
    if not standings:
        return None, "Nothing could be measured: no candidate's weights were found."
    within = [standing for standing in standings if standing.over_budget is None]
    if not within:
        told = "; ".join(f"{s.name}: {s.over_budget}" for s in standings)
        return None, f"No candidate is within rank.budget. {told}."
    running = sorted((s for s in within if s.dropped is None), key=lambda s: s.log_loss)
    best, others = running[0], running[1:]
    tied = [best, *(other for other in others if other.behind(best)[2] <= 0)]
    fastest = max(tied, key=lambda s: s.images_per_s)
    sentences = []
    if len(tied) > 1:
        names = listed([s.name for s in tied])
        sentences.append(f"Too close to call between {names} on {best.pictures} pictures.")
        if fastest is best:
            sentences.append(f"{best.name} has the lowest log-loss ({best.log_loss:.3f}) and is the fastest of them here.")
        else:
            _, by, low, high = fastest.behind(best)
            sentences.append(
                f"{best.name} has the lowest log-loss ({best.log_loss:.3f}). Where speed counts take {fastest.name}, the "
                f"fastest of them here ({fastest.images_per_s:.0f} images/s against {best.images_per_s:.0f}); its log-loss "
                f"differs by {log_loss_difference(by, low, high)}."
            )
    elif len(within) == 1:
        sentences.append(f"{best.name} is the only candidate {_that_was_measured(standings)}.")
    else:
        following = min((s for s in within if s is not best), key=lambda s: s.behind(best)[1])
        count, by, low, high = following.behind(best)
        sentences.append(
            f"{best.name} has the lowest log-loss ({best.log_loss:.3f} on {best.pictures} pictures); the next, "
            f"{following.name}, is behind by {log_loss_difference(by, low, high)} on {count}."
        )
    for standing in standings:
        if standing.over_budget is not None and standing.behind(best)[1] < 0:
            count, by, low, high = standing.behind(best)
            sentences.append(
                f"{standing.name} has a lower log-loss, by {log_loss_difference(-by, -high, -low)} on {count} pictures, "
                f"but is over the budget: {standing.over_budget}."
            )
    return best.name, " ".join(sentences)


def listed(names: list[str]) -> str:
    """For people: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _that_was_measured(standings: list[Standing]) -> str:
    return "whose weights were found" if len(standings) == 1 else "within rank.budget"


def over_budget(budget: Budget, images_per_s: float, megabytes: float) -> str | None:
    """In what way a candidate costs more than it may, or None."""
    problems = []
    if budget.images_per_s is not None and images_per_s < budget.images_per_s:
        problems.append(f"{images_per_s:.0f} images/s, at least {budget.images_per_s:g} are asked")
    if budget.megabytes is not None and megabytes > budget.megabytes:
        problems.append(f"{megabytes:.1f} MB, at most {budget.megabytes:g} are allowed")
    return ", ".join(problems) or None
