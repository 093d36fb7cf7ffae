"""The report folder: what other programs and people read.

    matches + verdicts, a block at a time -> matches.parquet -> flagged.csv; summary.json

Paths are relative to the folder given, and written as `files.shown` shows them. Scores in CSV
have six decimals; Parquet holds the float32 that was compared with the thresholds.
"""

import csv
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepssim_scan.embeddings import Entry
from deepssim_scan.files import flush, replacing, shown
from deepssim_scan.verdicts import VERDICTS

MATCHES, FLAGGED, REJECTED, SUMMARY = (
    "matches.parquet",
    "flagged.csv",
    "rejected.csv",
    "summary.json",
)
_COLUMNS = pa.schema(
    [
        ("synthetic", pa.string()),
        ("rank", pa.int32()),
        ("training", pa.string()),
        ("score", pa.float32()),
        ("verdict", pa.dictionary(pa.int8(), pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class Match:
    """A synthetic image, one of its most similar training images, and what the score says."""

    synthetic: str
    rank: int
    training: str
    score: float
    verdict: str


class MatchWriter(AbstractContextManager["MatchWriter"]):
    """Write matches.parquet block by block; counts the verdicts of the best matches."""

    def __init__(self, folder: Path) -> None:
        """Begin the file in `folder`; leave the block as a context manager to finish it."""
        self.path = folder / MATCHES
        self.counts = dict.fromkeys(reversed(VERDICTS), 0)
        self._file = pq.ParquetWriter(self.path, _COLUMNS)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.chmod(0o600)
        flush(self.path)

    def add(
        self,
        synthetic: Sequence[str],
        training: Sequence[str],
        scores: NDArray[np.float32],
        verdicts: NDArray[np.int8],
    ) -> None:
        """Add the best k matches of Q images.

        synthetic (Q,) paths, training (Q * k,) paths by image and rank, scores and verdicts
        (Q, k), verdicts as places in VERDICTS
        """
        count, k = scores.shape
        names = pa.array([shown(path) for path in synthetic])
        columns = [
            pc.take(names, pa.array(np.repeat(np.arange(count), k))),
            pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), count)),
            pa.array([shown(path) for path in training]),
            pa.array(scores.ravel()),
            pa.DictionaryArray.from_arrays(pa.array(verdicts.ravel()), list(VERDICTS)),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=_COLUMNS))
        for code, verdict in enumerate(VERDICTS):
            self.counts[verdict] += int(np.count_nonzero(verdicts[:, 0] == code))


def best_matches(folder: Path, verdict: str | None = None, limit: int | None = None) -> list[Match]:
    """Read the rank-1 matches, strongest first, ties by path; of one verdict, or the first few.

    One row group is in memory at a time, and what is returned.
    """
    best = _COLUMNS.empty_table()
    with pq.ParquetFile(folder / MATCHES) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            chosen = pc.equal(table["rank"], 1)
            if verdict is not None:
                chosen = pc.and_(chosen, pc.equal(pc.cast(table["verdict"], pa.string()), verdict))
            best = pa.concat_tables([best, table.filter(chosen)])
            best = best.sort_by([("score", "descending"), ("synthetic", "ascending")])
            best = best.slice(0, limit).unify_dictionaries()
    return [Match(**row) for row in best.to_pylist()]


def write_flagged(folder: Path) -> list[Match]:
    """Write flagged.csv, the rank-1 matches that are duplicates, and return them."""
    flagged = best_matches(folder, "duplicate")
    rows = ((m.synthetic, m.rank, m.training, f"{m.score:.6f}", m.verdict) for m in flagged)
    _write_csv(folder / FLAGGED, _COLUMNS.names, rows)
    return flagged


def write_rejected(folder: Path, rejections: Iterable[Entry]) -> None:
    """Write rejected.csv: path, reason (a code of `decode.REASONS`), detail."""
    rows = ((shown(entry.path), entry.reason, shown(entry.detail)) for entry in rejections)
    _write_csv(folder / REJECTED, ["path", "reason", "detail"], rows)


def _write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
