"""Whether sets that do not go together are told, and sets that do are not.

Half of the people of a folder are the training set. The synthetic sets are the images of the other
half as they are, which is a sound pair, and changed in ways that make the two sides differ.

    python benchmarks/bench_applicability.py --images DIR --name brain_tcga
    python benchmarks/bench_applicability.py --person colin27 --name colin27
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from bench_verdicts import Set, halves, save_grey
from harness import add_people, console, parser, write
from held_out import PEOPLE, Grey
from PIL import Image

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig


def main() -> None:
    """Index, query each set, print and write the codes."""
    made = parser(__doc__, {"workers": 2})
    add_people(made, PEOPLE)
    options = made.parse_args()
    members, others = halves(options, np.random.default_rng(options.seed))
    run = RunContext("cpu", options.workers)
    config = QueryConfig(canaries=CanaryConfig(0))
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _save(members, work / "training", lambda grey: grey)
        build_index(work / "training", work / "index", run=run)
        for number, (kind, change) in enumerate(CHANGES.items()):
            rng = np.random.default_rng(number)
            _save(others, work / kind, partial(change, rng))
            told = query(work / kind, work / "index", work / f"report-{kind}", config, run).summary
            found[kind] = [each["code"] for each in told["mismatches"]]
            console.print(f"{kind}: {', '.join(found[kind]) or 'nothing'}")
    write(f"applicability_{options.name}", options, {}, {}, codes=found)


def _inverted(rng: np.random.Generator, grey: Grey) -> Grey:
    return grey.max() - grey


def _coarse(rng: np.random.Generator, grey: Grey) -> Grey:
    """Bring an image to 48 pixels on its longer side, and back."""
    image = Image.fromarray(grey)
    small = [max(1, 48 * side // max(image.size)) for side in image.size]
    return np.asarray(
        image.resize((small[0], small[1]), Image.Resampling.BOX).resize(
            image.size, Image.Resampling.BICUBIC
        )
    )


def _small(rng: np.random.Generator, grey: Grey) -> Grey:
    """Put an image into a frame twice as wide and high."""
    return np.pad(grey, [(side // 2,) * 2 for side in grey.shape], constant_values=grey.min())


def _stretched(rng: np.random.Generator, grey: Grey) -> Grey:
    """Make an image wider by a third."""
    image = Image.fromarray(grey)
    wide = (image.width * 4 // 3, image.height)
    return np.asarray(image.resize(wide, Image.Resampling.BICUBIC))


def _windowed(rng: np.random.Generator, grey: Grey) -> Grey:
    """Clip the darkest 40 % and the brightest 20 % of the greys."""
    low, high = np.quantile(grey, [0.4, 0.8])
    return np.clip((grey - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, grey: Grey) -> Grey:
    """Draw something that shows nobody."""
    return rng.integers(0, 256, grey.shape).astype(np.uint8)


CHANGES: dict[str, Callable[[np.random.Generator, Grey], Grey]] = {
    "as it is": lambda rng, grey: grey,
    "inverted": _inverted,
    "coarse": _coarse,
    "half the frame": _small,
    "stretched": _stretched,
    "windowed": _windowed,
    "noise": _noise,
}


def _save(people: Set, folder: Path, change: Callable[[Grey], Grey]) -> None:
    for images in people.values():
        for name, grey in images:
            save_grey(change(grey), folder / name)


if __name__ == "__main__":
    main()
