"""How many candidates of an image pay to verify, on real people of a folder.

Half of the people are the training set. Copies of their images are made in the ways of
`held_out.COPIES`; the images of the other half are non-members. All are queried once with the most
candidates, and the verdicts that fewer would have given follow from the same pairs: copies flagged,
copies whose source is among the candidates, non-members flagged, and the pairs to register.

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

from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import EvidenceConfig, VerdictConfig
from deepssim_scan.matching.decision import VERDICTS, judge

DEPTHS = (1, 2, 3, 5, 8, 12, 16, 32)
DUPLICATE = VERDICTS.index("duplicate")


def main() -> None:
    """Measure, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        truth, others = planted(options, Path(name))
        summary, pairs = queried(Path(name))
    thresholds = Thresholds(**summary["thresholds"])
    rows = {depth: measured(depth, pairs, truth, others, thresholds) for depth in DEPTHS}
    show(options.name, rows)
    search = Spread.of([summary["seconds"]["search"]], "s")
    ratios = {"copies flagged, 5 candidates / 32": rows[5]["flagged"] / rows[32]["flagged"]}
    write(
        f"candidates_{options.name}",
        options,
        {"search and registration": search},
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


def queried(work: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Query with the most candidates; return the summary, and each image's pairs by score."""
    run = RunContext("cpu", 1)
    build_index(work / "training", work / "index", run=run)
    config = QueryConfig(
        evidence=EvidenceConfig(candidates=DEPTHS[-1]), verdict=VerdictConfig(DEPTHS[-1])
    )
    result = query(work / "synthetic", work / "index", work / "report", config, run)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(work / "report" / "matches.parquet").to_pylist():
        pairs.setdefault(row["synthetic"], []).append(row)
    by_score = {name: sorted(rows, key=lambda row: -row["score"]) for name, rows in pairs.items()}
    return result.summary, by_score


def measured(
    depth: int,
    pairs: dict[str, list[dict[str, Any]]],
    truth: dict[str, str],
    others: int,
    thresholds: Thresholds,
) -> dict[str, Any]:
    """Count what the first `depth` candidates give."""
    flagged = {name: _flagged(rows[:depth], thresholds) for name, rows in pairs.items()}
    there = [source in [r["training"] for r in pairs[n][:depth]] for n, source in truth.items()]
    copies = sum(flagged[name] for name in truth)
    wrong = sum(found for name, found in flagged.items() if name not in truth)
    kinds = {
        kind: sum(flagged[n] for n in truth if n.startswith(f"{kind}/"))
        / sum(n.startswith(f"{kind}/") for n in truth)
        for kind in COPIES
    }
    return {
        "flagged": copies / len(truth),
        "flagged_95": wilson(copies, len(truth)),
        "source_among": sum(there) / len(truth),
        "non_members_flagged": wrong / others,
        "non_members_flagged_95": wilson(wrong, others),
        "by_kind": kinds,
    }


def _flagged(rows: list[dict[str, Any]], thresholds: Thresholds) -> bool:
    scores, ssim = (np.array([row[name] for row in rows], np.float32) for name in ("score", "ssim"))
    return bool((judge(scores, thresholds, ssim) == DUPLICATE).any())


def show(name: str, rows: dict[int, dict[str, Any]]) -> None:
    """Print a row a depth."""
    table = Table(title=f"{name}: what the first candidates of each image give")
    for column in ("candidates", "copies flagged", "source among them", "non-members flagged"):
        table.add_column(column, justify="right")
    for depth, found in rows.items():
        shares = (found[key] for key in ("flagged", "source_among", "non_members_flagged"))
        table.add_row(str(depth), *(f"{share:.2%}" for share in shares))
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
