"""How often verdicts are right, on people that no encoder here was trained on.

Of each split, half of the people are the training set. Copies of their images are made in the ways
of `held_out.COPIES` and `FURTHER`; the images of the other half are non-members. `build-index` and
`query` run with their defaults. Nothing is fitted to the non-members.

The set is a folder of real people (`--images`: a person is a folder, or a file where there are
none) or one of `held_out.PEOPLE` (`--person`), of which deformations are people.

    python benchmarks/bench_verdicts.py --images DIR --name brain_tcga
    python benchmarks/bench_verdicts.py --person colin27 --name colin27
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import Spread, add_people, console, parser, write
from held_out import COPIES, FURTHER, PEOPLE, POSITIONS, Grey, changed, person
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.rates import clopper_pearson, false_discovery, most_copies
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query

KINDS = (*COPIES, *FURTHER)
RATES = (0.001, 0.01)
DEFORMED, VIEWS = 50, 10  # people of a half that are deformations, and images of each
JUDGED, SEEDS = 20_000, 100  # images of a simulated set, and how many sets
SHARES = (0.0, 0.001, 0.01)  # of the images of a simulated set that are copies
Set = dict[str, list[tuple[str, Grey]]]


def main() -> None:
    """Measure a split at a time, print and write what there is."""
    options = _options()
    splits: list[dict[str, Any]] = []
    for seed in range(options.seed, options.seed + options.splits):
        splits.append(measured(options, seed))
        show(options.name, splits)
        taken = {
            "build-index": Spread.of([split["seconds"]["index"] for split in splits], "s"),
            "query": Spread.of([split["seconds"]["query"] for split in splits], "s"),
        }
        ratios = {"copies flagged": float(np.mean([split["flagged"] for split in splits]))}
        write(f"verdicts_{options.name}", options, taken, ratios, splits=splits)


def measured(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Measure one split."""
    rng = np.random.default_rng(seed)
    members, others = halves(options, rng)
    run, started = RunContext("cpu", options.workers), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        truth, owner = plant(work, members, others, options.copies, rng)
        built = build_index(
            work / "training", work / "index", IndexConfig(adapt=options.adapt), run
        )
        indexed = time.monotonic()
        result = query(work / "synthetic", work / "index", work / "report", run=run)
        calibration = Calibration.read(work / "index")
        table = pq.read_table(work / "report" / "matches.parquet").to_pylist()
    best = {row["synthetic"]: row for row in table if row["rank"] == 1}
    found = judged(best, truth, owner, calibration)
    seconds = {"index": indexed - started, "query": time.monotonic() - indexed}
    return found | {
        "seed": seed,
        "seconds": seconds,
        "adapted": built.adapted,
        "smallest_false_alarm": calibration.null.smallest_rate,
        "false_alarm": result.summary["calibration"]["false_alarm"],
        "sensitivity": result.summary["calibration"]["sensitivity"],
        "canaries": result.summary["canaries"]["recall"],
        "simulated": simulated(best, truth, owner, calibration, found["flagged"], seed),
    }


