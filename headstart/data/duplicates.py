"""Near-duplicates: found by perceptual hash, confirmed by colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from headstart.base.arrays import Ints

# Mean difference of two 16×16 thumbnails, out of 255, from which on pictures with close hashes count as different (hands in
# front of the same wall, flags of the same shape). Recompressed or resized copies stay below 3.
THUMBNAIL_DIFFERENCE = 4.0
BATCH = 1024
# Of more pictures that all look alike (a fixed camera, blank pages) not every pair is listed: of n there are n² / 2.
CROWD = 100


def near_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], bits: int | None, rank: Ints | None = None
) -> Ints:
    """All pairs of near-duplicates, each as (i, j) with i < j, in order; none where ``bits`` is None.

    Two pictures are near-duplicates when their perceptual hashes (Zauner 2010, DCT of the 32×32 grey picture) differ in
    at most ``bits`` of 64 and their thumbnails by less than ``THUMBNAIL_DIFFERENCE`` on average. Of more than ``CROWD``
    pictures that pairs tie together only the pairs with the one of highest ``rank`` are given, near or not; that ties them
    together as well.

    Args:
        hashes: (N,).
        thumbnails: (N, 768).
        rank: (N,), by default equal; of equals the first counts.

    Returns:
        (P, 2) array.
    """
    found: list[Ints] = [np.empty((0, 2), np.int64)]
    component = _components(hashes, thumbnails, bits) if bits is not None else np.arange(len(hashes))
    sizes = np.bincount(component)
    rows = np.argsort(component, kind="stable")
    rows = rows[sizes[component[rows]] > 1]
    for members in np.split(rows, np.flatnonzero(np.diff(component[rows])) + 1):
        if len(members) <= CROWD:
            i, j = np.triu_indices(len(members), 1)
            pairs = np.stack([members[i], members[j]], axis=1)
            found.append(_alike(pairs[np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= bits], thumbnails))
        else:
            hub = members[np.argmax(rank[members])] if rank is not None else members[0]
            others = members[members != hub]
            found.append(np.sort(np.stack([np.full(len(others), hub), others], axis=1), axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _components(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], bits: int) -> Ints:
    """(N,) numbers, the same for pictures that near-duplicates tie together, directly or through others.

    If two hashes cut into ``bits + 1`` parts differ in at most ``bits`` bits, at least one part is equal, so only pictures
    with an equal part are compared (Manku et al. 2007, "Detecting near-duplicates for web crawling"), and only until they
    are tied together. This is exact and takes a second for 100,000 pictures.
    """
    n = len(hashes)
    component: Ints = np.arange(n)
    parts = [np.uint64(sum(1 << int(bit) for bit in part)) for part in np.array_split(np.arange(64), bits + 1)]
    for number, part in enumerate(parts):
        order = np.argsort(hashes & part, kind="stable")
        shared = hashes[order] & part
        last = np.searchsorted(shared, shared, side="right") - 1  # of those that share this part
        left, step = np.arange(n), 0
        while len(left):  # compare each hash with the one ``step`` further on, while they share this part
            if step & (step - 1) == 0:  # now and then, leave out those of whose rest all are tied together
                changes = np.concatenate([[0], np.cumsum(np.diff(component[order]) != 0)])
                left = left[changes[last[left]] > changes[left]]
            step += 1
            left = left[left + step <= last[left]]
            i, j = order[left], order[left + step]
            difference = hashes[i] ^ hashes[j]
            close = (np.bitwise_count(difference) <= bits) & (component[i] != component[j])
            for earlier in parts[:number]:  # a pair that shares an earlier part was compared with that part
                close &= difference & earlier != 0
            pairs = _alike(np.stack([i[close], j[close]], axis=1), thumbnails)
            if len(pairs):
                component = clusters(component[pairs], n)[component]
    return component


def _alike(pairs: Ints, thumbnails: NDArray[np.uint8]) -> Ints:
    """Those of the pairs (P, 2) whose thumbnails hardly differ."""
    alike = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), BATCH):
        i, j = pairs[start : start + BATCH].T
        difference = np.abs(thumbnails[i].astype(np.int16) - thumbnails[j]).mean(axis=1)
        alike[start : start + BATCH] = difference < THUMBNAIL_DIFFERENCE
    return pairs[alike]


def clusters(pairs: Ints, n: int) -> Ints:
    """The connected components of the pairs: (n,) component numbers. A picture in no pair has a component of its own."""
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels: Ints = connected_components(graph, directed=False)[1]
    return labels
