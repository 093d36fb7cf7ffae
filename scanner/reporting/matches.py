"""matches.parquet, and what is counted while it is written.

    judged pairs, a shard at a time -> matches.parquet, MatchCounts

Paths are relative to the folder given, and written as `files.shown` shows them. Scores are the
float32 that was compared with the bounds.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepssim_scan.calibration.rule import Judged
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.names import FLIPS, NAMES
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.matching.decision import VERDICTS
from deepssim_scan.matching.evidence import Evidence
from deepssim_scan.reporting.match import Match, finding_of, strongest_of_each
from deepssim_scan.reporting.subjects import Reproduced, reproduced
from deepssim_scan.reporting.tables import write_csv
from deepssim_scan.storage.files import shown
from deepssim_scan.storage.layout import FLAGGED, MATCHES
from deepssim_scan.storage.parquet import row_groups, writing

_STRONGEST = 5  # matches that a person is shown
_SHOWN = ("duplicate", "similar", "different", "undecidable")
_VIEWS = ("as it is", "quarter turn", "inverted", "quarter turn and inverted")  # of TTA_VIEWS
_TRANSFORM = pa.struct(
    [
        ("flip", pa.string()),
        *((name, pa.float32()) for name in ("degrees", "right", "down", "gamma", "scale")),
        ("quarter_turn", pa.bool_()),
        ("inverted", pa.bool_()),
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
        ("ssim_confirmed", pa.bool_()),
        ("subject", pa.string()),
        ("p_value", pa.float64()),
        ("statistic", pa.float64()),
        ("ncc", pa.float32()),
        ("lcn", pa.float32()),
        ("foreground", pa.float32()),
        ("finding", pa.string()),
        ("synthetic_row", pa.int64()),
        ("training_row", pa.int64()),
    ]
)
_DUPLICATE = VERDICTS.index("duplicate")
_MEASURES = ("ncc_1", "lcn_1")  # of which the columns ncc and lcn are
_CONFIRMED = np.float32(0.80)
_STRENGTH = [("statistic", "descending"), ("score", "descending"), ("synthetic", "ascending")]
_CSV = [
    *("synthetic", "rank", "training", "score", "verdict", "ssim", "ssim_confirmed"),
    *(*_TRANSFORM.names, "subject", "p_value", "finding"),
]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPairs:
    """The best k matches of Q images, the strongest first.

    first is the row of the first image in its store; synthetic (Q,) and training (Q * k,) records,
    by image and rank; matches, judged and evidence (Q, k)
    """

    first: int
    synthetic: Sequence[ImageRecord]
    training: Sequence[ImageRecord]
    matches: Matches
    judged: Judged
    evidence: Evidence

    def table(self) -> pa.Table:
        """Return the rows of matches.parquet."""
        count, k = self.matches.scores.shape
        names = pa.array([shown(each.name) for each in self.synthetic], pa.string())
        evidence, judged = self.evidence, self.judged
        missing = ~evidence.registered.ravel()
        ssim = evidence.ssim.ravel()
        measures = [evidence.measures[..., NAMES.index(name)] for name in _MEASURES]
        columns = [
            pc.take(names, pa.array(np.repeat(np.arange(count), k))),
            pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), count)),
            pa.array([shown(each.name) for each in self.training], pa.string()),
            pa.array(self.matches.scores.ravel()),
            pa.DictionaryArray.from_arrays(pa.array(judged.verdicts.ravel()), list(VERDICTS)),
            pa.array(ssim, mask=missing),
            _transforms(evidence, self.matches.views, missing),
            pa.array(ssim > _CONFIRMED, mask=missing),
            pa.array([shown(each.subject) for each in self.training], pa.string()),
            _or_null(judged.p_values),
            _or_null(judged.statistics),
            *map(_or_null, measures),
            _or_null(evidence.foreground),
            pa.array(self._findings(), pa.string()),
            pa.array(np.repeat(np.arange(self.first, self.first + count), k)),
            pa.array(self.matches.rows.ravel()),
        ]
        return pa.Table.from_arrays(columns, schema=_COLUMNS)

    def _findings(self) -> list[str | None]:
        """Return the name of the finding (Q * k,) of each pair that is one."""
        found: list[str | None] = [None] * len(self.training)
        k = self.matches.rows.shape[1]
        for pair in np.flatnonzero(self.judged.verdicts.ravel() == _DUPLICATE).tolist():
            found[pair] = finding_of(self.synthetic[pair // k], self.training[pair])
        return found


def _or_null(values: NDArray[Any]) -> pa.Array:
    """Return values (Q, k) as a column; null for NaN."""
    return pa.array(values.ravel(), mask=np.isnan(values.ravel()))


def _transforms(
    found: Evidence, views: NDArray[np.int8], missing: NDArray[np.bool_]
) -> pa.StructArray:
    flips = pa.array([FLIPS[flip] for flip in found.flip.ravel()], pa.string())
    numbers = (getattr(found, name).ravel() for name in _TRANSFORM.names[1:-2])
    turned, inverted = np.array(TTA_VIEWS, bool)[views.ravel()].T
    columns = [flips, *map(pa.array, numbers), pa.array(turned), pa.array(inverted)]
    return pa.StructArray.from_arrays(columns, fields=list(_TRANSFORM), mask=pa.array(missing))


@dataclass(slots=True)
class MatchCounts:
    """What was written to matches.parquet: verdicts of images, flagged and strongest matches."""

    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SHOWN, 0))
    views: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_VIEWS, 0))
    _flagged: pa.Table = field(default_factory=_COLUMNS.empty_table)
    _strongest: pa.Table = field(default_factory=_COLUMNS.empty_table)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a part."""
        best = table.filter(pc.equal(table["rank"], 1))
        verdicts = pc.cast(best["verdict"], pa.string())
        for verdict, count in Counter(verdicts.to_pylist()).items():
            self.verdicts[verdict] += count
        flagged = best.filter(pc.equal(verdicts, "duplicate"))
        self._count_views(flagged)
        self._flagged = _joined(self._flagged, flagged)
        self._strongest = _joined(self._strongest, best).slice(0, _STRONGEST)

    def _count_views(self, flagged: pa.Table) -> None:
        """Count how the flagged images of a part were turned or inverted."""
        for transform in flagged["transform"].to_pylist():
            if transform is not None:
                turned, inverted = transform["quarter_turn"], transform["inverted"]
                self.views[_VIEWS[turned + 2 * inverted]] += 1

    @property
    def flagged(self) -> list[Match]:
        """The rank-1 matches that are duplicates, the strongest first, ties by path."""
        return _matches(self._flagged)

    @property
    def findings(self) -> list[Match]:
        """The strongest of the flagged matches of each finding."""
        return strongest_of_each(self.flagged)

    @property
    def strongest(self) -> list[Match]:
        """The strongest rank-1 matches."""
        return _matches(self._strongest)

    @property
    def subjects(self) -> list[Reproduced]:
        """Who is reproduced, the worst first."""
        return reproduced(self.flagged)


