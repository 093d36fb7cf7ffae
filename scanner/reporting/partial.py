"""Images that copy a part of a training image, though the whole is no copy.

PartialCopy, the strongest first <-> partial.parquet
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa

from deepssim_scan.storage.layout import PARTIAL
from deepssim_scan.storage.parquet import row_groups, writing

_COLUMNS = pa.schema(
    [
        ("synthetic_row", pa.int64()),
        ("synthetic", pa.string()),
        ("training", pa.string()),
        ("subject", pa.string()),
        ("p_value", pa.float64()),
        ("correlation", pa.float32()),
        ("mirrored", pa.bool_()),
        ("left", pa.int64()),
        ("top", pa.int64()),
        ("right", pa.int64()),
        ("bottom", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class PartialCopy:
    """A synthetic image of which a region is like one subject alone.

    Names are as `files.shown` gives them, as in other tables. The box is in pixels of the image,
    right and bottom not included; None where the image is gone.
    `mirrored` tells whether the region is, `correlation` how alike it is to that of the training
    image after local contrast normalisation.
    """

    synthetic_row: int
    synthetic: str
    training: str
    subject: str
    p_value: float
    correlation: float
    mirrored: bool
    left: int | None = None
    top: int | None = None
    right: int | None = None
    bottom: int | None = None


def write_partial(folder: Path, found: Sequence[PartialCopy]) -> None:
    """Write partial.parquet."""
    with writing(folder / PARTIAL, _COLUMNS) as out:
        out.write_table(pa.Table.from_pylist([asdict(each) for each in found], schema=_COLUMNS))


def read_partial(folder: Path) -> list[PartialCopy]:
    """Read partial.parquet of a report; Damaged when it is not what was written."""
    names = [field.name for field in fields(PartialCopy)]
    return [
        PartialCopy(**{name: row[name] for name in names})
        for table in row_groups(folder / PARTIAL, _COLUMNS)
        for row in table.to_pylist()
    ]
