"""Peak memory of `query`, for few and for many synthetic images: it must not grow with them.

Each query is the command as a user starts it, in a fresh process, and all are of one index. The
peak is the kernel's high-water mark of resident memory (VmHWM), of the process that runs the
network and the search and of each process that decodes images, polled while they live.
(`ru_maxrss` will not do: across fork and exec a child starts from its parent's peak.) Pages
that processes share count in each, so the sum is an upper bound. Linux only.

    python benchmarks/bench_memory.py --small 1000 --large 20000 --training 1000
"""

import argparse
import json
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

from harness import (
    Spread,
    add_encoder,
    console,
    descendants,
    parser,
    read_of_process,
    show,
    write,
    write_images,
)

from deepssim_scan.encoder import checkpoint
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.limits import WORKERS
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.storage.layout import SUMMARY

KB_PER_MIB = 1024
POLL = 0.05  # seconds
PROCESS, WORKER, SUM = "query process", "largest decode worker", "all processes, added up"


def main() -> None:
    """Build the index, run the queries, print and write."""
    options = _options()
    fingerprint = checkpoint.load(options.encoder).fingerprint
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options)
        found = {
            size: [measure(folder, size) for _ in range(options.repeats)]
            for size in (options.small, options.large)
        }
    measured = {
        f"{what}, {size:,} images": Spread.of([run[what] / KB_PER_MIB for run in runs], "MiB")
        for what in (PROCESS, WORKER, SUM)
        for size, runs in found.items()
    }
    ratios = {
        f"{what}: {options.large:,} / {options.small:,} images": (
            measured[f"{what}, {options.large:,} images"].median
            / measured[f"{what}, {options.small:,} images"].median
        )
        for what in (WORKER, SUM, PROCESS)
    }
    show(f"Peak memory of query, {WORKERS} decode workers", measured, ratios)
    write("memory", options, measured, ratios, encoder=fingerprint, workers=WORKERS)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write the training images and their index, and both folders of synthetic images."""
    console.print(f"writing {options.training + options.large:,} images")
    write_images(folder / "training", options.training, options.side, options.seed)
    paths = write_images(folder / f"{options.large}", options.large, options.side, options.seed + 1)
    small = folder / f"{options.small}"
    small.mkdir()
    for path in paths[: options.small]:
        (small / path.name).hardlink_to(path)
    config = IndexConfig(options.encoder)
    build_index(folder / "training", folder / "index", config, RunContext("cpu"))


def measure(folder: Path, size: int) -> dict[str, int]:
    """Run the query command on one folder; return its peaks in kB."""
    console.print(f"query of {size:,} images")
    script = str(Path(sysconfig.get_path("scripts")) / "deepssim-scan")
    places = {"synthetic": folder / f"{size}", "index": folder / "index", "report": folder / "out"}
    arguments = [text for name, place in places.items() for text in (f"--{name}", str(place))]
    command = [script, "query", *arguments, "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peaks = watch(process)
    if process.returncode != 0:
        raise SystemExit(f"query left with exit code {process.returncode}")
    judged = json.loads((places["report"] / SUMMARY).read_text())["counts"]["judged"]
    if judged != size:
        raise SystemExit(f"{judged} of {size} images were judged")
    own = peaks.pop(process.pid)
    return {PROCESS: own, WORKER: max(peaks.values()), SUM: own + sum(peaks.values())}


def watch(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Wait for a process; return the peaks in kB of it and of all that it started, by number."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for each in (process.pid, *descendants(process.pid)):
            # The newest: it never falls, and before its exec a child shows its parent's.
            peaks[each] = _peak(each) or peaks.get(each, 0)
        time.sleep(POLL)
    return peaks


def _peak(process: int) -> int:
    """Return a process's high-water mark of resident memory in kB; 0 when it has ended."""
    for line in read_of_process(process, "status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _options() -> argparse.Namespace:
    sizes = {"small": 1_000, "large": 20_000, "training": 1_000, "side": 128, "repeats": 2}
    made = parser(__doc__, sizes)
    add_encoder(made)
    options = made.parse_args()
    if options.small >= options.large:
        made.error(f"--small ({options.small}) must be < --large ({options.large})")
    return options


if __name__ == "__main__":
    main()