def halves(options: argparse.Namespace, rng: np.random.Generator) -> tuple[Set, Set]:
    """Return the images of two halves of the people, by person: name and greys."""
    if options.person:
        someone = person(options.person)
        first = 2 * DEFORMED * int(rng.integers(1000))
        people = {
            f"{number:05d}": [
                (f"{number:05d}/{view:02d}.png", grey)
                for view, grey in enumerate(someone.images(number)[:: POSITIONS // VIEWS])
            ]
            for number in range(first, first + 2 * DEFORMED)
        }
    else:
        people = read_people(options.images)
    names = rng.permutation(sorted(people)).tolist()
    half = len(names) // 2
    return {n: people[n] for n in names[:half]}, {n: people[n] for n in names[half:]}


def plant(
    work: Path, members: Set, others: Set, copies: int, rng: np.random.Generator
) -> tuple[dict[str, str], dict[str, str]]:
    """Write training images, copies and non-members.

    Returns the source of each copy, and the person of each non-member.
    """
    training = [each for images in members.values() for each in images]
    for name, grey in training:
        save_grey(grey, work / "training" / name)
    truth = {}
    for kind in KINDS:
        for index in rng.choice(len(training), min(copies, len(training)), replace=False):
            source, grey = training[index]
            name = f"{kind}/{source.replace('/', '__')}"
            save_grey(changed(grey, kind, rng), work / "synthetic" / name)
            truth[name] = source
    owner = {}
    for who, images in others.items():
        for source, grey in images:
            name = f"non-member/{source.replace('/', '__')}"
            save_grey(grey, work / "synthetic" / name)
            owner[name] = who
    return truth, owner


def judged(
    best: dict[str, dict[str, Any]],
    truth: dict[str, str],
    owner: dict[str, str],
    calibration: Calibration,
) -> dict[str, Any]:
    """Count what is flagged, at the default rate and, of non-members, at RATES."""
    rate = calibration.false_alarm(None)
    flagged = {name: best[name]["verdict"] == "duplicate" for name in truth}
    by_kind = {
        kind: float(np.mean([hit for name, hit in flagged.items() if name.startswith(f"{kind}/")]))
        for kind in KINDS
    }
    p_values = np.array([best[name]["p_value"] for name in owner])
    people = np.unique(list(owner.values()), return_inverse=True)[1]
    return {
        "copies": len(truth),
        "non_members": len(owner),
        "flagged": float(np.mean(list(flagged.values()))),
        "flagged_of_kind": by_kind,
        "similar": float(np.mean([best[name]["verdict"] == "similar" for name in truth])),
        "source_first": float(np.mean([best[n]["training"] == s for n, s in truth.items()])),
        "false_alarms": {
            str(asked): _false_alarms(p_values, people, calibration.null, asked)
            | {"supported": asked >= rate}
            for asked in RATES
        },
        "ks": _ks_over_people(p_values, people, calibration.null),
        "p_values": np.round(np.sort(p_values), 5).tolist(),
    }


def _false_alarms(
    p_values: NDArray[np.float64], people: NDArray[np.int64], null: NullDistribution, asked: float
) -> dict[str, Any]:
    """Return the share of images flagged, its 95 % interval by person, and if the null has as many.

    The interval is that of Clopper and Pearson, and takes the null for exact. The last is the p of
    Fisher's exact test of two samples: the images, and those of the null, which is one as well.
    """
    from scipy.stats import fisher_exact

    own = null.p_values(null.statistics)
    seen, known = _flagged(p_values, people, asked), _flagged(own, null.subjects, asked)
    table = [[round(count), round(size - count)] for count, size in (seen, known)]
    return {
        "share": float((p_values <= asked).mean()),
        "interval": clopper_pearson(*seen),
        "two_samples_p": float(fisher_exact(table).pvalue),
    }


def _flagged(
    p_values: NDArray[np.float64], people: NDArray[np.int64], asked: float
) -> tuple[float, float]:
    """Return how many images are flagged, of how many: as many as those of the people are worth.

    That follows from the spread of what is flagged between people
    (`NullDistribution.effective_size`).
    """
    order = np.argsort(-p_values, kind="stable")
    size = NullDistribution(-p_values[order], people[order], None).effective_size(-asked)
    return float((p_values <= asked).mean()) * size, size


def _ks_over_people(
    p_values: NDArray[np.float64], people: NDArray[np.int64], null: NullDistribution
) -> dict[str, float]:
    """Test that p-values are those of the null's own images, one image of each person, 200 times.

    A null is a sample as well, so the test is that of two samples. Returns the medians of the
    statistic and of its p-value.
    """
    from scipy.stats import ks_2samp

    rng, found = np.random.default_rng(0), []
    own = null.p_values(null.statistics)
    for _ in range(200):
        seen, known = p_values[_one_each(people, rng)], own[_one_each(null.subjects, rng)]
        found.append(tuple(ks_2samp(seen, known)))
    statistic, p_value = np.median(np.array(found), 0)
    return {"statistic": float(statistic), "p_value": float(p_value)}


def _one_each(people: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw an image of each person: indices."""
    order = rng.permutation(len(people))
    return order[np.unique(people[order], return_index=True)[1]]


def simulated(
    best: dict[str, dict[str, Any]],
    truth: dict[str, str],
    owner: dict[str, str],
    calibration: Calibration,
    recall: float,
    seed: int,
) -> dict[str, Any]:
    """Draw sets of 20,000 images of those judged, and count how often what is stated holds.

    Non-members are drawn by person, copies by image. The canaries of a set find the share of copies
    that were found. Returns, for each share of copies, in how many of 100 sets the false discovery
    rate is under its bound, and the share of copies under its own.
    """
    rng, rate = np.random.default_rng(seed), calibration.false_alarm(None)
    upper = calibration.null.upper_bound(calibration.null.threshold(rate), 0.975)
    copies = np.array([best[name]["verdict"] == "duplicate" for name in truth])
    hits: dict[str, list[bool]] = {}
    for name, who in owner.items():
        hits.setdefault(who, []).append(best[name]["verdict"] == "duplicate")
    held: dict[str, Any] = {}
    for share in SHARES:
        discovery, most = 0, 0
        for _ in range(SEEDS):
            number = round(share * JUDGED)
            true = int(rng.choice(copies, number).sum())
            false = sum(_drawn(hits, JUDGED - number, rng))
            said = false_discovery(true + false, JUDGED, rate, upper)
            discovery += false <= said.upper * (true + false)
            canaries = int(rng.binomial(200, recall))
            most += share <= most_copies(true + false, JUDGED, canaries, 200)
        held[str(share)] = {"false_discovery": discovery, "most_copies": most}
    return held


def _drawn(hits: dict[str, list[bool]], count: int, rng: np.random.Generator) -> Iterator[int]:
    """Draw people with replacement until there are so many images; give the hits of each."""
    people = [(sum(images), len(images)) for images in hits.values()]
    while count > 0:
        found, size = people[rng.integers(len(people))]
        yield found
        count -= size


def show(name: str, splits: list[dict[str, Any]]) -> None:
    """Print a row a split, and the kinds of copy that are found least."""
    table = Table(title=f"{name}: verdicts")
    for column in (
        "split",
        "copies flagged",
        "source first",
        "flagged at 0.001",
        "at 0.01",
        "KS p",
    ):
        table.add_column(column, justify="right")
    for split in splits:
        alarms = [f"{split['false_alarms'][str(rate)]['share']:.2%}" for rate in RATES]
        shares = f"{split['flagged']:.1%}", f"{split['source_first']:.1%}"
        table.add_row(str(split["seed"]), *shares, *alarms, f"{split['ks']['p_value']:.2f}")
    console.print(table)
    kinds = {kind: np.mean([split["flagged_of_kind"][kind] for split in splits]) for kind in KINDS}
    worst = sorted(kinds, key=lambda kind: kinds[kind])[:4]
    console.print("Least found: " + ", ".join(f"{kind} {kinds[kind]:.1%}" for kind in worst))


def read_people(root: Path) -> Set:
    """Read the images of every person of a folder, by person: name and greys."""
    people: Set = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            name = str(path.relative_to(root).with_suffix(".png"))
            who = name if path.parent == root else str(path.parent.relative_to(root))
            people.setdefault(who, []).append((name, np.asarray(Image.open(path).convert("L"))))
    return people


def save_grey(grey: Grey, path: Path) -> None:
    """Write an image as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"splits": 5, "copies": 40, "workers": 2})
    add_people(made, PEOPLE)
    made.add_argument("--adapt", default="auto", help="auto, always or never")
    return made.parse_args()


if __name__ == "__main__":
    main()
