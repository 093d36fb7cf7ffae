"""An approximate search: a FAISS index that looks at a part of the rows.

How much it looks at is its effort: the lists of an inverted file that are read for a query, or the
rows that a search in a graph keeps in view. What it leaves out is not known of a single query; the
share that it finds is measured (`index.recall`).
"""

from typing import Any, Self, cast

import numpy as np

from deepssim_scan.errors import Damaged
from deepssim_scan.index.base import Found
from deepssim_scan.index.faiss_io import innermost, inverted, load_faiss, on_gpu
from deepssim_scan.index.flat import GPU_MAX_K, Flat
from deepssim_scan.index.reduced import Reduced
from deepssim_scan.index.rescore import Ids
from deepssim_scan.store.array import Vectors

_FINE = "SQ8", "Flat", "SQfp16", "SQbf16"  # codes that order rows as the rows themselves do
_POOL = 4  # candidates for each that is asked for, where codes are coarser
_FIRST = 64  # rows that a search in a graph keeps in view, at least


class Approximate:
    """Proposes rows that are probably the best."""

    tolerance = None

    def __init__(
        self, index: Any, kind: str, effort: int, device: str, reduced: Reduced | None = None
    ) -> None:
        """Take a FAISS index and its factory string; "cuda" searches a copy on a GPU if it can.

        The index is of the `reduced` rows, where there are any.
        """
        self._index, self.kind, self._reduced = index, kind, reduced
        self._gpu = on_gpu(index) if device == "cuda" else None
        self._pool = 1 if kind.endswith(_FINE) else _POOL
        self._name, self.efforts = _efforts(index)
        known = load_faiss().cvar
        self._counters = (known.indexIVF_stats, known.hnsw_stats)
        self._unfound: Ids = np.empty(0, np.int64)
        self.use(effort)

    def use(self, effort: int) -> None:
        """Search with another effort: one of `efforts`, where there are any."""
        faiss, self.effort = load_faiss(), effort
        if self._name and not 1 <= effort <= self.efforts[-1]:
            raise Damaged(
                f"index.json has effort {effort}, and {self.kind} takes 1 to {self.efforts[-1]}. "
                "Build the index again."
            )
        if self._name:
            faiss.ParameterSpace().set_index_parameter(self._index, self._name, effort)
        if self._name and self._gpu is not None:
            faiss.GpuParameterSpace().set_index_parameter(self._gpu, self._name, effort)

    def with_unfound(self, rows: Ids, flat: Flat) -> Self:
        """Search some rows exactly as well, which the index does not find by themselves."""
        if len(rows):
            self._unfound = rows
            self._exactly = load_faiss().IndexFlatIP(flat.dimension)
            self._exactly.add(flat.vectors_at(rows))
        return self

    def propose(self, queries: Vectors, wanted: int) -> Found:
        """Return the best rows that were found; -1 where there were fewer."""
        scores, rows = self._searched(queries, min(self._pool * wanted, self._index.ntotal))
        if not len(self._unfound):
            return scores, rows
        rows = np.where(np.isin(rows, self._unfound), -1, rows)
        more, at = self._exactly.search(queries, min(wanted, len(self._unfound)))
        return np.concatenate([scores, more], 1), np.concatenate([rows, self._unfound[at]], 1)

    def _searched(self, queries: Vectors, wanted: int) -> Found:
        if self._reduced is not None:
            queries = self._reduced.directions.reduced(queries)
        if self._gpu is not None and wanted <= GPU_MAX_K:
            try:
                return cast("Found", self._gpu.search(queries, wanted))
            except RuntimeError:  # out of memory
                self._gpu = None
        return cast("Found", self._index.search(queries, wanted))

    def count_anew(self) -> None:
        """Count the rows that are compared from now on."""
        for each in self._counters:
            each.reset()

    @property
    def is_graph(self) -> bool:
        """Whether a search goes from row to row, so that there may be rows that none reaches."""
        return self._name == "efSearch"

    @property
    def compared(self) -> float:
        """How many rows were compared since then, all queries together."""
        return float(sum(each.ndis for each in self._counters))


def _efforts(index: Any) -> tuple[str, tuple[int, ...]]:
    """Return what FAISS calls the effort of an index, and values to try; none: it has none."""
    faiss = load_faiss()
    if (lists := inverted(index)) is not None:
        return "nprobe", (*_steps(1, lists.nlist), lists.nlist)
    if isinstance(innermost(index), faiss.IndexHNSW):
        return "efSearch", (*_steps(_FIRST, index.ntotal), index.ntotal)
    return "", (0,)


def _steps(first: int, end: int) -> list[int]:
    """Return two numbers for each doubling, from `first` to less than `end`."""
    steps = (round(first * 2 ** (step / 2)) for step in range(2 * end.bit_length()))
    return sorted({each for each in steps if each < end})
