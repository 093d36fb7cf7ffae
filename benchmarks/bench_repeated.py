"""Copies of training images that occur under several subjects, of people no encoder here has seen.

Generators memorize such images first. Half of the people are the training set. Some of their images
are among the images of 1, 3, 7 or 11 other people as well, every other one as JPEG of quality 60.
Copies of these are made in the ways of `held_out.COPIES` and `FURTHER`. `build-index` and `query`
run with their defaults, but for the encoder, which is not adapted.

With `--turned` every image is there twice instead, as it is and turned by 3 degrees, in two folders
that name no people.

    python benchmarks/bench_repeated.py --images DIR --name brain_tcga
    python benchmarks/bench_repeated.py --images DIR --name brain_tcga --turned
"""

import argparse
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np
from bench_verdicts import KINDS, halves, save_grey
from harness import Spread, add_people, console, parser, write
from held_out import PEOPLE, Grey, changed
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
        times = (write_turned if options.turned else write_repeated)(work, options, rng)
        build_index(work / "training", work / "index", IndexConfig(adapt="never"), run)
        result = query(work / "synthetic", work / "index", work / "report", run=run)
        flagged = {
            match.synthetic: match.verdict == "duplicate" for match in best_matches(work / "report")
        }
        seconds = time.monotonic() - started
    ratios, table = {}, Table("subjects", "copies", "flagged")
    for count in sorted({*times.values()}):
        hits = [flagged[name] for name, each in times.items() if each == count]
        ratios[f"flagged of {count}"] = float(np.mean(hits))
        table.add_row(str(count), str(len(hits)), f"{np.mean(hits):.1%}")
    console.print(table)
    write(
        f"{'turned' if options.turned else 'repeated'}_{options.name}",
        options,
        {"whole": Spread.of([seconds], "s")},
        ratios,
        complete=result.summary["complete"],
    )


def write_repeated(
    work: Path, options: argparse.Namespace, rng: np.random.Generator
) -> dict[str, int]:
    """Write training images and copies; return of how many subjects each copy's source is."""
    members, _ = halves(options, rng)
    for images in members.values():
        for name, grey in images:
            save_grey(grey, work / "training" / name)
    times = dict[str, int]()
    people = cycle(rng.permutation([*members]).tolist())
    for count in OCCURRENCES:
        for number in range(options.sources):
            who = next(people)
            name, grey = members[who][rng.integers(len(members[who]))]
            others = rng.choice([each for each in members if each != who], count - 1, replace=False)
            again = changed(grey, "JPEG quality 60", rng) if number % 2 else grey
            for other in others.tolist():
                beside = work / "training" / members[other][0][0]
                save_grey(again, beside.with_stem(f"{beside.stem}-{count}-{number}"))
            times |= dict.fromkeys(plant(work, grey, f"{count}-{number}", rng), count)
    return times


def write_turned(
    work: Path, options: argparse.Namespace, rng: np.random.Generator
) -> dict[str, int]:
    """Write every training image twice, and copies; the same is returned."""
    members, _ = halves(options, rng)
    every = [each for images in members.values() for each in images]
    for name, grey in every:
        flat = name.replace("/", "_")
        save_grey(grey, work / "training" / "plain" / flat)
        turned = changed(grey, "rotation 3°", rng)
        save_grey(turned, work / "training" / "turned" / flat)
    times = dict[str, int]()
    for number in rng.choice(len(every), options.sources, replace=False).tolist():
        times |= dict.fromkeys(plant(work, every[number][1], str(number), rng), 2)
    return times


def plant(work: Path, grey: Grey, name: str, rng: np.random.Generator) -> list[str]:
    """Write a copy of an image in each way, and return their names."""
    copies = [f"{kind}/{name}.png" for kind in KINDS]
    for kind, copy in zip(KINDS, copies, strict=True):
        save_grey(changed(grey, kind, rng), work / "synthetic" / copy)
    return copies


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"sources": 8, "workers": 2})
    add_people(made, PEOPLE)
    made.add_argument("--turned", action="store_true", help="all images twice, the other turned")
    return made.parse_args()


if __name__ == "__main__":
    main()
