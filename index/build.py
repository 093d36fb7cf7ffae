"""A store to its index: the exact one, and what proposes candidates faster where it is large.

store -> flat.faiss, reduced.faiss, directions.npy, approximate.faiss, index.json
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.index.approximate import Approximate
from deepssim_scan.index.config import FLAT, TYPES, SearchConfig
from deepssim_scan.index.faiss_io import empty, load_faiss, map_index, write_flat
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.kinds import FEWEST, factory, memory
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.recall import Tuned, tuned
from deepssim_scan.index.reduced import Directions, Reduced, reduced_rows
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.index.train import write_approximate
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.storage.files import replacing, sha256
from deepssim_scan.storage.layout import (
    APPROXIMATE,
    DIRECTIONS,
    INDEX,
    INDEX_MANIFEST,
    REDUCED,
    SEARCHED,
)
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.store import Store

_REDUCED_FROM = 50_000  # rows, of which reduced ones are made
_FITTED = 20_000  # rows that the directions are fitted to
_PARTS = 4, 2  # of the dimensions, which reduced rows may have: the first that suffices
_TRIED, _SETTLED = 1000, 0.9  # rows that are searched by bounds, and the share that must suffice
_MATCHES = 10  # that are asked for then
_FATAL = re.compile(r"HNSW0*[01](?!\d)|NSG")  # ends the process; may never end, of like images
_UNFOUND = 20  # one row in so many may be one that the index does not find by itself


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
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(folder / INDEX) as file:
        write_flat(file, _unit_rows(store), store.rows, store.dimension)
    flat = Flat.open(folder / INDEX, store.rows, store.dimension)
    exact = TrainingIndex(flat, _reduced(folder, flat, run))
    kind, found = _approximate(folder / APPROXIMATE, store, exact, config, run)
    names = [name for name in SEARCHED if (folder / name).exists()]
    manifest = IndexManifest(
        encoder=store.manifest.encoder,
        store=store.digest,
        rows=store.rows,
        dimension=store.dimension,
        files={name: sha256(folder / name) for name in (*names, *beside)},
        faiss=load_faiss().__version__,
        factory=kind,
        reduced=exact.reduced.rows.dimension if exact.reduced else 0,
        recall=config.recall,
        effort=found.effort,
        curve=[asdict(each) for each in found.curve],
        unfound=found.unfound.tolist(),
    )
    write_json(folder / INDEX_MANIFEST, asdict(manifest))
    return manifest


def _reduced(folder: Path, flat: Flat, run: RunContext) -> Reduced | None:
    """Write reduced rows, with as few numbers as suffice; None where they would not pay."""
    ours = folder / REDUCED, folder / DIRECTIONS
    for path in ours:
        path.unlink(missing_ok=True)
    if flat.rows < _REDUCED_FROM:
        return None
    rows = np.random.default_rng(0).permutation(flat.rows)[:_FITTED]
    some = flat.vectors_at(np.sort(rows))
    for dimension in (max(2, flat.dimension // part) for part in _PARTS):
        directions = Directions.fitted(some, dimension)
        with replacing(folder / REDUCED) as file:
            write_flat(file, reduced_rows(flat, directions, run), flat.rows, dimension)
        reduced = Reduced(Flat.open(folder / REDUCED, flat.rows, dimension), directions)
        settled = TrainingIndex(flat).settled(reduced, flat.vectors_at(rows[:_TRIED]), _MATCHES)
        if settled >= _SETTLED * min(_TRIED, len(rows)):
            directions.write(folder / DIRECTIONS)
            return reduced
        (folder / REDUCED).unlink()
    return None


def _approximate(
    path: Path, store: Store, exact: TrainingIndex, config: SearchConfig, run: RunContext
) -> tuple[str, Tuned]:
    """Write and tune an approximate index, or none, with a warning, where there can be none."""
    path.unlink(missing_ok=True)
    flat, none = exact.narrow, Tuned(0, [], np.empty(0, np.int64))
    kind = factory(config.kind, flat.rows, flat.dimension, memory())
    if kind == FLAT:
        return kind, none
    try:
        if flat.rows < FEWEST:
            raise RuntimeError(f"it needs {FEWEST:,} images, and there are {flat.rows:,}")
        write_approximate(path, kind, flat, run)
        index = map_index(path, kind, flat.rows, flat.dimension)
        near = Approximate(index, kind, 1, "cpu", exact.reduced)
        subjects = store.subject_numbers()
        found = tuned(near, exact, subjects, config.recall, run.progress)
        if len(found.unfound) > flat.rows / _UNFOUND:
            raise RuntimeError(f"it does not find {len(found.unfound):,} images by themselves")
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        run.progress.warn(
            f"No index of type {kind!r} of these images: {_reason(error)}. The index is flat: its "
            "search is exact, and slower."
        )
        return FLAT, none
    return kind, found


def require_type(kind: str, dimension: int) -> None:
    """Raise InputError for a type of index that FAISS does not know."""
    try:
        if _FATAL.search(kind):
            raise RuntimeError("a graph is HNSW, and needs two neighbours")
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
