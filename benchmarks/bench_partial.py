"""How many copies of a part of an image a query finds, and how many others it flags.

Half of the people is the training set. The images of the others are queried as they are, and after
a part of a training image was pasted into each: a half, a quarter in a corner, a quarter at any
place, a lesion (an ellipse of a sixteenth). A pasted part is shifted within 4 %, has another
contrast, and noise.

    python benchmarks/bench_partial.py --images DIR --name brain_tcga
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_verdicts import Set, read_people, save_grey
from harness import console, parser, write
from numpy.typing import NDArray

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.imaging.changes import pasted
from deepssim_scan.imaging.names import PARTS, SIDE
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig, VerdictConfig
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.reporting.partial import read_partial

PLACES = (*PARTS, "quarter anywhere", "lesion")
KINDS = ("non-member", *PLACES)
RATES = 0.001, 0.01


def main() -> None:
    """Index and query some splits of the people, print and write."""
    options = _options()
    people = read_people(options.images)
    splits = [_split(people, options, options.seed + number) for number in range(options.splits)]
    found = {
        rate: {kind: _summed([split[rate][kind] for split in splits]) for kind in KINDS}
        for rate in splits[0]
    }
    for rate, counts in found.items():
        console.print(rate, counts)
    write(f"partial_{options.name}", options, {}, {}, rates=found, splits=splits)


def _split(people: Set, options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Count what is flagged, by rate and kind, where half of the people is the training set."""
    rng, run = np.random.default_rng(seed), RunContext("cpu", options.workers)
    halves = np.array_split(rng.permutation(sorted(people)), 2)
    members, others = ({name: people[name] for name in some} for some in halves)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for person in members.values():
            for path, grey in person:
                save_grey(grey, work / "training" / Path(path).with_suffix(".png"))
        source = plant(members, others, work / "synthetic", options.count, rng)
        build_index(work / "training", work / "index", IndexConfig(adapt=options.adapt), run)
        for rate in RATES:
            verdict = VerdictConfig(false_alarm=rate)
            config = QueryConfig(verdict=verdict, canaries=CanaryConfig(0))
            query(work / "synthetic", work / "index", work / "report", config, run)
            found[f"{rate:g}"] = counted(work / "report", source)
    return found


def _summed(splits: Sequence[dict[str, int]]) -> dict[str, float]:
    """Return the counts of all splits, and the share found with its 95 % interval."""
    images, found = (sum(each[name] for each in splits) for name in ("images", "found"))
    low, high = clopper_pearson(found, images)
    return {"images": images, "found": found, "share": found / images, "low": low, "high": high}


def plant(
    members: Set, others: Set, folder: Path, count: int, rng: np.random.Generator
) -> dict[str, str]:
    """Write images of others, as they are and with parts of members; return whose part each has."""
    donors = [(whose, grey) for whose in members for _, grey in members[whose]]
    hosts = [grey for images in others.values() for _, grey in images]
    source = {}
    for number, host in enumerate(hosts):
        save_grey(host, folder / f"non-member-{number:05d}.png")
    for place in PLACES:
        for number in range(count):
            whose, donor = donors[rng.integers(len(donors))]
            host = hosts[rng.integers(len(hosts))]
            mixed = paste(standardise(host, RULE), standardise(donor, RULE), place, rng)
            name = f"{place}-{number:05d}.png"
            grey = 255 * (mixed - mixed.min()) / np.ptp(mixed)
            save_grey(grey.round().astype(np.uint8), folder / name)
            source[name] = whose
    return source


def paste(
    host: NDArray[np.float32], donor: NDArray[np.float32], place: str, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Paste a part of a donor into a host, both standardised (128, 128)."""
    if place in PARTS:
        return pasted.paste(host, donor, place, rng)
    mask, half = np.zeros((SIDE, SIDE)), SIDE // 2
    if place == "lesion":
        y, x = np.mgrid[:SIDE, :SIDE]
        at, radii = rng.uniform(0.3, 0.7, 2) * SIDE, np.sqrt(SIDE**2 / 16 / np.pi)
        mask[np.hypot(y - at[0], x - at[1]) < radii] = 1
    else:
        top, left = rng.integers(0, half + 1, 2)
        mask[top : top + half, left : left + half] = 1
    return pasted.paste_where(mask, host, donor, rng)


def counted(report: Path, source: dict[str, str]) -> dict[str, Any]:
    """Count the images of each kind that are flagged: with the right subject, or non-members."""
    flagged = {each.synthetic: each.subject or each.training for each in read_partial(report)}
    counts = {kind: {"images": 0, "found": 0} for kind in KINDS}
    for path in report.with_name("synthetic").iterdir():
        count = counts[path.name.rpartition("-")[0]]
        count["images"] += 1
        count["found"] += source.get(path.name, "") in flagged.get(path.name, (None,))
    return counts


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"count": 100, "splits": 3, "workers": 2})
    made.add_argument("--images", type=Path, required=True, help="folder of real people's images")
    made.add_argument("--adapt", default="never", help="auto, always or never")
    made.add_argument("--name", required=True, help="what the set is called in the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
