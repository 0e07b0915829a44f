"""Splitting multi-label sets: every part gets its share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headstart.base.arrays import Bools, Ints


def iterative_stratification(counts: Ints, sizes: Ints, shares: Sequence[float], order: Ints) -> Ints:
    """A part for each group of pictures, so that every part gets about its share of every class and of all pictures.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, "On the stratification of multi-label data"): the rarest
    class first, because later nothing is left to mend its split with. Each of its groups goes to the part that lacks most
    of that class, of equal ones to the part that lacks most pictures. Two things are added: large groups come before small
    ones, which can level out what they have left uneven; and a class with at least as many groups as there are parts is
    brought into each part where its other classes allow that, while the paper's shares alone leave a part of 15% without
    any of three pictures.

    Args:
        counts: (G, C) pictures of each class in each group.
        sizes: (G,) pictures in each group.
        shares: of the parts; their sum is 1. A part of share 0 stays empty.
        order: (G,) groups of the same size are given out in this order.

    Returns:
        (G,) numbers of parts.
    """
    share = np.asarray(shares, float)
    has_class, open_parts = counts > 0, np.flatnonzero(share > 0).tolist()
    lacking, lacking_pictures = np.outer(share, counts.sum(axis=0)), share * sizes.sum()
    groups_left, pictures_left = has_class.sum(axis=0), counts.sum(axis=0)
    everywhere = groups_left >= len(open_parts)
    without: Bools = np.repeat((share > 0)[:, None], counts.shape[1], axis=1)  # parts that have none of a class yet
    parts: Ints = np.full(len(sizes), -1)

    def give(group: int, part: int) -> None:
        own = np.flatnonzero(has_class[group])
        parts[group] = part
        lacking[part, own] -= counts[group, own]
        lacking_pictures[part] -= sizes[group]
        groups_left[own] -= 1
        pictures_left[own] -= counts[group, own]
        without[part, own] = False

    while groups_left.any():
        rarest = int(np.argmin(np.where(groups_left > 0, pictures_left, np.iinfo(np.int64).max)))
        for group in _in_order(np.flatnonzero(has_class[:, rarest] & (parts < 0)), sizes, order):
            own = np.flatnonzero(has_class[group] & everywhere)
            last_chance = own[groups_left[own] <= without[:, own].sum(axis=0)]
            missing, wanted = without[:, last_chance].sum(axis=1), lacking[:, rarest]
            give(group, max(open_parts, key=lambda part: (missing[part], wanted[part], lacking_pictures[part])))
    for group in _in_order(np.flatnonzero(parts < 0), sizes, order):
        give(group, max(open_parts, key=lambda part: lacking_pictures[part]))
    return parts


def _in_order(groups: Ints, sizes: Ints, order: Ints) -> list[int]:
    """Large groups first, those of one size in the order given."""
    ordered: list[int] = groups[np.lexsort((order[groups], -sizes[groups]))].tolist()
    return ordered
