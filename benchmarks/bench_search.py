"""Nearest training images: our search beside bare FAISS and brute force, in queries a second.

Ours is `TrainingIndex.search` on a store and an index on disk: FAISS proposes k + 16 candidates,
and exact float64 sums decide. Bare FAISS is `IndexFlatIP.search`, brute force is NumPy's float32
matrix product and `argpartition`, both with the same k. Training rows are random directions;
half of the queries are training rows with noise (copies), half are non-members.

With few queries a call (FAISS 1.15.1: under 128,000 / D) FAISS takes them one by one and not as a
matrix product, which is several times slower where rows are many.

    python benchmarks/bench_search.py --training 100000 --queries 2000
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from harness import console, parser, rates, seconds, show, write
from numpy.typing import NDArray

from deepssim_scan.index.search import TrainingIndex, build
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

OURS, BARE, BRUTE = "TrainingIndex.search", "bare faiss IndexFlatIP", "brute force, numpy"
BLOCK = 256  # queries that brute force takes at a time: 100 MB of scores at 100,000 rows
NOISE = 0.5  # norm of what is added to a training row to make a copy


def main() -> None:
    """Build, measure, print and write."""
    options = _options()
    if options.threads is not None:
        faiss.omp_set_num_threads(options.threads)
        torch.set_num_threads(options.threads)
    rng = np.random.default_rng(options.seed)
    training = _unit(rng.standard_normal((options.training, options.dimension), np.float32))
    queries = make_queries(rng, training, options.queries)
    with tempfile.TemporaryDirectory() as folder:
        index = build_on_disk(Path(folder), training)
    bare = faiss.IndexFlatIP(options.dimension)
    bare.add(training)
    sides = {
        OURS: lambda: index.search(queries, options.k).rows,
        BARE: lambda: bare.search(queries, options.k)[1],
        BRUTE: lambda: np.concatenate(list(brute_force(queries, training, options.k))),
    }
    agreement = agree({name: side() for name, side in sides.items()})
    measured = rates(seconds(sides, options.repeats), len(queries), "queries")
    ours = measured[OURS].median
    ratios = {
        f"{OURS} / {BRUTE}": ours / measured[BRUTE].median,
        f"{OURS} / {BARE}": ours / measured[BARE].median,
    }
    title = f"{options.training:,} training rows of {options.dimension}, k {options.k}"
    show(title, measured, ratios)
    faiss_threads = faiss.omp_get_max_threads()
    write("search", options, measured, ratios, agreement=agreement, faiss_threads=faiss_threads)


def make_queries(rng: np.random.Generator, training: Vectors, count: int) -> Vectors:
    """Make queries (count, D): noisy training rows, then random directions."""
    dimension = training.shape[1]
    queries = rng.standard_normal((count, dimension), np.float32)
    sources = training[rng.integers(0, len(training), count // 2)]
    queries[: len(sources)] *= NOISE / dimension**0.5
    queries[: len(sources)] += sources
    return _unit(queries)


def build_on_disk(folder: Path, training: Vectors) -> TrainingIndex:
    """Write the rows to a store, index it, and open the index, all as `build-index` does."""
    with StoreWriter(folder / "store", StoreManifest("0" * 64, training.shape[1])) as writer:
        records = [
            ImageRecord(f"{row}.png", "", "", 1, 1, 1, "", "L", "") for row in range(len(training))
        ]
        writer.add(records, training)
        writer.finish(len(training))
    with Store.open(folder / "store") as store:
        build(store, folder)
        return TrainingIndex.open(folder, store)


def brute_force(queries: Vectors, training: Vectors, k: int) -> Iterator[NDArray[np.int64]]:
    """Give each block of queries its best k rows (n, k), best first."""
    k = min(k, len(training))
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ training.T
        best = np.argpartition(scores, len(training) - k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        yield np.take_along_axis(best, order, 1)


def agree(found: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Return the share of ranks where ours names the row that another does."""
    shares = {}
    for other in (BRUTE, BARE):
        share = float((found[OURS] == found[other]).mean())
        shares[f"ids as {other}"] = share
        console.print(f"ids as {other}: {share:.4%} of {found[OURS].size:,}")
    return shares


def _unit(rows: Vectors) -> Vectors:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _options() -> argparse.Namespace:
    sizes = {"training": 100_000, "queries": 2_000, "dimension": 256, "k": 5, "repeats": 5}
    made = parser(__doc__, sizes)
    made.add_argument("--threads", type=int, help="of FAISS (all cores); NumPy has its own")
    return made.parse_args()


if __name__ == "__main__":
    main()
