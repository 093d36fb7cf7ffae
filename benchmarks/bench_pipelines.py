"""Which copies a query finds, of those that pipelines write: other frames, colours and mixtures.

Half of the people of a folder are the training set. Copies of their images are written as the
pipelines of generators write images, beyond the changes that a calibration plants. `flagged` counts
those with the verdict duplicate whose best match shows the right person, `part` further ones that
are told as copies of a part of that person's image.

    python benchmarks/bench_pipelines.py --images DIR --name brain_tcga
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from bench_verdicts import halves, save_grey
from harness import add_people, console, parser, write
from held_out import PEOPLE, Grey
from PIL import Image, ImageOps

from deepssim_scan.imaging.names import SIDE
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig


def main() -> None:
    """Index, write copies, query, count, print and write."""
    made = parser(__doc__, {"copies": 40, "workers": 2})
    add_people(made, PEOPLE)
    options = made.parse_args()
    rng = np.random.default_rng(options.seed)
    people, _ = halves(options, rng)
    images = [each for person in people.values() for each in person]
    run = RunContext("cpu", options.workers)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for path, grey in images:
            save_grey(grey, (work / "training" / path).with_suffix(".png"))
        build_index(work / "training", work / "index", run=run)
        squares = {path: _square(grey) for path, grey in images}
        for kind, change in KINDS.items():
            for number, at in enumerate(rng.permutation(len(images))[: options.copies].tolist()):
                path = images[at][0]
                others = [other for other in squares if other.split("/")[0] != path.split("/")[0]]
                beside = [squares[others[each]] for each in rng.integers(len(others), size=3)]
                copy = change(squares[path], *beside)
                copy.save(_made(work / "synthetic" / kind / path.split("/")[0]) / f"{number}.png")
        config = QueryConfig(canaries=CanaryConfig(0))
        query(work / "synthetic", work / "index", work / "report", config, run)
        found = _counted(work / "report")
    for kind, counts in found.items():
        console.print(kind, counts)
    write(f"pipelines_{options.name}", options, {}, {}, found=found)


def _counted(report: Path) -> dict[str, dict[str, int]]:
    counts = {kind: Counter[str]() for kind in KINDS}
    parts = {row["synthetic"]: row for row in _rows(report / "partial.parquet")}
    for row in _rows(report / "matches.parquet"):
        kind, person, _ = row["synthetic"].split("/")
        if row["rank"] == 1:
            part = parts.get(row["synthetic"])
            flagged = row["verdict"] == "duplicate" and row["training"].startswith(person)
            counts[kind]["copies"] += 1
            counts[kind]["flagged"] += flagged
            counts[kind]["part"] += bool(part and part["training"].startswith(person))
    return {kind: dict(each) for kind, each in counts.items()}


def _rows(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return rows


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _square(grey: Grey) -> Image.Image:
    """Pad an image to a square with black, and bring it to 128 pixels a side."""
    image = Image.fromarray(grey)
    return ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.BICUBIC, color=int(grey.min()))


def _stretched(share: float) -> Callable[..., Image.Image]:
    """Scale one side alone."""

    def change(image: Image.Image, *beside: Image.Image) -> Image.Image:
        size = (SIDE, round(SIDE * share))
        return ImageOps.pad(image.resize(size, Image.Resampling.BICUBIC), (SIDE, SIDE))

    return change


def _framed(width: int, grey: int) -> Callable[..., Image.Image]:
    return lambda image, *beside: ImageOps.expand(image, width, grey)


def _mixed(share: float) -> Callable[..., Image.Image]:
    """Mix an image with one of another person."""
    return lambda image, other, *beside: Image.blend(image, other, share)


def _coloured(name: str) -> Callable[..., Image.Image]:
    """Show an image through a colour map of Matplotlib."""

    def change(image: Image.Image, *beside: Image.Image) -> Image.Image:
        from matplotlib import colormaps

        return Image.fromarray(colormaps[name](np.asarray(image), bytes=True)[..., :3])

    return change


def _sheet(image: Image.Image, *beside: Image.Image) -> Image.Image:
    """Put an image and three of other people into one, two by two."""
    greys = [np.asarray(each) for each in (image, *beside)]
    return Image.fromarray(np.block([greys[:2], greys[2:]]))


def _pair(image: Image.Image, other: Image.Image, *beside: Image.Image) -> Image.Image:
    return Image.fromarray(np.hstack([np.asarray(image), np.asarray(other)]))


def _channels(image: Image.Image, *beside: Image.Image) -> Image.Image:
    """Put an image and two of other people into red, green and blue."""
    return Image.merge("RGB", (image, *beside[:2]))


def _wrapped(image: Image.Image, *beside: Image.Image) -> Image.Image:
    """Move an image by half of its side, and what leaves it in at the other."""
    return Image.fromarray(np.roll(np.asarray(image), (SIDE // 2, SIDE // 2), (0, 1)))


KINDS: dict[str, Callable[..., Image.Image]] = {
    "as it is": lambda image, *beside: image,
    "one side scaled by 5 %": _stretched(0.95),
    "one side scaled by 10 %": _stretched(0.9),
    "one side scaled by 15 %": _stretched(0.85),
    "one side scaled by 20 %": _stretched(0.8),
    "white frame, 3 % wide": _framed(4, 255),
    "white frame, 12 % wide": _framed(16, 255),
    "black frame, 30 % wide": _framed(40, 0),
    "two beside each other": _pair,
    "four in a sheet": _sheet,
    "red of three channels": _channels,
    "wrapped round by half": _wrapped,
    "mixed 80 to 20": _mixed(0.2),
    "mixed 70 to 30": _mixed(0.3),
    "mixed 50 to 50": _mixed(0.5),
    "colour map viridis": _coloured("viridis"),
    "colour map hot": _coloured("hot"),
    "colour map jet": _coloured("jet"),
}


if __name__ == "__main__":
    main()
