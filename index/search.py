"""Each query's nearest training images, through the index of a store.

    folder: flat.faiss, approximate.faiss, index.json
    queries (Q, D), or test-time views (Q, V, D), float32, k -> Matches: rows and scores (Q, k)

Both sides are unit-norm, so the inner product is the cosine, in [-1, 1]. FAISS only proposes
candidates: its last bits change with the batch and the threads. The scores are computed again
from the stored rows, in float64, summed over the dimensions in order and rounded once to
float32; they sort by score descending, then by training row. So the matches of an exact search
depend on the queries and the store, and on nothing else. An approximate one may leave out rows;
what it gives has the same scores, in the same order. With fewer than k training images, k shrinks.
"""

from pathlib import Path
from typing import Self

import numpy as np

from deepssim_scan.errors import Damaged, InputError, StoreMismatch
from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.approximate import Approximate
from deepssim_scan.index.base import Proposer
from deepssim_scan.index.config import FLAT
from deepssim_scan.index.faiss_io import map_index
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.rescore import Ids, Matches, best, cosines
from deepssim_scan.storage.files import check_sha256
from deepssim_scan.storage.layout import APPROXIMATE, INDEX
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.store import Store

MARGIN = 16  # candidates asked for beyond k, so that few queries need a second look
QUERY_BLOCK = 1024
CANDIDATE_BLOCK = 2**20  # ids and scores that FAISS returns at a time
_DEEPER, _DEEPEST = 4, 1024  # times as many candidates where they were too few; until when
PAIR_BLOCK = 2**13  # pairs of rows scored at a time: 16 MiB a side at D 256


