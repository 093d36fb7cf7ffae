"""Each query's nearest training images, through a FAISS flat inner-product index of a store.

    store -> folder: flat.faiss, index.json
    queries (Q, D), or test-time views (Q, V, D), float32, k -> Matches: rows and scores (Q, k)

Both sides are unit-norm, so the inner product is the cosine, in [-1, 1]. FAISS only proposes
candidates: its last bits change with the batch and the threads. The scores are computed again
from the stored rows, in float64, summed over the dimensions in order and rounded once to
float32; they sort by score descending, then by training row. So the matches depend on the
queries and the store, and on nothing else. With fewer than k training images, k shrinks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from deepssim_scan.errors import Damaged, InputError, StoreMismatch
from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.faiss_io import load_faiss, map_index, on_gpu, write_flat
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.rescore import Ids, Matches, best, cosines
from deepssim_scan.storage.files import check_sha256, replacing, sha256
from deepssim_scan.storage.layout import INDEX, INDEX_MANIFEST
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.store import Store

Found = tuple[Vectors, Ids]

MARGIN = 16  # candidates asked for beyond k, so that few queries need a second look
GPU_MAX_K = 2048
QUERY_BLOCK = 1024
CANDIDATE_BLOCK = 2**20  # ids and scores that FAISS returns at a time
_DEEPER, _DEEPEST = 4, 1024  # times as many candidates where they were too few; until when
PAIR_BLOCK = 2**13  # pairs of rows scored at a time: 16 MiB a side at D 256


def build(store: Store, folder: Path, beside: Sequence[str] = ()) -> IndexManifest:
    """Index every row of `store`, a shard at a time, and write flat.faiss and index.json.

    `beside` names files of `folder` whose SHA-256 index.json is to record as well.

    Raises InputError for a store without rows, Damaged for rows that are not those that were
    embedded, or when flat.faiss does not read back as FAISS wrote it.
    """
    if store.rows == 0:
        raise InputError(f"{store.folder}: holds no embedded image, so there is nothing to index.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(folder / INDEX) as file:
        write_flat(file, _unit_rows(store), store.rows, store.dimension)
    manifest = IndexManifest(
        encoder=store.manifest.encoder,
        store=store.digest,
        rows=store.rows,
        dimension=store.dimension,
        files={name: sha256(folder / name) for name in (INDEX, *beside)},
        faiss=load_faiss().__version__,
    )
    map_index(folder / INDEX, manifest)
    write_json(folder / INDEX_MANIFEST, asdict(manifest))
    return manifest


def _unit_rows(store: Store) -> Iterator[Vectors]:
    """Give the rows of a store, a shard at a time; Damaged where one has not norm 1."""
    for first, rows in store.shards():
        bad = first_not_unit(rows)  # FAISS would take a NaN, and never find it
        if bad is not None:
            raise Damaged(f"{store.folder}: row {first + bad} has not norm 1. Build it again.")
        yield rows


class TrainingIndex:
    """An index opened for search, verified to be of the store and the bytes that were built."""

    def __init__(self, index: Any, manifest: IndexManifest, device: str) -> None:
        """Use `TrainingIndex.open`."""
        self.manifest, self.rows = manifest, manifest.rows
        self._index = index
        self._gpu = on_gpu(index) if device == "cuda" else None
        # Bound of what float32 sums of D products, and the one rounding of ours, can be off by.
        self._tolerance = np.float32((manifest.dimension + 8) * 2.0**-23)

    @classmethod
    def open(cls, folder: Path, store: Store, device: str = "cpu") -> Self:
        """Open the index of `store` in `folder`; "cuda" uses a GPU when FAISS has one.

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
        check_sha256(folder / INDEX, manifest.files[INDEX])
        return cls(map_index(folder / INDEX, manifest), manifest, device)

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
        for block in sliced(len(queries), min(QUERY_BLOCK, max(1, CANDIDATE_BLOCK // wanted))):
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
        return cast("Vectors", self._index.reconstruct_n(start, stop - start))

    def _check(self, queries: Vectors, k: int) -> None:
        if k < 1:
            raise InputError(f"k ({k}) must be >= 1")
        dimension = self.manifest.dimension
        if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dimension:
            raise InputError(
                f"queries are {queries.dtype} {queries.shape}, and this index needs "
                f"float32 (Q, {dimension})"
            )
        bad = first_not_unit(queries)
        if bad is not None:
            raise InputError(f"query {bad} is not finite with norm 1: it cannot be searched")

    def _search(self, queries: Vectors, k: int, wanted: int) -> tuple[Ids, Vectors]:
        """Search one block: the best `wanted` by FAISS, and a second look where that is unsure."""
        queries = np.ascontiguousarray(queries)
        estimates, ids = self._candidates(queries, wanted)
        if ids.min() < 0:
            raise Damaged(f"FAISS found fewer than {wanted} of {self.rows} rows. Build it again.")
        owners = np.repeat(np.arange(len(queries)), wanted)
        scores = self._scores(queries, owners, ids.ravel()).reshape(ids.shape)
        rows, scores = best(ids, scores, k)
        if wanted == self.rows:
            return rows, scores
        # A row that FAISS left out may tie with, or beat by rounding, the last one kept.
        unsure = np.flatnonzero(estimates[:, -1] >= scores[:, -1] - self._tolerance)
        if wanted < _DEEPEST and len(unsure):
            deeper = min(_DEEPER * wanted, self.rows)
            rows[unsure], scores[unsure] = self._search(queries[unsure], k, deeper)
            return rows, scores
        for query in unsure:
            rows[query], scores[query] = self._all_near(queries[query], scores[query, -1], k)
        return rows, scores

    def _candidates(self, queries: Vectors, wanted: int) -> Found:
        """Return FAISS's own scores and rows, (Q, wanted) each, from the GPU where it can."""
        if self._gpu is not None and wanted <= GPU_MAX_K:
            try:
                return cast("Found", self._gpu.search(queries, wanted))
            except RuntimeError:  # out of memory: the CPU gives the same matches
                self._gpu = None
        return cast("Found", self._index.search(queries, wanted))

    def _all_near(self, query: Vectors, score: np.float32, k: int) -> tuple[Ids, Vectors]:
        """Return the best k of one query out of all the rows that may reach `score`."""
        radius = float(score - self._tolerance)
        _, _, ids = self._index.range_search(query[None], radius)
        owners = np.zeros(len(ids), np.int64)
        return best(ids, self._scores(query[None], owners, ids), k)

    def _scores(self, queries: Vectors, owners: Ids, ids: Ids) -> Vectors:
        """Score the pairs (queries[owners[i]], stored row ids[i]), a block at a time."""
        scores = np.empty(len(ids), np.float32)
        for block in sliced(len(ids), PAIR_BLOCK):
            stored = self._index.reconstruct_batch(ids[block])
            scores[block] = cosines(queries[owners[block]], stored)
        return scores
