"""A cluster whose workers are killed all the time, for docs/reliability.md.

A set is indexed, calibrated and queried on a scheduler and three workers that talk TLS, again and
again, while one of the workers is killed every few seconds. Each time index and report must have
the bytes that one machine gives. Exits with 1 when they had not.

    python tests/faults/cluster_kills.py
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import harness
from cluster import Cluster, certified, contents
from harness import Spread, console

from deepssim_scan.execution import Scheduler
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query


def main() -> int:
    """Run until there were enough kills, write benchmarks/results/cluster.json."""
    sizes = {"kills": 200, "seconds": 6, "images": 160, "synthetic": 80}
    options = harness.parser(__doc__, sizes).parse_args()
    kills, differing, times = 0, 0, []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        harness.write_images(work / "training", options.images, 128, options.seed)
        harness.write_images(work / "synthetic", options.synthetic, 128, options.seed)
        wanted = built_and_queried(work, work / "here", RunContext("cpu"))
        cluster = Cluster(work / "cluster")
        cluster.start()
        try:
            with certified(cluster.config):
                while kills < options.kills:
                    started = time.monotonic()
                    with killing(cluster, options.seconds, kills) as killed:
                        run = RunContext("cpu", scheduler=Scheduler(str(cluster.file)))
                        found = built_and_queried(work, work / f"there-{len(times)}", run)
                    times.append(time.monotonic() - started)
                    kills, differing = kills + sum(killed), differing + (found != wanted)
                    console.print(f"{len(times)} runs, {kills} kills, {differing} differ")
        finally:
            cluster.stop()
    measured = {"a run with kills": Spread.of(times, "s")}
    harness.write("cluster", options, measured, {}, runs=len(times), kills=kills, differ=differing)
    return int(differing > 0)


def built_and_queried(work: Path, place: Path, run: RunContext) -> list[dict[str, bytes]]:
    """Return what a run writes: the files of the index and of the report."""
    index, report = place / "index", place / "report"
    build_index(work / "training", index, IndexConfig(adapt="never"), run)
    query(work / "synthetic", index, report, run=run)
    return [contents(index), contents(report)]


@contextmanager
def killing(cluster: Cluster, seconds: float, seed: int) -> Iterator[list[bool]]:
    """Kill a worker every few seconds while the block runs; give which times there was one."""
    ended, killed = threading.Event(), list[bool]()

    def kill() -> None:
        while not ended.wait(seconds):
            killed.append(cluster.kill_worker(seed + len(killed)))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


if __name__ == "__main__":
    sys.exit(main())
