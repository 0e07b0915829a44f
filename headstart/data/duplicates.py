"""Near-duplicates: found by perceptual hash, confirmed by colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from headstart.base.arrays import Ints

# Mean difference of two 16×16 thumbnails, out of 255, from which on pictures with close hashes count as different (hands in
# front of the same wall, flags of the same shape). Recompressed or resized copies stay below 3.
THUMBNAIL_DIFFERENCE = 4.0
BATCH = 1024


def near_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], bits: int | None) -> Ints:
    """All pairs of near-duplicates, each as (i, j) with i < j, in order; none where ``bits`` is None.

    Two pictures are near-duplicates when their perceptual hashes (Zauner 2010, DCT of the 32×32 grey picture) differ in
    at most ``bits`` of 64 and their thumbnails by less than ``THUMBNAIL_DIFFERENCE`` on average. If two hashes cut into
    ``bits + 1`` parts differ in at most ``bits`` bits, at least one part is equal, so only pictures with an equal part are
    compared (Manku et al. 2007, "Detecting near-duplicates for web crawling"). This is exact and takes a second for 100,000
    pictures.

    Args:
        hashes: (N,).
        thumbnails: (N, 768).

    Returns:
        (P, 2) array.
    """
    if bits is None:
        return np.empty((0, 2), np.int64)
    confirmed = [np.empty((0, 2), np.int64)]
    for candidates in _pairs_of_close_hashes(hashes, bits):
        for start in range(0, len(candidates), BATCH):
            pairs = candidates[start : start + BATCH]
            difference = np.abs(thumbnails[pairs[:, 0]].astype(np.int16) - thumbnails[pairs[:, 1]]).mean(axis=1)
            confirmed.append(pairs[difference < THUMBNAIL_DIFFERENCE])
    pairs = np.concatenate(confirmed)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _pairs_of_close_hashes(hashes: NDArray[np.uint64], bits: int) -> Iterator[Ints]:
    """The pairs whose hashes differ in at most ``bits`` bits, each once, as arrays (P, 2)."""
    parts = [np.uint64(sum(1 << int(bit) for bit in part)) for part in np.array_split(np.arange(64), bits + 1)]
    for number, part in enumerate(parts):
        order = np.argsort(hashes & part, kind="stable")
        ordered = hashes[order]
        left = np.arange(len(order))
        for step in range(1, len(order)):  # compare each hash with the one ``step`` further on, while they share this part
            left = left[left + step < len(order)]
            difference = ordered[left] ^ ordered[left + step]
            share_part = difference & part == 0
            left, difference = left[share_part], difference[share_part]
            if not len(left):
                break
            close = np.bitwise_count(difference) <= bits
            for earlier in parts[:number]:  # a pair that shares an earlier part was yielded with that part
                close &= difference & earlier != 0
            yield np.stack([order[left[close]], order[left[close] + step]], axis=1)


def clusters(pairs: Ints, n: int) -> NDArray[np.int32]:
    """The connected components of the pairs: (n,) component numbers. A picture in no pair has a component of its own."""
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels
