"""A store to its index: the exact one, and what proposes candidates faster where it is large.

store -> flat.faiss, approximate.faiss, index.json
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.approximate import Approximate
from deepssim_scan.index.config import FLAT, TYPES, SearchConfig
from deepssim_scan.index.faiss_io import empty, inverted, load_faiss, map_index, write_flat
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.kinds import FEWEST, factory, memory
from deepssim_scan.index.lists import write_lists
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.recall import Tuned, tuned
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.storage.files import HashingFile, replacing, sha256
from deepssim_scan.storage.layout import APPROXIMATE, INDEX, INDEX_MANIFEST
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.store import Store

_PER_LIST = 40  # rows for each list that the lists are fitted to
_FEWEST = 20_000  # rows that a quantiser is fitted to, where there are so many
_ROUNDS = 10  # of k-means
_SLICE = 8192  # rows that are added at once
_UNFOUND = 20  # one row in so many may be one that the index does not find by itself
_BY_LIST = "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFRaBitQ"
"""Inverted files that are written a list at a time."""


def build(
    store: Store,
    folder: Path,
    beside: Sequence[str] = (),
    config: SearchConfig | None = None,
    run: RunContext | None = None,
) -> IndexManifest:
    """Index every row of `store`, a shard at a time, and write the files of the index.

    `beside` names files of `folder` whose SHA-256 index.json is to record as well.

    Where there can be no index of the type asked for, it is flat, with a warning.

    Raises InputError for a store without rows; Damaged for rows that are not those that were
    embedded, or when a file does not read back as it was written.
    """
    config, run = config or SearchConfig(), run or RunContext()
    if store.rows == 0:
        raise InputError(f"{store.folder}: holds no embedded image, so there is nothing to index.")
    kind = factory(config.kind, store.rows, store.dimension, memory())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(folder / INDEX) as file:
        write_flat(file, _unit_rows(store), store.rows, store.dimension)
    flat = Flat(map_index(folder / INDEX, FLAT, store.rows, store.dimension), "cpu")
    (folder / APPROXIMATE).unlink(missing_ok=True)
    found = None if kind == FLAT else _approximate(folder, kind, flat, config.recall, run)
    if found is None:
        found, kind = Tuned(0, [], np.empty(0, np.int64)), FLAT
    names = (INDEX,) if kind == FLAT else (INDEX, APPROXIMATE)
    manifest = IndexManifest(
        encoder=store.manifest.encoder,
        store=store.digest,
        rows=store.rows,
        dimension=store.dimension,
        files={name: sha256(folder / name) for name in (*names, *beside)},
        faiss=load_faiss().__version__,
        factory=kind,
        recall=config.recall,
        effort=found.effort,
        curve=[asdict(each) for each in found.curve],
        unfound=found.unfound.tolist(),
    )
    write_json(folder / INDEX_MANIFEST, asdict(manifest))
    return manifest


def _approximate(
    folder: Path, kind: str, flat: Flat, recall: float, run: RunContext
) -> Tuned | None:
    """Write and tune an approximate index; None, with a warning, where there can be none."""
    try:
        if flat.rows < FEWEST:
            raise RuntimeError(f"it needs {FEWEST:,} images, and there are {flat.rows:,}")
        _write_approximate(folder / APPROXIMATE, kind, flat, run)
        index = map_index(folder / APPROXIMATE, kind, flat.rows, flat.dimension)
        found = tuned(Approximate(index, kind, 1, "cpu"), flat, recall, run.progress)
        if len(found.unfound) > flat.rows / _UNFOUND:
            raise RuntimeError(f"it does not find {len(found.unfound):,} images by themselves")
    except RuntimeError as error:
        (folder / APPROXIMATE).unlink(missing_ok=True)
        run.progress.warn(
            f"No index of type {kind!r} of these images: {_reason(error)}. The index is flat: its "
            "search is exact, and slower."
        )
        return None
    return found


def require_type(kind: str, dimension: int) -> None:
    """Raise InputError for a type of index that FAISS does not know."""
    try:
        if kind not in TYPES:
            empty(kind, dimension)
    except RuntimeError as error:
        raise InputError(
            f"FAISS knows no index of type {kind!r} ({_reason(error)}). Choose one of "
            f"{', '.join(TYPES)}, or another factory string."
        ) from error


def _reason(error: RuntimeError) -> str:
    """Return what FAISS says, without where in its source."""
    return str(error).rpartition("Error: ")[2].strip().rstrip(".")


def _unit_rows(store: Store) -> Iterator[Vectors]:
    """Give the rows of a store, a shard at a time; Damaged where one has not norm 1."""
    for first, rows in store.shards():
        bad = first_not_unit(rows)  # FAISS would take a NaN, and never find it
        if bad is not None:
            raise Damaged(f"{store.folder}: row {first + bad} has not norm 1. Build it again.")
        yield rows


def _write_approximate(path: Path, kind: str, flat: Flat, run: RunContext) -> None:
    """Train a quantiser, and write the file of an approximate index; RuntimeError of FAISS."""
    index = _trained(kind, flat)
    with replacing(path) as file:
        if type(index).__name__ in _BY_LIST:
            write_lists(file, index, flat, run, path.parent)
        else:
            _write_whole(file, index, flat, run)


def _trained(kind: str, flat: Flat) -> Any:
    """Make an index of a type without rows, fitted to some of them; RuntimeError of FAISS."""
    faiss, index = load_faiss(), empty(kind, flat.dimension)
    lists = inverted(index)
    if lists is not None:
        if lists.nlist < 1:
            raise RuntimeError("an inverted file needs a list.")
        lists.cp.niter, lists.cp.min_points_per_centroid = _ROUNDS, 1
    if isinstance(lists, faiss.IndexIVFPQ):
        lists.do_polysemous_training = False  # a minute, for another kind of search
        codes = lists.pq.cp
        codes.niter, codes.min_points_per_centroid = _ROUNDS, 1
        codes.max_points_per_centroid = _PER_LIST
    some = min(flat.rows, max(_FEWEST, _PER_LIST * (0 if lists is None else lists.nlist)))
    rows = np.random.default_rng(0).choice(flat.rows, some, replace=False)
    index.train(flat.vectors_at(np.sort(rows)))
    return index


def _write_whole(file: HashingFile, index: Any, flat: Flat, run: RunContext) -> None:
    """Add the rows to an index in memory, by one thread so that its bytes are the same again."""
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for part in sliced(flat.rows, _SLICE):
            index.add(flat.vectors(part.start, part.stop))
            run.progress("rows put into the index", part.stop, flat.rows)
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
