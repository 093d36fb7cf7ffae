"""What a query pays for telling of volumes, rarity, membership, mismatches and copies of a part.

Procedural images are queried against an index that is calibrated by a hold-out of heads. The time
of what is told beside the verdicts is measured within the query, as a share of the rest of it.

    python benchmarks/bench_proof.py
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench_verdicts import save_grey
from harness import Spread, console, parser, show, write, write_images
from held_out import person

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import CalibrateConfig, IndexConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query import run as query_run
from deepssim_scan.jobs.query.proof.applicability import Fitting
from deepssim_scan.jobs.query.proof.partial import Looking

TOLD = "volumes_of", "aligned", "with_rarity", "membership_of"
SIDE = 128
PEOPLE, VIEWS = 100, 10  # of the hold-out


def main() -> None:
    """Index, query, print and write."""
    options = _options()
    run, taken = RunContext("cpu", options.workers), dict.fromkeys(TOLD, 0.0)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        counts = {"training": options.training, "synthetic": options.count}
        for seed, (folder, count) in enumerate(counts.items()):
            write_images(work / folder, count, SIDE, seed)
        write_holdout(work / "holdout")
        config = IndexConfig(adapt="never", calibrate=False)
        build_index(work / "training", work / "index", config, run)
        calibrate(work / "index", CalibrateConfig(holdout=work / "holdout"), run)
        for function in TOLD:
            timed = partial(_timed, taken, function, getattr(query_run, function))
            setattr(query_run, function, timed)
        for of, told in ((Fitting, "mismatches"), (Looking, "partials")):
            taken[told] = 0.0
            setattr(of, told, _timing(taken, told, getattr(of, told)))
        started = time.monotonic()
        query(work / "synthetic", work / "index", work / "report", run=run)
        total = time.monotonic() - started
    added = sum(taken.values())
    measured = {name: Spread.of([seconds], "s") for name, seconds in taken.items()}
    measured |= {"query": Spread.of([total], "s")}
    ratios = {"told beside the verdicts, of the rest": added / (total - added)}
    show("A query, and what it tells beside verdicts", measured, ratios)
    console.print(f"{added:.1f} s of {total:.1f} s")
    write("proof", options, measured, ratios)


def write_holdout(folder: Path) -> None:
    """Write 1,000 images of deformations of a person, which no procedural image is like."""
    someone = person("colin27")
    for number in range(PEOPLE):
        views = someone.images(number)
        for view in range(0, len(views), len(views) // VIEWS):
            save_grey(views[view], folder / f"{number:03d}" / f"{view:02d}.png")


def _timing(taken: dict[str, float], name: str, exact: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: _timed(taken, name, exact, *given)


def _timed(taken: dict[str, float], name: str, function: Callable[..., Any], *given: Any) -> Any:
    started = time.monotonic()
    try:
        return function(*given)
    finally:
        taken[name] += time.monotonic() - started


def _options() -> argparse.Namespace:
    return parser(__doc__, {"count": 20_000, "training": 5000, "workers": 2}).parse_args()


if __name__ == "__main__":
    main()
