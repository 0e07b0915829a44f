"""Pictures that are the same, or nearly: found by perceptual hash, confirmed by colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from headstart.base.arrays import Ints

# Mean difference of two 16×16 thumbnails, of 255, above which two pictures with close hashes are still different ones
# (hands on the same wall, flags of the same shape). Recompressed or resized copies stay below 3.
THUMBNAIL_DIFFERENCE = 4.0
AT_ONCE = 1024


def near_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], bits: int) -> Ints:
    """All pairs of near-duplicates, each as (i, j) with i < j, in order.

    Two pictures are near-duplicates when their perceptual hashes (Zauner 2010, DCT of the 32×32 grey picture) differ in
    at most ``bits`` of 64 and their thumbnails by less than ``THUMBNAIL_DIFFERENCE`` on average. Of ``bits + 1`` parts of
    such hashes one at least is equal, so only pictures with an equal part are compared (Manku et al. 2007, "Detecting
    near-duplicates for web crawling"). That is exact, and takes a second for 100,000 pictures.

    Args:
        hashes: (N,).
        thumbnails: (N, 768).

    Returns:
        (P, 2) array.
    """
    found = [np.empty((0, 2), np.int64)]
    for close in _close(hashes, bits):
        for start in range(0, len(close), AT_ONCE):
            pairs = close[start : start + AT_ONCE]
            difference = np.abs(thumbnails[pairs[:, 0]].astype(np.int16) - thumbnails[pairs[:, 1]]).mean(axis=1)
            found.append(pairs[difference < THUMBNAIL_DIFFERENCE])
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _close(hashes: NDArray[np.uint64], bits: int) -> Iterator[Ints]:
    """The pairs whose hashes differ in at most ``bits`` bits, each once, as arrays (P, 2)."""
    parts = [np.uint64(sum(1 << int(bit) for bit in part)) for part in np.array_split(np.arange(64), bits + 1)]
    for number, part in enumerate(parts):
        order = np.argsort(hashes & part, kind="stable")
        ordered = hashes[order]
        at = np.arange(len(order))
        for step in range(1, len(order)):  # each with the one ``step`` places further on, as long as that has the same part
            at = at[at + step < len(order)]
            differ = ordered[at] ^ ordered[at + step]
            same = differ & part == 0
            at, differ = at[same], differ[same]
            if not len(at):
                break
            near = np.bitwise_count(differ) <= bits
            for earlier in parts[:number]:  # pairs that have one of these in common were found there
                near &= differ & earlier != 0
            yield np.stack([order[at[near]], order[at[near] + step]], axis=1)


def clusters(pairs: Ints, n: int) -> NDArray[np.int32]:
    """The connected components of the pairs: (n,) component numbers; a picture with no twin is alone in its own."""
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels
