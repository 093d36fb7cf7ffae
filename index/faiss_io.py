"""FAISS: imported when it is first needed, its files written and mapped, its copy on a GPU."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan.errors import Damaged, DependencyMissing
from deepssim_scan.index.config import FLAT
from deepssim_scan.storage.files import HashingFile
from deepssim_scan.storage.layout import INDEX_MANIFEST
from deepssim_scan.store.array import Vectors

BLAS_QUERIES = 20  # queries from which FAISS multiplies matrices
_ROWS_AT, _COUNT = 8, 8  # byte of an index at which its rows are counted; bytes of a count


def write_flat(file: HashingFile, shards: Iterable[Vectors], rows: int, dimension: int) -> None:
    """Write a flat inner-product index of `rows` rows, given a shard (n, D) at a time.

    Nothing but a shard is in memory. The head is what FAISS writes of an index without rows, with
    the counts of rows and of numbers filled in.
    """
    head = serialised(empty(FLAT, dimension))
    file.write(counted(head, rows)[:-_COUNT] + struct.pack("<Q", rows * dimension))
    for shard in shards:
        file.write(np.ascontiguousarray(shard, "<f4").data)


def serialised(index: Any) -> bytes:
    """Return the bytes of an index.

    By callbacks: where SimpleITK is imported after FAISS, the vectors of `faiss.serialize_index`
    are taken for SimpleITK's, because both are made by SWIG.
    """
    faiss, stream = load_faiss(), io.BytesIO()
    faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))
    return stream.getvalue()


def deserialised(data: bytes) -> Any:
    """Return the index of the bytes that `serialised` gave."""
    faiss = load_faiss()
    return faiss.read_index(faiss.PyCallbackIOReader(io.BytesIO(data).read))


def counted(head: bytes, rows: int) -> bytes:
    """Return the head of an index without rows, with their count filled in."""
    return head[:_ROWS_AT] + struct.pack("<q", rows) + head[_ROWS_AT + _COUNT :]


def map_index(path: Path, kind: str, rows: int, dimension: int) -> Any:
    """Map an index file into memory, of which the system reads what is searched.

    Raises Damaged when it is not the index that index.json describes.
    """
    faiss = load_faiss()
    try:
        with path.open("rb") as file:  # by its descriptor: FAISS takes no name that is not UTF-8
            index = faiss.read_index(f"/dev/fd/{file.fileno()}", faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise Damaged(f"{path}: not an index that FAISS can read. Build it again.") from error
    wanted = type(empty(kind, dimension))
    if (type(index), index.ntotal, index.d) != (wanted, rows, dimension):
        raise Damaged(
            f"{path}: holds {type(index).__name__} of {(index.ntotal, index.d)} rows and "
            f"dimensions, and {INDEX_MANIFEST} says {wanted.__name__} of {(rows, dimension)}. "
            "Build it again."
        )
    return index


def empty(kind: str, dimension: int) -> Any:
    """Make an index without rows; RuntimeError for a factory string that FAISS does not know."""
    faiss = load_faiss()
    if kind == FLAT:
        return faiss.IndexFlatIP(dimension)
    return faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)


def inverted(index: Any) -> Any:
    """Return the inverted file that an index is, or has after a transform of its rows, or None."""
    faiss = load_faiss()
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def innermost(index: Any) -> Any:
    """Return the index that is searched after a transform of its rows, or before a refinement."""
    faiss = load_faiss()
    while isinstance(index, faiss.IndexPreTransform | faiss.IndexRefine):
        before = isinstance(index, faiss.IndexPreTransform)
        index = faiss.downcast_index(index.index if before else index.base_index)
    return index


def on_gpu(index: Any) -> Any:
    """Return a copy of `index` on the first GPU, or None when FAISS has no GPU or no room."""
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:
        return None


def load_faiss() -> Any:
    """Import FAISS when it is first needed: it is not among the base dependencies."""
    try:
        import faiss
    except ImportError as error:
        raise DependencyMissing(
            "The search needs FAISS, which is not installed. Install one of the two extras: "
            "pip install 'deepssim-scan[cpu]' or pip install 'deepssim-scan[gpu]'."
        ) from error
    # Matrix products for small blocks of queries too: by default FAISS 1.15 takes the slow way
    # below some 500 queries of 256 dimensions, which costs several times as long.
    faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES
    return faiss
