"""Search among more rows than the memory holds: what is found of planted copies, how fast.

The first rows are embeddings of real images and of pseudo-people (`rows.py`); the others are blends
of two of those, which keep to the directions along which real rows lie. Planted copies are changed
copies of images of the first rows, embedded; non-members are rows that were left out. Flat is
FAISS's exact search of the mapped rows, in the same memory.

The memory is that of a control group, which is made before:

    G=/sys/fs/cgroup/memory/bench; mkdir $G; echo 4G > $G/memory.limit_in_bytes
    python benchmarks/bench_out_of_memory.py --rows DIR --group $G
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_search import stored
from harness import console, parser, write
from rows import read, read_copies

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.progress import Silent
from deepssim_scan.storage.layout import SEARCHED
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.store import Store

BLOCK = 8192  # rows that are made at once
FLAT = 1024  # queries that are searched without an index


def main() -> None:
    """Build, search, print and write."""
    options = _options()
    if options.group:
        (options.group / "cgroup.procs").write_text(str(os.getpid()), "ascii")
    others = read(options.rows, slice(options.blocks - 1, options.blocks))[: options.queries]
    copies, of = read_copies(options.rows, slice(options.blocks - 1))
    some = np.random.default_rng(options.seed).permutation(len(copies))[: options.queries]
    copies, of = copies[some], of[some]
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name) / "index"
        with _store(options, Path(name)) as store:
            config = SearchConfig(options.type, options.recall)
            run = RunContext("cpu", options.workers, progress=_Stages())
            manifest, built = _timed(lambda: build(store, folder, config=config, run=run))
            search, opened = _timed(lambda: TrainingIndex.open(folder, store))
            sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
            told: dict[str, Any] = {
                "rows": store.rows,
                "factory": manifest.factory,
                "effort": manifest.effort,
                "curve": manifest.curve,
                "bytes": {file: sizes[file] for file in SEARCHED if file in sizes},
                "build_s": built,
                "open_s": opened,
                "group": _group(options.group),
            }
            _search(told, search, {"copies": copies, "non-members": others}, of, options.k)
    console.print(told)
    write(f"out_of_memory_{options.name}", options, {}, {}, found=told)


def _search(
    told: dict[str, Any],
    search: TrainingIndex,
    queries: dict[str, Vectors],
    of: np.ndarray,
    k: int,
) -> None:
    """Search twice, the second time with what the system kept of the first; then exactly."""
    exact, whole = search.exact(), TrainingIndex(search.flat)
    for which, some in queries.items():
        for time_ in ("first", "again"):
            found, seconds = _timed(lambda some=some: search.search(some, k))
            told[f"{which}, queries_s, {time_}"] = len(some) / seconds
        best, seconds = _timed(lambda some=some: exact.search(some, k))
        told[f"{which}, queries_s, exact"] = len(some) / seconds
        hit = found.scores[:, 0] >= best.scores[:, 0]
        told[f"{which}, best found"] = float(hit.mean())
        told[f"{which}, bounds"] = clopper_pearson(int(hit.sum()), len(hit))
        told[f"{which}, settled by bounds"] = search.settled(search.reduced, some, k) / len(some)
        if which == "copies":
            told["sources found"] = int((found.rows == of[:, None]).any(1).sum())
            told["sources found exactly"] = int((best.rows == of[:, None]).any(1).sum())
    _, seconds = _timed(lambda: whole.search(queries["copies"][:FLAT], k))
    told["queries_s, flat"] = min(FLAT, len(queries["copies"])) / seconds
    told["of flat"] = told["copies, queries_s, again"] / told["queries_s, flat"]


@contextmanager
def _store(options: argparse.Namespace, work: Path) -> Iterator[Store]:
    """Open the store that a run before has kept, or write it."""
    if options.store and options.store.exists():
        with Store.open(options.store) as store:
            yield store
    else:
        with stored(work, _blended(options)) as store:
            yield store


def _blended(options: argparse.Namespace) -> Iterator[Vectors]:
    """Give the rows that there are, then blends of two of them, a block at a time."""
    real = read(options.rows, slice(options.blocks - 1))
    for start in range(0, len(real), BLOCK):
        yield real[start : start + BLOCK]
    rng = np.random.default_rng([1, options.seed])
    for start in range(len(real), options.total, BLOCK):
        count = min(BLOCK, options.total - start)
        share = rng.uniform(0.6, 0.9, (count, 1)).astype(np.float32)
        one, other = (real[rng.integers(0, len(real), count)] for _ in range(2))
        blend = share * one + (1 - share) * other
        yield blend / np.linalg.norm(blend, axis=1, keepdims=True)


class _Stages(Silent):
    """Prints when a stage begins."""

    def __init__(self) -> None:
        self._stage, self._started = "", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage != self._stage:
            self._stage = stage
            console.print(f"{time.perf_counter() - self._started:,.0f} s: {stage}")

    def warn(self, text: str) -> None:
        console.print(text)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    made = run()
    return made, time.perf_counter() - started


def _group(folder: Path | None) -> dict[str, int]:
    """Return the limit of a control group and the most that was used, page cache included."""
    names = "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.max", "memory.peak"
    files = [folder / name for name in names] if folder else []
    return {path.name: int(path.read_text("ascii")) for path in files if path.is_file()}


def _options() -> argparse.Namespace:
    sizes = {"blocks": 201, "total": 10_000_000, "queries": 5000, "k": 10, "workers": 2}
    made = parser(__doc__, sizes)
    made.add_argument("--rows", type=Path, required=True, help="folder that rows.py wrote")
    made.add_argument("--type", default="ivf", help="(ivf)")
    made.add_argument("--recall", type=float, default=0.999, help="(0.999)")
    made.add_argument("--group", type=Path, help="control group whose memory limit holds")
    made.add_argument("--store", type=Path, help="a store of these rows, from an earlier run")
    made.add_argument("--work", type=Path, help="where the index is made")
    made.add_argument("--name", default="ten_million", help="of the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
