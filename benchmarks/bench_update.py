"""An index updated after a part of its images changed, beside building it.

The images are those of IDX files, as Debian's package `dataset-fashion-mnist` has them, each as a
PNG file. `build-index` runs as a user starts it: on all files; again, with one file in a hundred
replaced by another image; and again, with none changed. The index that was updated must have the
bytes of one that is built anew, but for the calibration, unless `--no-compare` is given.

    python benchmarks/bench_update.py --idx FILE...
"""

import argparse
import gzip
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Spread, console, parser, show, write
from numpy.typing import NDArray
from PIL import Image

from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import CALIBRATION

FULL, UPDATE, NOTHING = "built", "one file in a hundred changed", "nothing changed"
_FOLDER = 1000  # files in one


def main() -> None:
    """Measure, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = _write(np.concatenate([read_idx(file) for file in options.idx]), work / "training")
        console.print(f"{len(paths):,} files")
        taken = {FULL: _build(work, "index")}
        rng = np.random.default_rng(options.seed)
        for path in rng.choice(np.array(paths), len(paths) // 100, replace=False):
            image = 255 - np.asarray(Image.open(path))
            Image.fromarray(image[::-1]).save(path)
        taken[UPDATE] = _build(work, "index")
        taken[NOTHING] = _build(work, "index")
        if options.compare:
            _build(work, "other")
            _require_same(work / "index", work / "other")
    measured = {name: Spread.of([seconds], "s") for name, seconds in taken.items()}
    ratios = {f"{name} / {FULL}": taken[name] / taken[FULL] for name in (UPDATE, NOTHING)}
    show(f"build-index of {len(paths):,} files", measured, ratios)
    write("update", options, measured, ratios, files=len(paths))


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read the images of an IDX file: (N, H, W)."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as source:
        data = source.read()
    shape = np.frombuffer(data, ">i4", 3, 4)
    return np.frombuffer(data, np.uint8, offset=16).reshape(shape)


def _write(images: NDArray[np.uint8], folder: Path) -> list[Path]:
    paths = []
    for number, image in enumerate(images):
        path = folder / f"{number // _FOLDER:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


def _build(work: Path, index: str) -> float:
    script = str(Path(sysconfig.get_path("scripts")) / "deepssim-scan")
    places = "--training", work / "training", "--index", work / index
    started = time.perf_counter()
    command = [script, "build-index", *map(str, places), "--adapt", "never", "--device", "cpu"]
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def _require_same(updated: Path, anew: Path) -> None:
    """Leave unless two indexes have the same files, but for their calibrations."""
    sides = [
        {
            path.relative_to(index): sha256(path)
            for path in index.rglob("*")
            if path.is_file() and path.name != CALIBRATION
        }
        for index in (updated, anew)
    ]
    if sides[0] != sides[1]:
        raise SystemExit("the index that was updated is not the one that is built anew")
    shutil.rmtree(anew)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {})
    made.add_argument("--idx", nargs="+", type=Path, required=True, help="files of images")
    made.add_argument("--no-compare", dest="compare", action="store_false", help="build no other")
    return made.parse_args()


if __name__ == "__main__":
    main()
