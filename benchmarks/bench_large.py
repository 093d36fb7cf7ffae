"""Memory and time of a large index: built, and queried.

The rows are random unit vectors, with a record each. The index is built and searched in processes
of their own, of which the peak of memory beyond mapped files is polled: RssAnon, and Pss_Anon of
what they forked, since pages are shared. With
`--synthetic N`, the `query` command itself runs too, on N procedural images: then the records are
of real files, links to 1,000 of them, so that candidates can be read.

    python benchmarks/bench_large.py --rows 1000000 --synthetic 1000 --name million
    python benchmarks/bench_large.py --rows 10000000 --name ten_million
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness import Spread, descendants, parser, read_of_process, show, write, write_images

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED, CALIBRATION
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.matching.views import NEVER
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import ENCODER, STORE
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

FILES, FOLDER, SHARD = 1000, 1000, 4096
POLL = 0.02  # seconds
BUILD = """
import sys
from pathlib import Path
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.store.store import Store
with Store.open(Path(sys.argv[1]) / "store") as store:
    build(store, Path(sys.argv[1]), ("encoder.safetensors",), SearchConfig("flat"))
"""
SEARCH = """
import sys
from pathlib import Path
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.store.store import Store
with Store.open(Path(sys.argv[1]) / "store") as store:
    index = TrainingIndex.open(Path(sys.argv[1]), store)
    queries = store.read(0, 4096)
    found = index.search(queries, 8)
    assert (found.rows[:, 0] == range(len(queries))).all()
"""
COMMAND = "from deepssim_scan.cli import main; main()"


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of a process, and MiB beyond mapped files: of itself, and of it and its children."""

    seconds: float
    own: float
    every: float


def main() -> None:
    """Make the index, run the processes, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        index = work / "index"
        make_store(work, options)
        runs = {"build": run(BUILD, index), "search of 4,096 queries": run(SEARCH, index)}
        if options.synthetic:
            calibrate(index)
            write_images(work / "synthetic", options.synthetic, 128, options.seed + 1)
            places = ("--synthetic", work / "synthetic", "--index", index, "--report", work / "out")
            asked = ("query", *map(str, places), "--canaries", "0", "--device", "cpu")
            runs["query"] = run(COMMAND, *asked)
    measured = {}
    for what, found in runs.items():
        measured[f"{what}, time"] = Spread.of([found.seconds], "s")
        measured[f"{what}, memory of the process"] = Spread.of([found.own], "MiB")
        measured[f"{what}, memory of all its processes"] = Spread.of([found.every], "MiB")
    show(f"{options.rows:,} rows of 256 numbers", measured, {})
    write(f"large_{options.name}", options, measured, {})


def make_store(work: Path, options: argparse.Namespace) -> None:
    """Write a store of random rows, and the files that its records name."""
    drawn = write_images(work / "drawn", FILES, 128, options.seed)
    known = [(path.stat().st_size, path.stat().st_mtime_ns, sha256(path)) for path in drawn]
    (work / "index").mkdir()
    shutil.copy(BUNDLED, work / "index" / ENCODER)
    source = IngestConfig().source(work / "training") | {"device": "cpu"}
    manifest = StoreManifest(checkpoint.fingerprint(BUNDLED), 256, SHARD, source=source)
    rng = np.random.default_rng(options.seed)
    with StoreWriter(work / "index" / STORE, manifest) as writer:
        for start in range(0, options.rows, SHARD):
            numbers = range(start, min(start + SHARD, options.rows))
            rows = rng.standard_normal((len(numbers), 256), np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            writer.add([*_records(work, drawn, known, numbers, options)], rows)
        writer.finish(options.rows)


def _records(
    work: Path,
    drawn: list[Path],
    known: list[tuple[int, int, str]],
    numbers: range,
    options: argparse.Namespace,
) -> Iterator[ImageRecord]:
    for number in numbers:
        folder = f"{number // FOLDER:06d}"
        path = f"{folder}/{number % FOLDER:03d}.png"
        if options.synthetic:
            target = work / "training" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(drawn[number % FILES])
        size, time_ns, digest = known[number % FILES]
        yield ImageRecord(path, "", "", 1, size, time_ns, digest, "L", folder)


def calibrate(index: Path) -> None:
    """Give an index the bundled calibration, as one that is too small gets it."""
    bundled = Calibration.read(CALIBRATION.parent)
    with Store.open(index / STORE) as store:
        found = replace(
            bundled,
            store=store.digest,
            gallery=store.rows,
            encoder=store.manifest.encoder,
            enough=(NEVER, NEVER),
        )
    found.write(index)


def run(code: str, *arguments: str | Path) -> Run:
    """Run Python code in a process, and watch its memory and that of its children."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started, own, every = time.perf_counter(), 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            mine = _own(process.pid)
            own = max(own, mine)
            every = max(every, mine + sum(map(_part, descendants(process.pid))))
            time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"left with exit code {process.returncode}: {json.dumps(command[2:])}")
    return Run(time.perf_counter() - started, own / 1024, every / 1024)


def _own(process: int) -> int:
    """Return the memory of a process that is of no file, in KiB."""
    return _sum(read_of_process(process, "status"), ("RssAnon:", "RssShmem:"))


def _part(process: int) -> int:
    """Return the same of a process that was forked: of what it shares, its part."""
    return _sum(read_of_process(process, "smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:"))


def _sum(text: str, names: tuple[str, ...]) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"rows": 1_000_000})
    made.add_argument("--synthetic", type=int, default=0, help="images that are queried (0)")
    made.add_argument("--name", required=True, help="of the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
