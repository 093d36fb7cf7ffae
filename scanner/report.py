"""The report folder: what other programs and people read.

    matches + verdicts, a shard at a time -> parts -> matches.parquet -> flagged.csv; summary.json

Paths are relative to the folder given, and written as `files.shown` shows them. Scores in CSV
have six decimals; Parquet holds the float32 that was compared with the thresholds.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepssim_scan.catalog import Entry
from deepssim_scan.errors import Damaged
from deepssim_scan.files import replacing, shown
from deepssim_scan.registration import FLIPS
from deepssim_scan.verdicts import VERDICTS, VERIFIED
from deepssim_scan.verify import Verification

MATCHES, FLAGGED, REJECTED, SUMMARY = (
    "matches.parquet",
    "flagged.csv",
    "rejected.csv",
    "summary.json",
)
_TRANSFORM = pa.struct(
    [
        ("flip", pa.string()),
        *((name, pa.float32()) for name in ("degrees", "right", "down", "gamma")),
    ]
)
_COLUMNS = pa.schema(
    [
        ("synthetic", pa.string()),
        ("rank", pa.int32()),
        ("training", pa.string()),
        ("score", pa.float32()),
        ("verdict", pa.dictionary(pa.int8(), pa.string())),
        ("ssim", pa.float32()),
        ("transform", _TRANSFORM),
        ("verified", pa.bool_()),
    ]
)
_STRENGTH = [("score", "descending"), ("synthetic", "ascending")]
_CSV = ["synthetic", "rank", "training", "score", "verdict", "ssim", "verified", *_TRANSFORM.names]


@dataclass(frozen=True, slots=True)
class Match:
    """A synthetic image, one of its most similar training images, and what is said of the two.

    `ssim` is that after registration, and `transform` what makes the synthetic image of the
    training image: flip (one of `registration.FLIPS`), degrees counter-clockwise, right and down
    in pixels of 128, gamma. `verified` tells whether that SSIM is above its threshold. All three
    are None for a pair that was not registered.
    """

    synthetic: str
    rank: int
    training: str
    score: float
    verdict: str
    ssim: float | None = None
    transform: dict[str, Any] | None = None
    verified: bool | None = None


def write_matches(
    path: Path,
    synthetic: Sequence[str],
    training: Sequence[str],
    scores: NDArray[np.float32],
    verdicts: NDArray[np.int8],
    verification: Verification,
    least_ssim: float,
) -> None:
    """Write the best k matches of Q images to a Parquet file of its own.

    synthetic (Q,) names, training (Q * k,) names by image and rank; scores, verdicts and
    verification (Q, k), verdicts as places in VERDICTS; a pair whose SSIM is above `least_ssim`
    is verified
    """
    count, k = scores.shape
    names = pa.array([shown(path) for path in synthetic], pa.string())
    ssim = verification.ssim.ravel()
    missing = np.isnan(ssim)
    columns = [
        pc.take(names, pa.array(np.repeat(np.arange(count), k))),
        pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), count)),
        pa.array([shown(path) for path in training], pa.string()),
        pa.array(scores.ravel()),
        pa.DictionaryArray.from_arrays(pa.array(verdicts.ravel()), list(VERDICTS)),
        pa.array(ssim, mask=missing),
        _transforms(verification, missing),
        pa.array(ssim > np.float32(least_ssim), mask=missing),
    ]
    _write_tables(path, [pa.Table.from_arrays(columns, schema=_COLUMNS)])


def _transforms(found: Verification, missing: NDArray[np.bool_]) -> pa.StructArray:
    flips = pa.array([FLIPS[flip] for flip in found.flip.ravel()], pa.string())
    numbers = (getattr(found, name).ravel() for name in _TRANSFORM.names[1:])
    columns = [flips, *map(pa.array, numbers)]
    return pa.StructArray.from_arrays(columns, fields=list(_TRANSFORM), mask=pa.array(missing))


def merge_matches(folder: Path, parts: Sequence[Path]) -> None:
    """Write matches.parquet: a row group for each part, in their order."""
    _write_tables(folder / MATCHES, (table for part in parts for table in _tables(part)))


def count_verdicts(folder: Path) -> dict[str, int]:
    """Count the verdicts of the best matches in matches.parquet, the strongest verdict first."""
    counts = dict.fromkeys(reversed(VERDICTS), 0)
    for table in _tables(folder / MATCHES):
        best = table.filter(pc.equal(table["rank"], 1))
        for verdict in best["verdict"].to_pylist():
            counts[verdict] += 1
    return counts


def count_verified(folder: Path, similar: float) -> dict[str, int]:
    """Count the pairs that were registered, those verified, and those that could not be registered.

    Above `similar`, all should have been, and of every image the best five, which come before all
    that need not be.
    """
    counts = {"registered": 0, "verified": 0, "not registered": 0}
    for table in _tables(folder / MATCHES):
        looked = pc.is_valid(table["ssim"])
        strong = pc.greater(table["score"], pa.scalar(similar, pa.float32()))
        wanted = pc.or_(strong, pc.less_equal(table["rank"], VERIFIED))
        counts["registered"] += pc.sum(looked).as_py() or 0
        counts["verified"] += pc.sum(table["verified"]).as_py() or 0
        counts["not registered"] += pc.sum(pc.and_(wanted, pc.invert(looked))).as_py() or 0
    return counts


def count_matches(folder: Path) -> int:
    """Count the rows of matches.parquet."""
    return sum(table.num_rows for table in _tables(folder / MATCHES))


def best_matches(folder: Path, verdict: str | None = None, limit: int | None = None) -> list[Match]:
    """Read the rank-1 matches, strongest first, ties by path; of one verdict, or the first few.

    One row group is in memory at a time, and what is returned.
    """
    best = _COLUMNS.empty_table()
    for table in _tables(folder / MATCHES):
        chosen = pc.equal(table["rank"], 1)
        if verdict is not None:
            chosen = pc.and_(chosen, pc.equal(pc.cast(table["verdict"], pa.string()), verdict))
        best = pa.concat_tables([best, table.filter(chosen)])
        best = best.sort_by(_STRENGTH)
        best = best.slice(0, limit).unify_dictionaries()
    return [Match(**row) for row in best.to_pylist()]


def _tables(path: Path) -> Iterator[pa.Table]:
    """Give a Parquet file of ours, a row group at a time; Damaged when its checksums do not fit."""
    try:
        # Opened here: Arrow takes no name that is not UTF-8.
        with (
            path.open("rb") as data,
            pq.ParquetFile(data, page_checksum_verification=True) as file,
        ):
            if file.schema_arrow != _COLUMNS:
                raise pa.ArrowInvalid(f"its columns are {', '.join(file.schema_arrow.names)}")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                table.validate(full=True)  # what no checksum covers: the headers of pages
                yield table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Damaged(
            f"{path}: cannot be read: {error}. Remove it and run the query again."
        ) from error


def _write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    with replacing(path) as file, pq.ParquetWriter(file, _COLUMNS, write_page_checksum=True) as out:
        for table in tables:
            out.write_table(table)


def write_flagged(folder: Path) -> list[Match]:
    """Write flagged.csv, the rank-1 matches that are duplicates, and return them."""
    flagged = best_matches(folder, "duplicate")
    _write_csv(folder / FLAGGED, _CSV, map(_cells, flagged))
    return flagged


def _cells(match: Match) -> list[Any]:
    """Return a match as columns of CSV, empty where the pair was not registered."""
    cells = [match.synthetic, match.rank, match.training, f"{match.score:.6f}", match.verdict]
    if match.ssim is None or match.transform is None:
        return cells + [""] * (len(_CSV) - len(cells))
    flip, *numbers = match.transform.values()
    verified = "true" if match.verified else "false"
    return [*cells, f"{match.ssim:.6f}", verified, flip, *(f"{number:.3f}" for number in numbers)]


def write_rejected(folder: Path, rejections: Iterable[Entry]) -> None:
    """Write rejected.csv: path, reason (a code of `decode.REASONS`), detail."""
    rows = ((shown(entry.name), entry.reason, shown(entry.detail)) for entry in rejections)
    _write_csv(folder / REJECTED, ["path", "reason", "detail"], rows)


def _write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with replacing(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
