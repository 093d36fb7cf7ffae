"""Types of index beside bare FAISS: time to build, bytes, queries a second, and what is found.

Rows are embeddings of real images and of pseudo-people (`rows.py`); no row is a changed copy of
another. Two kinds of queries are searched: rows that were left out, of other images (non-members),
and changed copies of images of some rows. Ours is `TrainingIndex.search` on an index on disk, whose
candidates are scored again in float64; bare FAISS is `IndexFlatIP.search` in memory. What is found
is compared with the exact search. Lower bounds that samples of 1,000 state, drawn with replacement,
are held against the share of all queries, a hundred times. Of the exact search it tells what share
of the rows the bounds of reduced rows leave, which may be among the first k.

    python benchmarks/bench_search.py --rows DIR --types flat hnsw ivf ivfpq
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from harness import console, parser, write
from numpy.typing import NDArray
from rich.table import Table
from rows import read, read_copies

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.reduced import Directions
from deepssim_scan.index.rescore import Ids
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.storage.layout import APPROXIMATE, INDEX
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

BARE = "bare faiss IndexFlatIP"
DRAWS, DRAWN = 100, 1000  # samples of queries, by which recall is stated
DIMENSION = 256
BOUNDED, FITTED = 200, 20_000  # queries and rows by which bounds are told


def main() -> None:
    """Build, measure, print and write."""
    options = _options()
    training = read(options.rows, slice(options.blocks - 1))
    others = read(options.rows, slice(options.blocks - 1, options.blocks))[: options.queries]
    copies, _ = read_copies(options.rows, slice(options.blocks - 1))
    copies = copies[np.random.default_rng(options.seed).permutation(len(copies))[: options.queries]]
    bare, matches = _bare(training, others, options.k)
    found = {BARE: bare}
    with (
        tempfile.TemporaryDirectory(dir=options.work) as name,
        stored(Path(name), [training]) as store,
    ):
        del training
        for kind in options.types:
            found[kind] = _type(Path(name) / "index", store, kind, (others, copies), options)
            if found[kind]["factory"] == "Flat":
                found[kind]["left by bounds"] = _left(store, others, options.k)
                search = TrainingIndex.open(Path(name) / "index", store)
                ours = search.search(others, options.k).rows
                found[kind]["rows_that_bare_finds"] = _share(ours, matches)
            found[kind]["of bare"] = found[kind]["queries_s"] / found[BARE]["queries_s"]
            console.print(kind, found[kind])
        rows = store.rows
    _show(found, rows)
    write(f"search_{options.name}", options, {}, {}, training=rows, types=found)


@contextmanager
def stored(folder: Path, blocks: Iterable[Vectors]) -> Iterator[Store]:
    """Write blocks of rows to a store, and open it."""
    count, facts = 0, ("", "", 1, 1, 1, "", "L", "")
    with StoreWriter(folder / "store", StoreManifest("0" * 64, DIMENSION)) as writer:
        for rows in blocks:
            numbers = range(count, count + len(rows))
            writer.add([ImageRecord(f"{number}.png", *facts) for number in numbers], rows)
            count += len(rows)
        writer.finish(count)
    with Store.open(folder / "store") as store:
        yield store


def _bare(training: Vectors, queries: Vectors, k: int) -> tuple[dict[str, Any], Ids]:
    index = faiss.IndexFlatIP(training.shape[1])
    index.add(training)
    seconds = _least(lambda: index.search(queries, k))
    told = {"queries_s": len(queries) / seconds, "bytes_a_row": 4.0 * training.shape[1]}
    return told, index.search(queries, k)[1]


def _type(
    folder: Path,
    store: Store,
    kind: str,
    queries: tuple[Vectors, Vectors],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Build an index of a type, and search it."""
    started = time.perf_counter()
    config = SearchConfig(kind, options.recall)
    manifest = build(store, folder, config=config, run=RunContext("cpu", options.workers))
    built = time.perf_counter() - started
    search = TrainingIndex.open(folder, store)
    seconds = _least(lambda: search.search(queries[0], options.k))
    name = INDEX if search.is_exact else APPROXIMATE
    told: dict[str, Any] = {
        "factory": manifest.factory,
        "effort": manifest.effort,
        "build_s": built,
        "bytes_a_row": (folder / name).stat().st_size / store.rows,
        "queries_s": len(queries[0]) / seconds,
        "curve": manifest.curve,
        "unfound": len(manifest.unfound),
    }
    for which, some in zip(("non-members", "copies"), queries, strict=True):
        told[which] = _recall(search, some, options.k)
    return told


def _left(store: Store, queries: Vectors, k: int) -> dict[int, float]:
    """Return the share of rows whose bounds, by so many numbers, reach the kth score."""
    rows, some = store.read(0, store.rows), queries[:BOUNDED]
    last = np.partition(some @ rows.T, -k, axis=1)[:, -k, None]
    fitted = rows[np.random.default_rng(0).permutation(len(rows))[:FITTED]]
    left = {}
    for dimension in (DIMENSION // 8, DIMENSION // 4):
        directions = Directions.fitted(fitted, dimension)
        bounds = directions.reduced(some) @ directions.reduced(rows).T
        left[dimension] = float((bounds >= last).mean())
    return left


def _recall(search: TrainingIndex, queries: Vectors, k: int) -> dict[str, float]:
    """Return the share of best matches and of the first k that are found, and how it is stated."""
    found, exact = search.search(queries, k), search.exact().search(queries, k)
    hit = found.scores[:, 0] >= exact.scores[:, 0]
    low, high = clopper_pearson(int(hit.sum()), len(hit))
    covered = _covered(hit)
    return {
        "queries": len(hit),
        "recall": float(hit.mean()),
        "low": low,
        "high": high,
        "recall_of_k": _share(found.rows, exact.rows),
        "stated_bounds_hold": covered,
    }


def _share(found: Ids, wanted: Ids) -> float:
    """Return the share of wanted rows (Q, k) that were found."""
    return float((found[:, :, None] == wanted[:, None]).any(1).mean())


def _covered(hit: NDArray[np.bool_]) -> int:
    """Count samples of which the one-sided lower bound holds of the recall of all queries."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        some = rng.choice(hit, DRAWN)
        covered += int(clopper_pearson(int(some.sum()), len(some), 0.9)[0] <= hit.mean())
    return covered


def _least(search: Any, repeats: int = 3) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        search()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _show(found: dict[str, dict[str, Any]], rows: int) -> None:
    table = Table(title=f"{rows:,} rows")
    names = "type", "build, s", "bytes a row", "queries/s", "of bare", "non-members", "copies"
    for name in names:
        table.add_column(name, justify="right")
    for kind, told in found.items():
        shares = [
            f"{told[which]['recall']:.4f}" if which in told else "-"
            for which in ("non-members", "copies")
        ]
        table.add_row(
            kind,
            f"{told.get('build_s', 0):,.0f}",
            f"{told['bytes_a_row']:,.0f}",
            f"{told['queries_s']:,.0f}",
            f"{told.get('of bare', 1):.2f}",
            *shares,
        )
    console.print(table)


def _options() -> argparse.Namespace:
    sizes = {"blocks": 200, "queries": 5000, "k": 10, "workers": 2}
    made = parser(__doc__, sizes)
    made.add_argument("--rows", type=Path, required=True, help="folder that rows.py wrote")
    made.add_argument("--types", nargs="+", default=["flat", "hnsw", "ivf", "ivfpq"])
    made.add_argument("--recall", type=float, default=0.999)
    made.add_argument("--work", type=Path, help="where the indexes are made")
    made.add_argument("--name", default="real", help="of the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
