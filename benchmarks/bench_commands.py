"""Both commands as a user runs them: beside an earlier commit, with one worker, on a busy machine.

Training and synthetic images are procedural, or, with `--images DIR`, those of people: half of them
the training set, the others the night's synthetic images, as they are and with noise, `--times`
each. All are images of non-members, as most are in a real night. Sides take turns, after a first
turn that is not counted. Starting the program is in the time, and so are the canaries of a query.
Indexes are not calibrated within the time of `build-index`, since those of before were not.

- `now`, with its defaults, on the CPU;
- `one worker`: the same with `--workers 1`; the process that gives work may run on another core;
- `one core`: the same, all of it on one core (`taskset`, of util-linux);
- `busy`: the same beside a program a core that never waits;
- `before`, with `--before COMMIT`: the commands of that commit.

    python benchmarks/bench_commands.py --before cec8087 --name procedural
    python benchmarks/bench_commands.py --before cec8087 --images DIR --name cxr_kermany
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_verdicts import read_people, save_grey
from harness import ROOT, Spread, parser, rates, show, write, write_images

NOW, ONE, CORE, BUSY, BEFORE = "now", "one worker", "one core", "busy", "before"
COMMANDS = ("build-index", "query")
_PACKAGES = ("scanner", "index", "cli")
_NOISE = 4  # grey levels


@dataclass(frozen=True, slots=True)
class Side:
    """A package, options that both commands get, what starts them, and whether others are busy."""

    name: str
    tree: Path
    options: tuple[str, ...] = ()
    starter: tuple[str, ...] = ()
    busy: bool = False


def main() -> None:
    """Measure, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        counts = _people(options, work) if options.images else _drawn(options, work)
        taken = _timed(_sides(options, work), options.repeats, work)
    measured: dict[str, Spread] = {}
    for command, count in zip(COMMANDS, counts, strict=True):
        mine = {name: values for name, values in taken.items() if name.startswith(command)}
        measured |= rates(mine, count, "images")
    others = [(NOW, ONE), (NOW, CORE), (BUSY, NOW), *([(NOW, BEFORE)] if options.before else [])]
    ratios = {
        f"{command}, {one} / {other}": measured[f"{command}, {one}"].median
        / measured[f"{command}, {other}"].median
        for command in COMMANDS
        for one, other in others
    }
    show(f"{counts[0]:,} training images, {counts[1]:,} synthetic images", measured, ratios)
    write(f"commands_{options.name}", options, measured, ratios, images=counts)


def _timed(sides: list[Side], repeats: int, work: Path) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {f"{c}, {side.name}": [] for c in COMMANDS for side in sides}
    for turn in range(repeats + 1):
        for side in sides:
            seconds = _commands(side, work)
            if turn:  # the first one warms up
                for command, each in zip(COMMANDS, seconds, strict=True):
                    taken[f"{command}, {side.name}"].append(each)
    return taken


def _commands(side: Side, work: Path) -> tuple[float, float]:
    """Run both commands; return their seconds."""
    index, report = work / "index", work / "report"
    for folder in (index, report):
        shutil.rmtree(folder, ignore_errors=True)
    uncalibrated = () if side.name == BEFORE else ("--no-calibrate",)
    training = "--training", work / "training", "--index", index
    with _others_busy(side.busy):
        building = _run(side, "build-index", *training, *uncalibrated)
    if side.name != BEFORE:
        _run(side, "calibrate", "--index", index)
    with _others_busy(side.busy):
        asked = "--synthetic", work / "synthetic", "--index", index, "--report", report
        return building, _run(side, "query", *asked)


def _run(side: Side, command: str, *arguments: str | Path) -> float:
    code = "from deepssim_scan.cli import main\nif __name__ == '__main__':\n    main()\n"
    script = side.tree / "command.py"
    script.write_text(code)
    asked = [command, *arguments, *side.options, "--device", "cpu"]
    given = [*side.starter, sys.executable, str(script), *asked]
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(side.tree)}
    subprocess.run(given, env=environment, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started


@contextmanager
def _others_busy(busy: bool) -> Iterator[None]:
    """Keep every core busy with another program while the block runs."""
    count = len(os.sched_getaffinity(0)) if busy else 0
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _sides(options: argparse.Namespace, work: Path) -> list[Side]:
    _lay_out(ROOT, work / "now")
    sides = [Side(NOW, work / "now"), Side(ONE, work / "now", ("--workers", "1"))]
    first = min(os.sched_getaffinity(0))
    sides.append(Side(CORE, work / "now", starter=("taskset", "--cpu-list", str(first))))
    sides.append(Side(BUSY, work / "now", busy=True))
    if options.before:
        _lay_out(_archived(options.before, work), work / "before")
        sides.append(Side(BEFORE, work / "before"))
    return sides


def _drawn(options: argparse.Namespace, work: Path) -> tuple[int, int]:
    write_images(work / "training", options.training, options.side, options.seed)
    write_images(work / "synthetic", options.synthetic, options.side, options.seed + 1)
    return options.training, options.synthetic


def _people(options: argparse.Namespace, work: Path) -> tuple[int, int]:
    """Write the images of half of the people, and those of the others `times` times."""
    rng, people = np.random.default_rng(options.seed), read_people(options.images)
    names = rng.permutation(sorted(people)).tolist()
    counts = [0, 0]
    for number, person in enumerate(names):
        member = number % 2 == 0
        for name, grey in people[person]:
            for time_ in range(1 if member else options.times):
                noise = rng.normal(0, _NOISE, grey.shape) if time_ else 0
                changed = np.clip(grey + noise, 0, 255).round().astype(np.uint8)
                place = "training" if member else f"synthetic/{time_}"
                save_grey(changed, work / place / name)
                counts[not member] += 1
    return counts[0], counts[1]


def _archived(revision: str, work: Path) -> Path:
    """Unpack the package of a commit."""
    command = ["git", "-C", str(ROOT), "archive", revision, *_PACKAGES]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(work / "tree", filter="data")
    return work / "tree"


def _lay_out(tree: Path, folder: Path) -> None:
    """Lay out a tree's package so that PYTHONPATH finds it before what is installed."""
    shutil.copytree(tree / "scanner", folder / "deepssim_scan")
    for name in ("index", "cli"):
        shutil.copytree(tree / name, folder / "deepssim_scan" / name)


def _options() -> argparse.Namespace:
    sizes = {"training": 1_000, "synthetic": 3_000, "side": 128, "times": 5, "repeats": 1}
    made = parser(__doc__, sizes)
    made.add_argument("--images", type=Path, help="images of people, a folder or a name a person")
    made.add_argument("--before", help="a commit of this repository to compare with")
    made.add_argument("--name", required=True, help="of the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