def _joined(first: pa.Table, second: pa.Table) -> pa.Table:
    return pa.concat_tables([first, second]).sort_by(_STRENGTH).unify_dictionaries()


def _matches(table: pa.Table) -> list[Match]:
    return [Match(**row) for row in table.to_pylist()]


class MatchesWriter:
    """Writes matches.parquet, a row group a part, and counts what goes into it."""

    def __init__(self, out: pq.ParquetWriter) -> None:
        """Use `writing_matches`."""
        self._out = out
        self.counts = MatchCounts()

    def add(self, pairs: JudgedPairs) -> None:
        """Write the matches of some synthetic images."""
        table = pairs.table()
        self.counts.add(table)
        self._out.write_table(table)


@contextmanager
def writing_matches(folder: Path) -> Iterator[MatchesWriter]:
    """Give a writer of a folder's matches.parquet, which is there once the block ends well."""
    with writing(folder / MATCHES, _COLUMNS) as out:
        yield MatchesWriter(out)


def read_counts(folder: Path) -> tuple[int, MatchCounts]:
    """Read matches.parquet: how many rows it has, and what is counted of them."""
    rows, counts = 0, MatchCounts()
    for table in row_groups(folder / MATCHES, _COLUMNS):
        rows += table.num_rows
        counts.add(table)
    return rows, counts


