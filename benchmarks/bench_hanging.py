"""What files that never end cost: a query of 9,000 images, with and without 1,000 of them.

Each such file is a TIFF of 200 kB with 1,500 pages of 9 megapixels, which share one strip: it is
all right, and takes minutes. Every one must be named, and every other image judged.

    python benchmarks/bench_hanging.py
"""

import csv
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from harness import Spread, console, parser, write, write_images

PROGRAM = Path(sys.executable).parent / "deepssim-scan"
SIDE, PAGES, DEFLATE = 3000, 1500, 8


def main() -> None:
    """Make the folders, query both, compare, print and write."""
    sizes = {"images": 9_000, "hanging": 1_000, "training": 500, "side": 64}
    options = parser(__doc__, sizes).parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_images(work / "training", options.training, options.side, options.seed)
        for folder in ("without", "with"):
            write_images(work / folder, options.images, options.side, options.seed + 1)
        for number in range(options.hanging):
            (work / "with" / f"hanging-{number:04d}.tif").write_bytes(endless())
        _run(work, "build-index", "--training", "training", "--adapt", "never")
        without = _run(work, "query", "--synthetic", "without", "--report", "report-without")
        hung = _run(work, "query", "--synthetic", "with", "--report", "report-with")
        named = _named(work / "report-with" / "rejected.csv")
    measured = {"without": Spread.of([without], "s"), "with": Spread.of([hung], "s")}
    console.print(f"{without:.0f} s, {hung:.0f} s; {named:,} of {options.hanging:,} named")
    write("hanging", options, measured, {"with / without": hung / without}, named=named)
    raise SystemExit(named != options.hanging)


def endless() -> bytes:
    """Return a TIFF whose pages all have the same strip."""
    strip = zlib.compress(bytes(SIDE * SIDE), 9)
    tags = {256: SIDE, 257: SIDE, 258: 8, 259: DEFLATE, 262: 1, 273: 8, 277: 1, 278: SIDE}
    tags |= {279: len(strip)}
    strip += bytes(len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    size = 2 + len(entries) + 4
    first = 8 + len(strip)
    pages = (
        struct.pack("<H", len(tags)) + entries + struct.pack("<I", first + size * (page + 1))
        for page in range(PAGES - 1)
    )
    last = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", first) + strip + b"".join(pages) + last


def _run(work: Path, *arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([PROGRAM, *arguments], cwd=work, check=False)
    return time.perf_counter() - started


def _named(rejected: Path) -> int:
    with rejected.open(newline="", encoding="utf-8") as file:
        return sum(row["reason"] == "decoder-timeout" for row in csv.DictReader(file))


if __name__ == "__main__":
    main()
