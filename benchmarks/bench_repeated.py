"""Copies of training images that occur under several subjects, of people no encoder here has seen.

Generators memorize such images first. Half of the people are the training set. Some of their images
are among the images of 1, 3, 7 or 11 other people as well, every other one as JPEG of quality 60.
Copies of these are made in the ways of `held_out.COPIES` and `FURTHER`. `build-index` and `query`
run with their defaults, but for the encoder, which is not adapted.

    python benchmarks/bench_repeated.py --images DIR --name brain_tcga
"""

import argparse
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np
from bench_verdicts import KINDS, halves, save_grey
from harness import Spread, add_people, console, parser, write
from held_out import PEOPLE, changed
from rich.table import Table

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.reporting.matches import best_matches

OCCURRENCES = 1, 2, 4, 8, 12  # subjects that an image is of


def main() -> None:
    """Print and write which share of the copies is flagged, by how often the image occurs."""
    options = _options()
    rng, run = np.random.default_rng(options.seed), RunContext("cpu", options.workers)
    with tempfile.TemporaryDirectory() as name:
        work, started = Path(name), time.monotonic()
        times = write_sets(work, options, rng)
        build_index(work / "training", work / "index", IndexConfig(adapt="never"), run)
        query(work / "synthetic", work / "index", work / "report", run=run)
        flagged = {
            match.synthetic: match.verdict == "duplicate" for match in best_matches(work / "report")
        }
        seconds = time.monotonic() - started
    ratios, table = {}, Table("subjects", "copies", "flagged")
    for count in OCCURRENCES:
        hits = [flagged[name] for name, each in times.items() if each == count]
        ratios[f"flagged of {count}"] = float(np.mean(hits))
        table.add_row(str(count), str(len(hits)), f"{np.mean(hits):.1%}")
    console.print(table)
    write(f"repeated_{options.name}", options, {"whole": Spread.of([seconds], "s")}, ratios)


def write_sets(work: Path, options: argparse.Namespace, rng: np.random.Generator) -> dict[str, int]:
    """Write training images and copies; return of how many subjects each copy's source is."""
    members, _ = halves(options, rng)
    for images in members.values():
        for name, grey in images:
            save_grey(grey, work / "training" / name)
    times, people = {}, cycle(rng.permutation([*members]).tolist())
    for count in OCCURRENCES:
        for number in range(options.sources):
            who = next(people)
            name, grey = members[who][rng.integers(len(members[who]))]
            others = rng.choice([each for each in members if each != who], count - 1, replace=False)
            again = changed(grey, "JPEG quality 60", rng) if number % 2 else grey
            for other in others.tolist():
                beside = work / "training" / members[other][0][0]
                save_grey(again, beside.with_stem(f"{beside.stem}-{count}-{number}"))
            for kind in KINDS:
                copy = f"{kind}/{count}-{number}.png"
                save_grey(changed(grey, kind, rng), work / "synthetic" / copy)
                times[copy] = count
    return times


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"sources": 8, "workers": 2})
    add_people(made, PEOPLE)
    return made.parse_args()


if __name__ == "__main__":
    main()
