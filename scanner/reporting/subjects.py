"""Who is reproduced: the subjects whose images the flagged images copy.

flagged matches -> Reproduced, the worst first -> subjects.parquet
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import pyarrow as pa

from deepssim_scan.reporting.match import Match
from deepssim_scan.storage.layout import SUBJECTS
from deepssim_scan.storage.parquet import row_groups, writing

_RARE = 0.95

_COLUMNS = pa.schema(
    [
        ("subject", pa.string()),
        ("named", pa.bool_()),
        ("synthetic_images", pa.int64()),
        ("training_images", pa.int64()),
        ("p_value", pa.float64()),
        ("score", pa.float32()),
        ("synthetic", pa.string()),
        ("training", pa.string()),
        ("training_row", pa.int64()),
        ("rarity", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A subject whom flagged images copy, and the strongest match.

    `subject` is its name or keyed hash; where nobody is told apart (`named` is false), the name of
    the training image. `synthetic_images` flagged images copy `training_images` images of it.
    `rarity` is the share of the training images that have another subject's image nearer to them
    than the copied one has; None where it is not known.
    """

    subject: str
    named: bool
    synthetic_images: int
    training_images: int
    p_value: float | None
    score: float
    synthetic: str
    training: str
    training_row: int = -1
    rarity: float | None = None

    @property
    def rare(self) -> bool:
        """Whether its images are unlike those of nearly all others."""
        return self.rarity is not None and self.rarity >= _RARE


def reproduced(flagged: Sequence[Match]) -> list[Reproduced]:
    """Return the subjects of flagged rank-1 matches, the strongest match of each first.

    The most often copied come first, then those of the strongest match.
    """
    of: dict[tuple[str, bool], list[Match]] = defaultdict(list)
    for match in flagged:
        of[match.subject or match.training, bool(match.subject)].append(match)
    subjects = [
        Reproduced(
            name,
            named,
            len(matches),
            len({match.training for match in matches}),
            matches[0].p_value,
            matches[0].score,
            matches[0].synthetic,
            matches[0].training,
            matches[0].training_row,
        )
        for (name, named), matches in of.items()
    ]
    return sorted(subjects, key=lambda each: -each.synthetic_images)


def read_subjects(folder: Path) -> list[Reproduced]:
    """Read subjects.parquet."""
    tables = row_groups(folder / SUBJECTS, _COLUMNS)
    return [Reproduced(**row) for table in tables for row in table.to_pylist()]


def write_subjects(folder: Path, subjects: Sequence[Reproduced]) -> None:
    """Write subjects.parquet."""
    rows = [dict(zip(_COLUMNS.names, astuple(each), strict=True)) for each in subjects]
    with writing(folder / SUBJECTS, _COLUMNS) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS))
