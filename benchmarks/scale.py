"""What a set of any size costs: a line through two measured sizes, checked at one in between.

Measured are, with all cores of this machine:

- an image of the training set: `build-index` without a calibration;
- a row of the index, for a query: the exact search of 4,096 queries among random rows;
- a synthetic image: `query` among 1,000 training images, so that searching is nothing.

Of each, the time is taken to be a constant and so much for each one more. The constant and the
slope are those of the smallest and the largest size, and the one between says how well that holds.
What is extrapolated is slope times number; a core-hour has the price of `--cents`.

    python benchmarks/scale.py
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import bench_large
from harness import Spread, console, parser, show, write, write_images
from rich.table import Table

TRAINING = (1_000, 5_000, 10_000)
ROWS = (100_000, 400_000, 800_000)
SYNTHETIC = (500, 1_500, 3_000)
QUERIES = 4_096  # of a search
GALLERY = 1_000  # training images that synthetic ones are compared with
SIZES = (10**7, 10**8, 10**9)
NIGHT = 8  # hours


@dataclass(frozen=True, slots=True)
class Line:
    """Core-seconds for so many things, and of the size between the time measured over predicted."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    each: float
    checked: float

    @classmethod
    def through(cls, sizes: Sequence[int], seconds: Sequence[float]) -> "Line":
        """Return the line through the first and the last point; the one between checks it."""
        (a, b, c), (at_a, at_b, at_c) = sizes, seconds
        slope = (at_c - at_a) / (c - a)
        checked = at_b / (at_a + slope * (b - a))
        return cls(tuple(sizes), tuple(seconds), slope * cores(), checked)


@dataclass(frozen=True, slots=True)
class Costs:
    """Core-seconds of a training image, a synthetic one, and a row for a query; bytes."""

    image: float
    synthetic: float
    row: float
    bytes_of_row: float

    def of(self, training: int, synthetic: int) -> dict[str, float]:
        """Return core-hours, and terabytes of the index, of a set and a night's images."""
        hours = 1 / 3600
        return {
            "index, core-hours": training * self.image * hours,
            "night without the search, core-hours": synthetic * self.synthetic * hours,
            "exact search, core-hours": synthetic * training * self.row * hours,
            "index, TB": training * self.bytes_of_row / 1e12,
        }


def main() -> None:
    """Measure, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        lines, bytes_of_row = measured(work, options)
    costs = Costs(
        lines["training image"].each,
        lines["synthetic image"].each,
        lines["row"].each / QUERIES,
        bytes_of_row,
    )
    found = {f"{size:,}": costs.of(size, options.synthetic) for size in SIZES}
    spreads = {
        "a training image": Spread.of([costs.image * 1e3], "ms of a core"),
        "a synthetic image": Spread.of([costs.synthetic * 1e3], "ms of a core"),
        "a row, for a query": Spread.of([costs.row * 1e9], "ns of a core"),
        "a row, on the disk": Spread.of([costs.bytes_of_row], "bytes"),
    }
    ratios = {f"{name}, measured / predicted": line.checked for name, line in lines.items()}
    show("What each one more costs", spreads, ratios)
    tell(found, options)
    plain = {name: asdict(line) for name, line in lines.items()}
    write("scale", options, spreads, ratios, sizes=found, lines=plain)


def measured(work: Path, options: argparse.Namespace) -> tuple[dict[str, Line], float]:
    """Return a line for each kind of thing, and the bytes of a row."""
    paths = write_images(work / "all", max(TRAINING), 128, options.seed)
    asked = write_images(work / "night", max(SYNTHETIC), 128, options.seed + 1)
    lines = {"training image": _line(TRAINING, partial(_index, work, paths))}
    most = _bytes(work / "index")
    _index(work, paths, GALLERY)
    bytes_of_row = (most - _bytes(work / "index")) / (max(TRAINING) - GALLERY)
    bench_large.run(bench_large.COMMAND, "calibrate", "--index", work / "index")
    lines["synthetic image"] = _line(SYNTHETIC, partial(_query, work, asked))
    lines["row"] = _line(ROWS, partial(_search, work, options.seed))
    return lines, bytes_of_row


def _line(sizes: Sequence[int], taken: Callable[[int], float]) -> Line:
    seconds = []
    for size in sizes:
        seconds.append(taken(size))
        console.print(f"{size:,}: {seconds[-1]:.1f} s")
    return Line.through(sizes, seconds)


def _index(work: Path, paths: Sequence[Path], count: int) -> float:
    shutil.rmtree(work / "index", ignore_errors=True)
    _link(paths[:count], work / "training")
    asked = ("--training", work / "training", "--index", work / "index", "--no-calibrate")
    return bench_large.run(bench_large.COMMAND, "build-index", *asked, "--device", "cpu").seconds


def _query(work: Path, paths: Sequence[Path], count: int) -> float:
    shutil.rmtree(work / "report", ignore_errors=True)
    _link(paths[:count], work / "synthetic")
    places = ("--synthetic", work / "synthetic", "--index", work / "index")
    further = ("--report", work / "report", "--canaries", "0", "--device", "cpu")
    return bench_large.run(bench_large.COMMAND, "query", *places, *further).seconds


def _search(work: Path, seed: int, rows: int) -> float:
    large = work / "large"
    bench_large.make_store(large, argparse.Namespace(rows=rows, seed=seed, synthetic=0))
    bench_large.run(bench_large.BUILD, large / "index")
    taken = bench_large.run(bench_large.SEARCH, large / "index").seconds
    shutil.rmtree(large)
    return taken


def _link(paths: Sequence[Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in paths:
        (folder / path.name).hardlink_to(path)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cores() -> int:
    """Return how many cores the commands used."""
    return len(os.sched_getaffinity(0))


def tell(found: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Print what sets of each size cost."""
    table = Table(title=f"{options.synthetic:,} synthetic images a night")
    table.add_column("training images")
    for name in next(iter(found.values())):
        table.add_column(name, justify="right")
    table.add_column(f"cores for {NIGHT} h", justify="right")
    table.add_column("a night, USD", justify="right")
    for size, each in found.items():
        night = each["night without the search, core-hours"] + each["exact search, core-hours"]
        numbers = [*each.values(), night / NIGHT, night * options.cents / 100]
        table.add_row(size, *(f"{value:,.3g}" for value in numbers))
    console.print(table)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"synthetic": 1_000_000, "cents": 5})
    made.add_argument("--work", type=Path, help="folder for temporary files, some 5 GB")
    return made.parse_args()


if __name__ == "__main__":
    main()
