"""How many candidates of an image pay to verify, on real people of a folder.

Half of the people are the training set. Copies of their images are made in the ways of
`held_out.COPIES`; the images of the other half are non-members. The index is calibrated for each
number of candidates, and queried with as many: copies flagged, copies whose source is among the
candidates, non-members flagged, and the seconds of search and registration. The false-alarm rate
is the default one, or the least that the calibration supports.

A person is a folder of `--images`, or a file where there are no folders.

    python benchmarks/bench_candidates.py --images DIR --name brain_tcga
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import Spread, console, parser, wilson, write
from held_out import COPIES, changed
from PIL import Image
from rich.table import Table

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import CalibrateConfig, IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CANDIDATES, CanaryConfig, EvidenceConfig, VerdictConfig

DEPTHS = (1, 2, 3, 5, 8, 12, 16, 32)


def main() -> None:
    """Measure, print and write."""
    options = _options()
    run, rows = RunContext("cpu", 1), {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        truth, others = planted(options, work)
        build_index(work / "training", work / "index", IndexConfig(calibrate=False), run)
        for depth in DEPTHS:
            summary, pairs = queried(depth, work, run)
            rows[depth] = measured(summary, pairs, truth, others)
    show(options.name, rows)
    search = {
        f"search and registration, {depth} candidates": Spread.of([row["seconds"]], "s")
        for depth, row in rows.items()
    }
    ratios = {
        f"copies flagged, {CANDIDATES} candidates / {DEPTHS[-1]}": rows[CANDIDATES]["flagged"]
        / rows[DEPTHS[-1]]["flagged"]
    }
    write(
        f"candidates_{options.name}",
        options,
        search,
        ratios,
        depths=rows,
        copies=len(truth),
        non_members=others,
    )


def planted(options: argparse.Namespace, work: Path) -> tuple[dict[str, str], int]:
    """Write training images, copies and non-members; return each copy's source, and the others."""
    rng = np.random.default_rng(options.seed)
    people = _people(options.images)
    names = rng.permutation(sorted(people)).tolist()
    members, others = names[: len(names) // 2], names[len(names) // 2 :]
    training = [path for name in members for path in people[name]]
    for path in training:
        _save(Image.open(path).convert("L"), work / "training" / _name(path, options.images))
    truth = {}
    for kind in COPIES:
        for index in rng.choice(len(training), options.copies, replace=False):
            source = _name(training[index], options.images)
            grey = np.asarray(Image.open(training[index]).convert("L"))
            name = f"{kind}/{source.replace('/', '_')}"
            _save(Image.fromarray(changed(grey, kind, rng)), work / "synthetic" / name)
            truth[name] = source
    unseen = [path for name in others for path in people[name]]
    for index in rng.permutation(len(unseen))[: options.others]:
        path = unseen[index]
        name = f"other/{_name(path, options.images).replace('/', '_')}"
        _save(Image.open(path).convert("L"), work / "synthetic" / name)
    return truth, min(options.others, len(unseen))


def queried(
    depth: int, work: Path, run: RunContext
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Calibrate for a number of candidates and query; return the summary and each image's pairs."""
    calibrate(work / "index", CalibrateConfig(candidates=depth), run)
    config = QueryConfig(
        evidence=EvidenceConfig(candidates=depth),
        verdict=VerdictConfig(depth),
        canaries=CanaryConfig(0),
    )
    result = query(work / "synthetic", work / "index", work / "report", config, run)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(work / "report" / "matches.parquet").to_pylist():
        pairs.setdefault(row["synthetic"], []).append(row)
    return result.summary, pairs


def measured(
    summary: dict[str, Any],
    pairs: dict[str, list[dict[str, Any]]],
    truth: dict[str, str],
    others: int,
) -> dict[str, Any]:
    """Count what a query gives."""
    flagged = {
        name: any(row["verdict"] == "duplicate" for row in rows) for name, rows in pairs.items()
    }
    there = [source in [row["training"] for row in pairs[name]] for name, source in truth.items()]
    copies = sum(flagged[name] for name in truth)
    wrong = sum(found for name, found in flagged.items() if name not in truth)
    kinds = {
        kind: float(np.mean([flagged[name] for name in truth if name.startswith(f"{kind}/")]))
        for kind in COPIES
    }
    return {
        "flagged": copies / len(truth),
        "flagged_95": wilson(copies, len(truth)),
        "source_among": sum(there) / len(truth),
        "non_members_flagged": wrong / others,
        "non_members_flagged_95": wilson(wrong, others),
        "false_alarm_asked": summary["calibration"]["false_alarm"],
        "seconds": summary["seconds"]["search"],
        "by_kind": kinds,
    }


def show(name: str, rows: dict[int, dict[str, Any]]) -> None:
    """Print a row a depth."""
    table = Table(title=f"{name}: what a query gives by its number of candidates")
    keys = "flagged", "source_among", "non_members_flagged", "false_alarm_asked"
    for column in ("candidates", *(key.replace("_", " ") for key in keys), "seconds"):
        table.add_column(column, justify="right")
    for depth, found in rows.items():
        table.add_row(str(depth), *(f"{found[k]:.2%}" for k in keys), f"{found['seconds']:.1f}")
    console.print(table)


def _people(root: Path) -> dict[str, list[Path]]:
    people: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            person = path.name if path.parent == root else str(path.parent.relative_to(root))
            people.setdefault(person, []).append(path)
    return people


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root).with_suffix(".png"))


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"copies": 40, "others": 300})
    made.add_argument("--images", type=Path, required=True, help="folder of real people's images")
    made.add_argument("--name", required=True, help="what the set is called in the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
