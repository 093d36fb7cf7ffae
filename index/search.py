"""Each query's nearest training images, through the index of a store.

    folder: flat.faiss, reduced.faiss, directions.npy, approximate.faiss, index.json
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
from deepssim_scan.index.reduced import Reduced
from deepssim_scan.index.rescore import Ids, Matches
from deepssim_scan.storage.files import check_sha256
from deepssim_scan.storage.layout import APPROXIMATE, INDEX
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.store import Store

MARGIN = 16  # candidates asked for beyond k, so that few queries need a second look
QUERY_BLOCK = 1024
CANDIDATE_BLOCK = 2**20  # ids and scores that FAISS returns at a time
_DEEPER, _DEEPEST = 4, 2048  # times as many candidates where they were too few; until when


class TrainingIndex:
    """An index opened for search, verified to be of the store and the bytes that were built."""

    def __init__(
        self, flat: Flat, reduced: Reduced | None = None, near: Approximate | None = None
    ) -> None:
        """Score the rows of an exact index, which proposes them as well if nothing else does.

        `reduced` proposes them to an exact search, in less time; `near` makes it approximate.
        """
        self.flat, self.reduced, self._near = flat, reduced, near
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
        flat = Flat.open(folder / INDEX, *size, device)
        reduced = Reduced.open(folder, manifest)
        if exact or manifest.factory == FLAT:
            return cls(flat, reduced)
        check_sha256(folder / APPROXIMATE, manifest.files[APPROXIMATE])
        size = manifest.rows, manifest.reduced or manifest.dimension
        index = map_index(folder / APPROXIMATE, manifest.factory, *size)
        near = Approximate(index, manifest.factory, manifest.effort, device, reduced)
        return cls(flat, reduced, near.with_unfound(np.array(manifest.unfound, np.int64), flat))

    @property
    def proposer(self) -> Proposer:
        """What proposes candidates."""
        return self._near or self.flat

    @property
    def is_exact(self) -> bool:
        """Whether no better row can have been left out."""
        return self._near is None

    @property
    def narrow(self) -> Flat:
        """The rows with the fewest numbers: the reduced ones, where there are any."""
        return self.flat if self.reduced is None else self.reduced.rows

    def settled(self, reduced: Reduced, queries: Vectors, k: int) -> int:
        """Count the queries whose best k the bounds of some reduced rows suffice to tell."""
        unsure = self._of(reduced, queries, k, min(_wider(k), self.rows))[2]
        return len(queries) - len(unsure)

    def exact(self) -> Self:
        """Return the same, searched exactly."""
        return type(self)(self.flat, self.reduced)

    def search(self, queries: Vectors, k: int) -> Matches:
        """Return the best min(k, rows) training rows of each query (Q, D), best first.

        Raises InputError when k < 1, or when the queries are not float32 (Q, D), finite and of
        unit norm; Damaged when FAISS gives no answer where there must be one.
        """
        self._check(queries, k)
        k = min(k, self.rows)
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        at_once = min(QUERY_BLOCK, max(1, CANDIDATE_BLOCK // _wider(k)))
        for block in sliced(len(queries), at_once):
            rows[block], scores[block] = self._search(queries[block], k)
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
        return self.flat.vectors(start, stop)

    def vectors_at(self, rows: Ids) -> Vectors:
        """Return some rows (n, D)."""
        return self.flat.vectors_at(rows)

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

    def _search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        queries = np.ascontiguousarray(queries)
        if self._near is None:
            return self._exactly(queries, k)
        _, ids = self._near.propose(queries, min(k + MARGIN, self.rows))
        if ids.max() >= self.rows:
            raise Damaged(f"FAISS found row {ids.max()} of {self.rows}. Build the index again.")
        rows, scores = self.flat.best_of(queries, ids, k)
        few = np.flatnonzero((ids >= 0).sum(1) < k)
        if len(few):
            rows[few], scores[few] = self._exactly(queries[few], k)
        return rows, scores

    def _exactly(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """Return the best k of all rows: of those that are proposed, if no other can be better."""
        if self.reduced is None or self.flat.on_gpu:
            return self._fully(queries, k, k + MARGIN)
        return self._by_bounds(self.reduced, queries, k, _wider(k))

    def _by_bounds(
        self, reduced: Reduced, queries: Vectors, k: int, wanted: int
    ) -> tuple[Ids, Vectors]:
        """Return the best k of all rows, of which as few are scored as tell that."""
        if wanted > min(_DEEPEST, self.rows):
            return self._fully(queries, k, k + MARGIN)
        rows, scores, unsure = self._of(reduced, queries, k, wanted)
        if len(unsure):
            deeper = self._by_bounds(reduced, queries[unsure], k, _DEEPER * wanted)
            rows[unsure], scores[unsure] = deeper
        return rows, scores

    def _fully(self, queries: Vectors, k: int, wanted: int) -> tuple[Ids, Vectors]:
        """Return the best k of all rows, by all of their numbers."""
        rows, scores, unsure = self._of(self.flat, queries, k, min(wanted, self.rows))
        if wanted < _DEEPEST and len(unsure):
            rows[unsure], scores[unsure] = self._fully(queries[unsure], k, _DEEPER * wanted)
            return rows, scores
        for query in unsure:
            rows[query], scores[query] = self._all_near(queries[query], scores[query, -1], k)
        return rows, scores

    def _of(
        self, proposer: Flat | Reduced, queries: Vectors, k: int, wanted: int
    ) -> tuple[Ids, Vectors, Ids]:
        """Return the best k of the rows that are proposed, and the queries that others may suit.

        A row that was left out may tie with, or beat by rounding, the last one kept.
        """
        bounds, ids = proposer.propose(queries, wanted)
        if ids.min() < 0:
            raise Damaged(f"FAISS found fewer than {wanted} of {self.rows} rows. Build it again.")
        rows, scores = self.flat.best_of(queries, ids, k)
        unsure = bounds[:, -1] >= scores[:, -1] - proposer.tolerance
        return rows, scores, np.flatnonzero(unsure & (wanted < self.rows))

    def _all_near(self, query: Vectors, score: np.float32, k: int) -> tuple[Ids, Vectors]:
        """Return the best k of one query out of all the rows that may reach `score`."""
        ids = self.flat.near(query, float(score - self.flat.tolerance))
        rows, scores = self.flat.best_of(query[None], ids[None], k)
        return rows[0], scores[0]


def _wider(k: int) -> int:
    """Return how many rows are proposed by their bounds: nearly always enough."""
    return 8 * k + 40
