"""Whether members are told from others by their nearest synthetic image, and how sound that is.

A third of the people is the training set, a third the hold-out, and a third neither. Two synthetic
sets are queried with the defaults: copies of the images of half of the training set's people, made
in the ways of `held_out.COPIES`; and the images of those who are in neither set. With the second,
all others are dealt out anew `--trials` times: how often do the intervals cover 0.5?

    python benchmarks/bench_membership.py --images DIR --name brain_tcga
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_verdicts import Set, read_people, save_grey
from harness import console, parser, write
from held_out import COPIES, changed

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.groups import groups_of
from deepssim_scan.calibration.membership import Side, membership, nearest
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import CalibrateConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.storage.layout import STORE, SYNTHETIC
from deepssim_scan.store.store import Store


def main() -> None:
    """Index, calibrate, query both sets, print and write."""
    options = _options()
    rng, people = np.random.default_rng(options.seed), read_people(options.images)
    thirds = np.array_split(rng.permutation(sorted(people)), 3)
    members, holdout, neither = ({name: people[name] for name in some} for some in thirds)
    run = RunContext("cpu", options.workers)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for folder, some in (("training", members), ("holdout", holdout), ("neither", neither)):
            save(some, work / folder)
        copy_half(members, work / "copies", rng)
        build_index(work / "training", work / "index", run=run)
        calibrate(work / "index", CalibrateConfig(holdout=work / "holdout"), run)
        found = {each: queried(work, each, run) for each in ("copies", "neither")}
        intervals = covered(work, options.trials)
    for which, told in found.items():
        console.print(which, told)
    console.print(f"intervals that cover 0.5, of {options.trials}: {intervals}")
    write(f"membership_{options.name}", options, {}, {}, sets=found, covered=intervals)


def save(people: Set, folder: Path) -> None:
    """Write the images of people."""
    for images in people.values():
        for name, grey in images:
            save_grey(grey, folder / name)


def copy_half(members: Set, folder: Path, rng: np.random.Generator) -> None:
    """Write a copy of each image of half of the members."""
    for number, person in enumerate(sorted(members)[::2]):
        for name, grey in members[person]:
            kind = tuple(COPIES)[number % len(COPIES)]
            save_grey(changed(grey, kind, rng), folder / Path(name).with_suffix(".png"))


def queried(work: Path, which: str, run: RunContext) -> dict[str, Any]:
    """Query a set, and return what its summary says of membership."""
    config = QueryConfig(canaries=CanaryConfig(0))
    report = work / f"report-{which}"
    told: dict[str, Any] = query(work / which, work / "index", report, config, run).summary
    return {**told["membership"], "flagged": told["counts"]["duplicate"]}


def covered(work: Path, trials: int) -> dict[str, int]:
    """Return how often intervals cover 0.5 where nobody is a member: of the AUC and the control.

    Each time those of the training set and of the hold-out are dealt out anew. The synthetic set is
    that of people who are in neither.
    """
    held = Calibration.read(work / "index").holdout
    if held is None:
        raise SystemExit("the calibration has no hold-out")
    with Store.open(work / "index" / STORE) as store:
        rows = np.concatenate([held.rows, store.read(0, store.rows)])
        number = groups_of(store).number
    subjects = np.concatenate([held.subjects, held.subjects.max() + 1 + number])
    with Store.open(work / "report-neither" / SYNTHETIC) as store:
        every = Side(nearest(rows, (shard for _, shard in store.shards())), subjects)
    counts = {"auc": 0, "control": 0}
    for seed in range(trials):
        dealt = np.random.default_rng(seed).permutation(np.unique(subjects))
        members, others = (every.half(some) for some in np.array_split(dealt, 2))
        found = membership(members, others, seed)
        for name in counts:
            estimate = getattr(found, name)
            counts[name] += estimate.low <= 0.5 <= estimate.high
    return counts


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"trials": 100, "workers": 2})
    made.add_argument("--images", type=Path, required=True, help="folder of real people's images")
    made.add_argument("--name", required=True, help="what the set is called in the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
