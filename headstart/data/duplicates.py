"""Pictures that are the same, or nearly: found by perceptual hash, confirmed by colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

# Mean difference of two 16×16 thumbnails, of 255, above which two pictures with close hashes are still different ones
# (hands on the same wall, flags of the same shape). Recompressed or resized copies stay below 3.
THUMBNAIL_DIFFERENCE = 4.0
ROWS_AT_ONCE = 1024


def near_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """All pairs of near-duplicates, each as (i, j) with i < j.

    Two pictures are near-duplicates when their perceptual hashes (Zauner 2010, DCT of the 32×32 grey picture) differ in
    at most ``bits`` of 64 and their thumbnails by less than ``THUMBNAIL_DIFFERENCE`` on average. Comparing all pairs by
    popcount is exact, and takes seconds for 100,000 pictures.

    Args:
        hashes: (N,).
        thumbnails: (N, 768).

    Returns:
        (P, 2) array.
    """
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        block = hashes[start : start + ROWS_AT_ONCE, None]
        rows, columns = np.nonzero(np.bitwise_count(block ^ hashes[None, start:]) <= bits)
        keep = columns > rows
        rows, columns = rows[keep] + start, columns[keep] + start
        difference = np.abs(thumbnails[rows].astype(np.int16) - thumbnails[columns]).mean(axis=1)
        close = difference < THUMBNAIL_DIFFERENCE
        found.append(np.stack([rows[close], columns[close]], axis=1))
    return np.concatenate(found)


def clusters(pairs: NDArray[np.int64], n: int) -> NDArray[np.int32]:
    """The connected components of the pairs: (n,) component numbers; a picture with no twin is alone in its own."""
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels
