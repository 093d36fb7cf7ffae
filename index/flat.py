"""The exact search: FAISS's flat inner-product index, mapped into memory, and its copy on a GPU.

It holds the training rows, from which the candidates of every type of index are scored again.
"""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.base import Found
from deepssim_scan.index.config import FLAT
from deepssim_scan.index.faiss_io import map_index, on_gpu
from deepssim_scan.index.kinds import memory
from deepssim_scan.index.rescore import Ids, best, cosines
from deepssim_scan.store.array import Vectors

GPU_MAX_K = 2048
PAIR_BLOCK = 2**13  # pairs of rows scored at a time: 8 MiB a side at D 256


class Flat:
    """Proposes the best rows, but for what the rounding of float32 hides."""

    kind, effort = FLAT, 0

    def __init__(self, index: Any, device: str, path: Path | None = None) -> None:
        """Take a FAISS index of all rows; "cuda" searches a copy on a GPU, where there is room.

        `path` is the file that it is mapped from, if memory may be short of it.
        """
        self._index = index
        self._gpu = on_gpu(index) if device == "cuda" else None
        self.rows: int = index.ntotal
        self.dimension: int = index.d
        # Bound of what float32 sums of D products, and the one rounding of ours, can be off by.
        self.tolerance = np.float32((index.d + 8) * 2.0**-23)

        self._pages = None if path is None else _pages(path)

    @classmethod
    def open(cls, path: Path, rows: int, dimension: int, device: str = "cpu") -> Self:
        """Map an index file into memory; Damaged when it is not a flat one of so many rows."""
        index = map_index(path, FLAT, rows, dimension)
        large = path.stat().st_size > memory() // 2 and hasattr(mmap, "MADV_WILLNEED")
        return cls(index, device, path if large else None)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU holds a copy."""
        return self._gpu is not None

    def propose(self, queries: Vectors, wanted: int) -> Found:
        """Return the best `wanted` rows of each query, from the GPU where it can."""
        if self._gpu is not None and wanted <= GPU_MAX_K:
            try:
                return cast("Found", self._gpu.search(queries, wanted))
            except RuntimeError:  # out of memory: the CPU gives the same matches
                self._gpu = None
        return cast("Found", self._index.search(queries, wanted))

    def near(self, query: Vectors, score: float) -> Ids:
        """Return all rows that score more than `score` with one query (D,)."""
        return cast("Ids", self._index.range_search(query[None], score)[2])

    def best_of(self, queries: Vectors, ids: Ids, k: int) -> tuple[Ids, Vectors]:
        """Return the best k of proposed rows (Q, n) and their scores; -1 stands for no row.

        A product in float32, in any order, tells which cannot be among them. The others are scored.
        """
        self._read_ahead(ids)
        estimates = self._of_pairs(_estimates, queries, ids)
        if ids.shape[1] > k:
            last = np.partition(estimates, -k)[:, -k, None]
            ids = np.where(estimates < last - 2 * self.tolerance, -1, ids)
        return best(ids, self._of_pairs(cosines, queries, ids), k)

    def _read_ahead(self, ids: Ids) -> None:
        """Ask for rows that may lie on the disk, all at once, instead of waiting for each."""
        if self._pages is None:
            return
        size = 4 * self.dimension
        start = len(self._pages) - size * self.rows
        for row in np.unique(ids[ids >= 0]).tolist():
            at = start + size * row
            page = at - at % mmap.PAGESIZE
            self._pages.madvise(mmap.MADV_WILLNEED, page, at + size - page)

    def _of_pairs(self, score: Callable[..., Vectors], queries: Vectors, ids: Ids) -> Vectors:
        """Score each query with its rows (Q, n); -inf where there is none."""
        owners, at = np.nonzero(ids >= 0)
        scores = np.full(ids.shape, -np.inf, np.float32)
        for block in sliced(len(owners), PAIR_BLOCK):
            pair = owners[block], at[block]
            scores[pair] = score(queries[pair[0]], self.vectors_at(ids[pair]))
        return scores

    def vectors(self, start: int, stop: int) -> Vectors:
        """Return rows `start` to `stop` - 1, (stop - start, D) float32."""
        return cast("Vectors", self._index.reconstruct_n(start, stop - start))

    def vectors_at(self, rows: Ids) -> Vectors:
        """Return some rows (n, D)."""
        return cast("Vectors", self._index.reconstruct_batch(rows))


def _pages(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _estimates(left: Vectors, right: Vectors) -> Vectors:
    return cast("Vectors", np.einsum("nd,nd->n", left, right))