class TrainingIndex:
    """An index opened for search, verified to be of the store and the bytes that were built."""

    def __init__(self, flat: Flat, proposer: Proposer | None = None) -> None:
        """Score the rows of an exact index, which proposes them as well if nothing else does."""
        self._flat, self._proposer = flat, proposer or flat
        self.rows, self.dimension = flat.rows, flat.dimension

    @classmethod
    def open(cls, folder: Path, store: Store, device: str = "cpu", *, exact: bool = False) -> Self:
        """Open the index of `store` in `folder`; "cuda" uses a GPU when FAISS has one.

        `exact` searches all rows, whatever the type of the index.

        Raises InputMissing when `folder` is not a finished index, StoreMismatch when it was
        built of another store or encoder, Damaged when its bytes are not those written.
        """
        manifest = IndexManifest.read(folder)
        found = (manifest.encoder, manifest.store, manifest.rows, manifest.dimension)
        wanted = (store.manifest.encoder, store.digest, store.rows, store.dimension)
        names = ("encoder", "store digest", "rows", "dimension")
        for name, ours, theirs in zip(names, found, wanted, strict=True):
            if ours != theirs:
                raise StoreMismatch(
                    f"{folder}: its {name} is {ours}, and that of {store.folder} is {theirs}. "
                    "Use the store that it was built of, or build the index again."
                )
        size = manifest.rows, manifest.dimension
        check_sha256(folder / INDEX, manifest.files[INDEX])
        flat = Flat(map_index(folder / INDEX, FLAT, *size), device)
        if exact or manifest.factory == FLAT:
            return cls(flat)
        check_sha256(folder / APPROXIMATE, manifest.files[APPROXIMATE])
        index = map_index(folder / APPROXIMATE, manifest.factory, *size)
        near = Approximate(index, manifest.factory, manifest.effort, device)
        return cls(flat, near.with_unfound(np.array(manifest.unfound, np.int64), flat))

    @property
    def proposer(self) -> Proposer:
        """What proposes candidates."""
        return self._proposer

    @property
    def is_exact(self) -> bool:
        """Whether no better row can have been left out."""
        return self._proposer.tolerance is not None

    def exact(self) -> Self:
        """Return the same, searched exactly."""
        return type(self)(self._flat)

    def search(self, queries: Vectors, k: int) -> Matches:
        """Return the best min(k, rows) training rows of each query (Q, D), best first.

        Raises InputError when k < 1, or when the queries are not float32 (Q, D), finite and of
        unit norm; Damaged when FAISS gives no answer where there must be one.
        """
        self._check(queries, k)
        k = min(k, self.rows)
        wanted = min(k + MARGIN, self.rows)
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        at_once = min(QUERY_BLOCK, max(1, CANDIDATE_BLOCK // wanted))
        for block in sliced(len(queries), at_once):
            rows[block], scores[block] = self._search(queries[block], k, wanted)
        return Matches(rows, scores, np.zeros(rows.shape, np.int8))

    def search_views(self, queries: Vectors, k: int) -> Matches:
        """Return the best min(k, rows) training rows of queries seen in several views (Q, V, D).

        The score of a training row is that with the best view. A row that is among the best k of
        the query is among the best k of that view, too. Raises what `search` does.
        """
        count, views, dimension = queries.shape
        found = self.search(queries.reshape(-1, dimension), k)
        k = found.rows.shape[1]
        shape = count, views * k
        rows, scores = found.rows.reshape(shape), found.scores.reshape(shape)
        view = np.tile(np.repeat(np.arange(views, dtype=np.int8), k), (count, 1))
        # By row, and the best view of a row first.
        order = np.lexsort((view, -scores, rows), axis=-1)
        every = Matches(rows, scores, view).reordered(order)
        again = np.zeros(rows.shape, bool)
        again[:, 1:] = every.rows[:, 1:] == every.rows[:, :-1]
        best = np.lexsort((every.rows, -np.where(again, -np.inf, every.scores)), axis=-1)
        return every.reordered(best[:, :k])

    def vectors(self, start: int, stop: int) -> Vectors:
        """Return rows `start` to `stop` - 1 as the index holds them, (stop - start, D) float32."""
        return self._flat.vectors(start, stop)

    def vectors_at(self, rows: Ids) -> Vectors:
        """Return some rows (n, D)."""
        return self._flat.vectors_at(rows)

    def _check(self, queries: Vectors, k: int) -> None:
        if k < 1:
            raise InputError(f"k ({k}) must be >= 1")
        dimension = self.dimension
        if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dimension:
            raise InputError(
                f"queries are {queries.dtype} {queries.shape}, and this index needs "
                f"float32 (Q, {dimension})"
            )
        bad = first_not_unit(queries)
        if bad is not None:
            raise InputError(f"query {bad} is not finite with norm 1: it cannot be searched")

    def _search(self, queries: Vectors, k: int, wanted: int) -> tuple[Ids, Vectors]:
        queries = np.ascontiguousarray(queries)
        return (self._exactly if self.is_exact else self._nearly)(queries, k, wanted)

    def _nearly(self, queries: Vectors, k: int, wanted: int) -> tuple[Ids, Vectors]:
        """Return the best k of the rows that are proposed; where they are fewer, of all rows."""
        _, ids = self._proposer.propose(queries, wanted)
        if ids.max() >= self.rows:
            raise Damaged(f"FAISS found row {ids.max()} of {self.rows}. Build the index again.")
        rows, scores = best(ids, self._scored(queries, ids), k)
        few = np.flatnonzero((ids >= 0).sum(1) < k)
        if len(few):
            rows[few], scores[few] = self._exactly(queries[few], k, wanted)
        return rows, scores

    def _exactly(self, queries: Vectors, k: int, wanted: int) -> tuple[Ids, Vectors]:
        """Return the best k: of the best `wanted` by FAISS, and of more where that is unsure."""
        estimates, ids = self._flat.propose(queries, wanted)
        if ids.min() < 0:
            raise Damaged(f"FAISS found fewer than {wanted} of {self.rows} rows. Build it again.")
        rows, scores = best(ids, self._scored(queries, ids), k)
        if wanted == self.rows:
            return rows, scores
        # A row that FAISS left out may tie with, or beat by rounding, the last one kept.
        unsure = np.flatnonzero(estimates[:, -1] >= scores[:, -1] - self._flat.tolerance)
        if wanted < _DEEPEST and len(unsure):
            deeper = min(_DEEPER * wanted, self.rows)
            rows[unsure], scores[unsure] = self._exactly(queries[unsure], k, deeper)
            return rows, scores
        for query in unsure:
            rows[query], scores[query] = self._all_near(queries[query], scores[query, -1], k)
        return rows, scores

    def _all_near(self, query: Vectors, score: np.float32, k: int) -> tuple[Ids, Vectors]:
        """Return the best k of one query out of all the rows that may reach `score`."""
        ids = self._flat.near(query, float(score - self._flat.tolerance))
        rows, scores = best(ids[None], self._scored(query[None], ids[None]), k)
        return rows[0], scores[0]

    def _scored(self, queries: Vectors, ids: Ids) -> Vectors:
        """Score the proposed rows (Q, n) of each query; -inf where there is none."""
        owners, at = np.nonzero(ids >= 0)
        scores = np.full(ids.shape, -np.inf, np.float32)
        for block in sliced(len(owners), PAIR_BLOCK):
            pair = owners[block], at[block]
            scores[pair] = cosines(queries[pair[0]], self._flat.vectors_at(ids[pair]))
        return scores