def duplicates_of(folder: Path, images: Collection[int]) -> dict[int, list[Match]]:
    """Return all matches of some synthetic images that are duplicates, by row, in order of rank."""
    found: dict[int, list[Match]] = {row: [] for row in images}
    rows, wanted = pa.array(sorted(images), pa.int64()), pa.scalar("duplicate")
    for table in row_groups(folder / MATCHES, _COLUMNS):
        asked = table.filter(pc.is_in(table["synthetic_row"], rows))
        verdicts = pc.cast(asked["verdict"], pa.string())
        for match in _matches(asked.filter(pc.equal(verdicts, wanted))):
            found[match.synthetic_row].append(match)
    return found


def judged_pairs(folder: Path) -> Iterator[tuple[str, str, str, float]]:
    """Give synthetic image, training image, verdict and statistic of every match.

    The statistic is NaN where the rule has none.
    """
    columns = ["synthetic", "training", "verdict", "statistic"]
    for table in row_groups(folder / MATCHES, _COLUMNS):
        some = table.select(columns)
        some = some.set_column(3, "statistic", some["statistic"].fill_null(float("nan")))
        yield from zip(*(some[name].to_pylist() for name in columns), strict=True)


def verdicts_of(folder: Path) -> list[str]:
    """Return the verdict of every synthetic image, by its row."""
    found = list[str]()
    for table in row_groups(folder / MATCHES, _COLUMNS):
        best = table.filter(pc.equal(table["rank"], 1))
        found += pc.cast(best["verdict"], pa.string()).to_pylist()
    return found


def of_best(folder: Path, column: str) -> Iterator[float]:
    """Give a number of the rank-1 match of every synthetic image, NaN where it has none."""
    for table in row_groups(folder / MATCHES, _COLUMNS):
        values = table.filter(pc.equal(table["rank"], 1))[column]
        yield from values.fill_null(float("nan")).to_pylist()


def best_matches(folder: Path) -> list[Match]:
    """Read the rank-1 match of every synthetic image, the highest score first, ties by path."""
    best = _COLUMNS.empty_table()
    for table in row_groups(folder / MATCHES, _COLUMNS):
        best = _joined(best, table.filter(pc.equal(table["rank"], 1)))
    return _matches(best)


def write_flagged(folder: Path, flagged: Sequence[Match]) -> None:
    """Write flagged.csv."""
    write_csv(folder / FLAGGED, _CSV, map(_cells, flagged))


def _cells(match: Match) -> list[Any]:
    """Return a match as columns of CSV, empty where the pair was not registered."""
    cells = [match.synthetic, match.rank, match.training, f"{match.score:.6f}", match.verdict]
    p_value = "" if match.p_value is None else f"{match.p_value:.3g}"
    last = [match.subject, p_value, match.finding]
    if match.ssim is None or match.transform is None:
        return [*cells, *[""] * (len(_CSV) - len(cells) - len(last)), *last]
    flip, *numbers, turned, inverted = match.transform.values()
    told = [str(each).lower() for each in (turned, inverted)]
    confirmed = str(match.ssim_confirmed).lower()
    numbers = [f"{number:.3f}" for number in numbers]
    return [*cells, f"{match.ssim:.6f}", confirmed, flip, *numbers, *told, *last]
