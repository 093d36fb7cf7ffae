"""Scores computed again from the stored rows, in a fixed order of sums, and their ranking."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.store.array import Vectors

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Matches:
    """The best k training rows (Q, k) int64 of each query and their scores (Q, k) float32.

    views (Q, k) int8 tells in which test-time view of the query each was found, 0 where it has one.
    """

    rows: Ids
    scores: Vectors
    views: NDArray[np.int8]

    def part(self, queries: slice | Ids, count: int | None = None) -> Self:
        """Return the first `count` matches, or all, of some queries."""
        at = queries, slice(count)
        return type(self)(self.rows[at], self.scores[at], self.views[at])

    def reordered(self, order: Ids) -> Self:
        """Return the matches of each query in another order (Q, k), k <= n."""
        at = np.arange(len(order))[:, None], order
        return type(self)(self.rows[at], self.scores[at], self.views[at])


def cosines(left: Vectors, right: Vectors) -> Vectors:
    """Return the inner product of each pair of rows (n, D), in [-1, 1], rounded once.

    A product of two float32 is exact in float64; the loop fixes the order of the sum, which
    numpy's own reductions change with the shape.
    """
    total = np.zeros(len(left), np.float64)
    for products in np.multiply(left.T, right.T, dtype=np.float64, order="C"):
        total += products
    return np.clip(total.astype(np.float32), -1, 1)


def best(ids: Ids, scores: Vectors, k: int) -> tuple[Ids, Vectors]:
    """Return the first k along the last axis by score descending, then by row."""
    order = np.lexsort((ids, -scores), axis=-1)[..., :k]
    return np.take_along_axis(ids, order, -1), np.take_along_axis(scores, order, -1)
