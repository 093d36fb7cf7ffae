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
from deepssim_scan.index.kinds import factory, memory
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
_SLICE = 65_536  # rows that are added at once


def build(
    store: Store,
    folder: Path,
    beside: Sequence[str] = (),
    config: SearchConfig | None = None,
    run: RunContext | None = None,
) -> IndexManifest:
    """Index every row of `store`, a shard at a time, and write the files of the index.

    `beside` names files of `folder` whose SHA-256 index.json is to record as well.

    Raises InputError for a store without rows, or a type of index that FAISS does not know or that
    needs more rows; Damaged for rows that are not those that were embedded, or when a file does
    not read back as it was written.
    """
    config, run = config or SearchConfig(), run or RunContext()
    if store.rows == 0:
        raise InputError(f"{store.folder}: holds no embedded image, so there is nothing to index.")
    kind = factory(config.kind, store.rows, store.dimension, memory())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(folder / INDEX) as file:
        write_flat(file, _unit_rows(store), store.rows, store.dimension)
    size = store.rows, store.dimension
    flat = Flat(map_index(folder / INDEX, FLAT, *size), "cpu")
    found = Tuned(0, [])
    (folder / APPROXIMATE).unlink(missing_ok=True)
    if kind != FLAT:
        _write_approximate(folder / APPROXIMATE, kind, flat, run)
        index = map_index(folder / APPROXIMATE, kind, *size)
        found = tuned(Approximate(index, kind, 0, "cpu"), flat, config.recall, run.progress)
    names = (INDEX, APPROXIMATE) if kind != FLAT else (INDEX,)
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
    )
    write_json(folder / INDEX_MANIFEST, asdict(manifest))
    return manifest


def require_type(kind: str, dimension: int) -> None:
    """Raise InputError for a type of index that FAISS does not know."""
    try:
        if kind not in TYPES:
            empty(kind, dimension)
    except RuntimeError as error:
        raise _unusable(kind, error) from error


def _unusable(kind: str, error: RuntimeError) -> InputError:
    reason = str(error).rpartition("Error: ")[2]
    return InputError(
        f"FAISS makes no index of type {kind!r} ({reason}). Choose one of {', '.join(TYPES)}, or a "
        "factory string that it knows."
    )


def _unit_rows(store: Store) -> Iterator[Vectors]:
    """Give the rows of a store, a shard at a time; Damaged where one has not norm 1."""
    for first, rows in store.shards():
        bad = first_not_unit(rows)  # FAISS would take a NaN, and never find it
        if bad is not None:
            raise Damaged(f"{store.folder}: row {first + bad} has not norm 1. Build it again.")
        yield rows


def _write_approximate(path: Path, kind: str, flat: Flat, run: RunContext) -> None:
    """Train a quantiser, and write the file of an approximate index.

    Raises InputError for a type that FAISS does not know, or cannot make of these rows.
    """
    try:
        index = _trained(kind, flat)
        with replacing(path) as file:
            if _has_lists(index):
                write_lists(file, index, flat, run, path.parent)
            else:
                _write_whole(file, index, flat)
    except RuntimeError as error:
        raise _unusable(kind, error) from error


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


def _has_lists(index: Any) -> bool:
    """Tell whether an index is an inverted file of which the lists can be written one by one."""
    faiss = load_faiss()
    plain = isinstance(index, faiss.IndexIVF)
    return plain and isinstance(
        faiss.downcast_InvertedLists(index.invlists), faiss.ArrayInvertedLists
    )


def _write_whole(file: HashingFile, index: Any, flat: Flat) -> None:
    """Add the rows to an index in memory, by one thread so that its bytes are the same again."""
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    for part in sliced(flat.rows, _SLICE):
        index.add(flat.vectors(part.start, part.stop))
    faiss.omp_set_num_threads(threads)
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
