"""Memory and time of the process that commands, by the number of entries: an index and a report.

The entries are links to 1,000 small files. Their vectors are made, not embedded, and no pair is
verified; all else is what the commands do: they list, write the catalogue and the shards, index,
look for what changed, search, judge, and write the tables and the page. Each runs in a process of
its own, whose peak of memory beyond mapped files is polled (as in bench_large.py):

- an index of so many training images is built;
- it is built again, when nothing has changed;
- so many synthetic images are queried against an index of 1,000, and again, when nothing has
  changed.

    python benchmarks/bench_entries.py --entries 10000000 --work /a/folder
"""

import argparse
import tempfile
from pathlib import Path

from bench_large import Run, run
from harness import Spread, parser, show, write, write_images

SOURCES, FOLDER = 1_000, 1_000
MADE = """
import sys
from pathlib import Path
import numpy as np
from deepssim_scan.execution.answer import Answer
from deepssim_scan.imaging.thumbnails import SIDE
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.packing import plain
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.store import embed_listing


def made(network, files):
    rng = np.random.default_rng(abs(hash(files.items[0].path)))
    rows = rng.standard_normal((len(files.items), 256), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    records = [
        ImageRecord(
            each.path, "", "", 1, each.size, each.mtime_ns, rng.bytes(32).hex(), "L",
            each.path.partition("/")[0],
        )
        for each in files.items
    ]
    small = rng.integers(-99, 99, (len(rows), SIDE * SIDE), np.int8)
    return Answer([plain(each) for each in records], {"rows": rows, "thumbnails": small})


embed_listing._embed_files = made
here = RunContext("cpu", workers=0)
"""
BUILD = f"""{MADE}
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
config = IndexConfig(calibrate=False, search=SearchConfig("flat"))
build_index(Path(sys.argv[1]), Path(sys.argv[2]), config, here)
"""
QUERY = f"""{MADE}
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig, EvidenceConfig, VerdictConfig
config = QueryConfig(
    evidence=EvidenceConfig(tta_views=1, verify=False),
    verdict=VerdictConfig(rule="reference"),
    canaries=CanaryConfig(0),
)
query(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), config, here)
"""


def main() -> None:
    """Make the entries, run the processes, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        drawn = write_images(work / "drawn", SOURCES, 64, options.seed)
        link(drawn, work / "entries", options.entries)
        link(drawn, work / "few", SOURCES)
        runs = {
            "index": run(BUILD, work / "entries", work / "index"),
            "index, nothing changed": run(BUILD, work / "entries", work / "index"),
        }
        run(BUILD, work / "few", work / "index of few")
        asked = work / "entries", work / "index of few", work / "report"
        runs["report"] = run(QUERY, *asked)
        runs["report, nothing changed"] = run(QUERY, *asked)
    show(f"{options.entries:,} entries", _spreads(runs), {})
    write(f"entries_{options.entries}", options, _spreads(runs), {})


def link(drawn: list[Path], folder: Path, count: int) -> None:
    """Fill a folder with links to files, a thousand in each folder of it."""
    for number in range(count):
        place = folder / f"{number // FOLDER:06d}"
        if number % FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{number % FOLDER:03d}.png").hardlink_to(drawn[number % SOURCES])


def _spreads(runs: dict[str, Run]) -> dict[str, Spread]:
    times = {f"{what}, time": Spread.of([found.seconds], "s") for what, found in runs.items()}
    return times | {
        f"{what}, memory": Spread.of([found.own], "MiB") for what, found in runs.items()
    }


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"entries": 100_000})
    made.add_argument(
        "--work", type=Path, help="an empty folder, for the links and the indexes (a temporary)"
    )
    return made.parse_args()


if __name__ == "__main__":
    main()
