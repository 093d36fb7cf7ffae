"""FAISS: imported when it is first needed, its files read and written, its copy on a GPU."""

from pathlib import Path
from typing import Any

from deepssim_scan.errors import Damaged, DependencyMissing
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.storage.files import HashingFile
from deepssim_scan.storage.layout import INDEX_MANIFEST

BLAS_QUERIES = 20  # queries from which FAISS multiplies matrices


def write_index(index: Any, file: HashingFile) -> None:
    """Write through Python, whose writes raise when the disk is full, and to any file name."""
    failed: list[OSError] = []

    def write(block: bytes) -> int:
        try:
            return file.write(block)
        except OSError as error:  # which FAISS would lose
            failed.append(error)
            return 0

    faiss = load_faiss()
    try:
        faiss.write_index(index, faiss.PyCallbackIOWriter(write))
    except RuntimeError as error:
        raise (failed[0] if failed else error) from error


def read_index(path: Path, manifest: IndexManifest) -> Any:
    """Read an index file; Damaged when it is not the flat index that `manifest` describes."""
    faiss = load_faiss()
    try:
        with path.open("rb") as file:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except RuntimeError as error:
        raise Damaged(f"{path}: not an index that FAISS can read. Build it again.") from error
    found = (type(index), index.ntotal, index.d)
    if found != (faiss.IndexFlatIP, manifest.rows, manifest.dimension):
        raise Damaged(
            f"{path}: holds {found[0].__name__} of {found[1:]} rows and dimensions, and "
            f"{INDEX_MANIFEST} says IndexFlatIP of {(manifest.rows, manifest.dimension)}. "
            "Build it again."
        )
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
