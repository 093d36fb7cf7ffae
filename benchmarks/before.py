"""Both commands of this tree beside those of an earlier commit, in turns, as a user runs them."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from harness import ROOT, Spread, rates

NOW, BEFORE = "now", "before"
COMMANDS = ("build-index", "query")
_PACKAGES = ("scanner", "index", "cli")


def beside_before(
    revision: str, folders: tuple[Path, Path], files: tuple[int, int], repeats: int, work: Path
) -> dict[str, Spread]:
    """Return the images a second of both commands, now and before.

    `folders` hold training and synthetic images, `files` of each. The commands run on the CPU with
    workers by default; starting the program is in the time. Indexes of now are calibrated apart
    from that, since those of before were not.
    """
    trees = {NOW: work / "now", BEFORE: work / "before"}
    _lay_out(ROOT, trees[NOW])
    _lay_out(_archived(revision, work), trees[BEFORE])
    taken: dict[str, list[float]] = {
        f"{command}, {name}": [] for command in COMMANDS for name in trees
    }
    for turn in range(repeats + 1):
        for name, tree in trees.items():
            index, report = tree / f"index-{turn}", tree / f"report-{turn}"
            only_built = () if name == BEFORE else ("--no-calibrate",)
            building = _run(
                tree, "build-index", "--training", folders[0], "--index", index, *only_built
            )
            if name == NOW:
                _run(tree, "calibrate", "--index", index)
            querying = _run(
                tree, "query", "--synthetic", folders[1], "--index", index, "--report", report
            )
            if turn:  # the first one warms up
                for command, seconds in zip(COMMANDS, (building, querying), strict=True):
                    taken[f"{command}, {name}"].append(seconds)
    found: dict[str, Spread] = {}
    for command, count in zip(COMMANDS, files, strict=True):
        mine = {name: values for name, values in taken.items() if name.startswith(command)}
        found |= rates(mine, count, "images")
    return found


def _run(tree: Path, command: str, *arguments: str | Path) -> float:
    code = "from deepssim_scan.cli import main\nif __name__ == '__main__':\n    main()\n"
    script = tree / "command.py"
    script.write_text(code)
    given = [sys.executable, str(script), command, *arguments, "--device", "cpu"]
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(tree)}
    subprocess.run(given, env=environment, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started


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
