"""Volumes: synthetic ones of which slices are flagged, and the training volume that each copies.

flagged matches, the volume of each image -> CopiedVolume, the worst first -> volumes.parquet

Of a volume of 100 slices one is flagged by chance now and then. A volume is a copy when more of its
slices copy one training volume, or images of one subject, than false alarms explain.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepssim_scan.imaging.names import FLIPS
from deepssim_scan.reporting.match import Match
from deepssim_scan.storage.layout import VOLUMES
from deepssim_scan.storage.parquet import row_groups, writing

COPY, SLICES = "duplicate", "slices"
_COLUMNS = pa.schema(
    [
        ("synthetic", pa.string()),
        ("verdict", pa.string()),
        ("slices", pa.int64()),
        ("flagged", pa.int64()),
        ("training", pa.string()),
        ("subject", pa.string()),
        ("copied", pa.int64()),
        ("order", pa.float64()),
        ("p_value", pa.float64()),
        ("score", pa.float32()),
        ("finding", pa.string()),
        ("ncc", pa.float32()),
        ("ssim", pa.float32()),
        ("degrees", pa.list_(pa.float32(), 3)),
        ("shift", pa.list_(pa.float32(), 3)),
        ("scale", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class CopiedVolume:
    """A synthetic volume of which slices are flagged.

    Of its `slices` that have a verdict `flagged` ones are duplicates, and `copied` of them copy the
    `training` volume (or images of one subject, whose name stands there). `order` is the rank
    correlation of the slices of the two, -1 where they run the other way; None of fewer than
    three, or where all copy one slice. `verdict` is "duplicate" where the volume is a copy, else
    "slices". `matches` are the copied slices, the strongest first. ncc, ssim, degrees, shift and
    scale are those of
    `imaging.registration.volumes.Aligned`, None where the two were not aligned.
    """

    synthetic: str
    verdict: str
    slices: int
    flagged: int
    training: str
    subject: str
    copied: int
    order: float | None
    p_value: float | None
    score: float
    finding: str
    ncc: float | None = None
    ssim: float | None = None
    degrees: tuple[float, float, float] | None = None
    shift: tuple[float, float, float] | None = None
    scale: float | None = None
    matches: tuple[Match, ...] = ()

    @property
    def flip(self) -> int:
        """The flip that most of the slices have, an index in FLIPS."""
        flips = Counter(match.transform["flip"] for match in self.matches if match.transform)
        return FLIPS.index(flips.most_common(1)[0][0]) if flips else 0


def copied_volumes(
    flagged: Sequence[Match],
    slices: Mapping[str, int],
    volume_of: Mapping[int, str],
    training_of: Mapping[int, str],
    least: Mapping[str, int],
) -> list[CopiedVolume]:
    """Return the volumes of flagged rank-1 matches, those with the most copied slices first.

    `slices` has how many of each synthetic volume were judged, and `least` how many must copy one
    training volume. `volume_of` names the volumes of synthetic rows, `training_of` those of
    training rows; rows that are in none are left out.
    """
    by_volume: dict[str, list[Match]] = defaultdict(list)
    for match in flagged:
        if match.synthetic_row in volume_of:
            by_volume[volume_of[match.synthetic_row]].append(match)
    found = [
        _copied(name, matches, slices[name], training_of, least[name])
        for name, matches in by_volume.items()
    ]
    return sorted(found, key=lambda each: (-each.copied, each.synthetic))


def _copied(
    name: str, matches: Sequence[Match], slices: int, training_of: Mapping[int, str], least: int
) -> CopiedVolume:
    of: dict[str, list[Match]] = defaultdict(list)
    for match in matches:
        of[training_of.get(match.training_row, match.subject or match.training)].append(match)
    training, mine = max(of.items(), key=lambda item: len(item[1]))
    return CopiedVolume(
        name,
        COPY if len(mine) >= least else SLICES,
        slices,
        len(matches),
        training,
        mine[0].subject,
        len(mine),
        _order(mine),
        mine[0].p_value,
        mine[0].score,
        str(mine[0].finding),
        matches=tuple(mine),
    )


def _order(matches: Sequence[Match]) -> float | None:
    """Return the rank correlation of the slices of both sides; None where all copy one slice."""
    if len(matches) < 3:
        return None
    rows = np.array([(match.synthetic_row, match.training_row) for match in matches])
    ours, theirs = (_centred_ranks(each) for each in rows.T)
    spread = float(np.sqrt((ours * ours).sum() * (theirs * theirs).sum()))
    return float((ours * theirs).sum() / spread) if spread else None


def _centred_ranks(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the ranks of rows, with mean 0; equal rows share one."""
    _, which, counts = np.unique(rows, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts + 1) / 2)[which]
    centred: NDArray[np.float64] = ranks - ranks.mean()
    return centred


def read_volumes(folder: Path) -> list[CopiedVolume]:
    """Read volumes.parquet."""
    tables = row_groups(folder / VOLUMES, _COLUMNS)
    return [CopiedVolume(**row) for table in tables for row in table.to_pylist()]


def write_volumes(folder: Path, volumes: Sequence[CopiedVolume]) -> None:
    """Write volumes.parquet."""
    rows = [{name: getattr(each, name) for name in _COLUMNS.names} for each in volumes]
    with writing(folder / VOLUMES, _COLUMNS) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS))
