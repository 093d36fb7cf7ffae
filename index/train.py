"""An approximate index: its quantisers fitted to some rows, and its file written with all of them.

factory string, rows -> approximate.faiss
"""

from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.faiss_io import empty, inverted, load_faiss
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.lists import write_lists
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.storage.files import HashingFile, replacing

_PER_LIST = 40  # rows for each list that the lists are fitted to
_FEWEST = 20_000  # rows that a quantiser is fitted to, where there are so many
_ROUNDS = 10  # of k-means
_SLICE = 8192  # rows that are added at once
_BY_LIST = "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFRaBitQ"
"""Inverted files that are written a list at a time."""


def write_approximate(path: Path, kind: str, flat: Flat, run: RunContext) -> None:
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
