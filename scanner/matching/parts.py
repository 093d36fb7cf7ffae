"""The evidence of one shard of synthetic images, kept in a file of the report.

    Part (Q, n) -> NNNNNNNN.parquet: a row a pair, by image, then by score -> the same

Verdicts are made of it without searching or registering anything again.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepssim_scan.errors import Damaged
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.index.rescore import Matches
from deepssim_scan.matching.evidence import Evidence
from deepssim_scan.storage.parquet import row_groups, writing

_REST = [field.name for field in fields(Evidence) if field.name != "measures"]
_COLUMNS = pa.schema(
    [
        ("training_row", pa.int64()),
        ("score", pa.float32()),
        ("view", pa.int8()),
        *((name, pa.float32()) for name in NAMES),
        *((name, pa.int8() if name == "flip" else pa.float32()) for name in _REST),
    ]
)
_FIRST = len(_COLUMNS) - len(NAMES) - len(_REST)  # column of the evidence


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The candidates of Q synthetic images, and what was found of the first of each."""

    candidates: Matches
    evidence: Evidence

    def unverified(self, count: int) -> int:
        """Return how many of the first `count` candidates of each image have no evidence."""
        return int(np.count_nonzero(self.evidence.missing[:, :count]))


def write_part(path: Path, part: Part) -> None:
    """Write a part, in place of what was there."""
    matches, evidence = part.candidates, part.evidence
    arrays: list[NDArray[Any]] = [matches.rows, matches.scores, matches.views]
    arrays += list(np.moveaxis(evidence.measures, -1, 0))
    arrays += [getattr(evidence, name) for name in _REST]
    columns = [pa.array(array.ravel()) for array in arrays]
    with writing(path, _COLUMNS) as out:
        out.write_table(pa.Table.from_arrays(columns, schema=_COLUMNS))


def read_part(path: Path, queries: int) -> Part:
    """Read the part of so many images; Damaged when it is not whole."""
    table = pa.concat_tables([_COLUMNS.empty_table(), *row_groups(path, _COLUMNS)])
    if table.num_rows % max(queries, 1):
        raise Damaged(f"{path}: {table.num_rows} pairs are not those of {queries} images.")
    columns = [
        column.combine_chunks().to_numpy(zero_copy_only=False).reshape(queries, -1)
        for column in table.columns
    ]
    last = _FIRST + len(NAMES)
    rest = dict(zip(_REST, columns[last:], strict=True))
    evidence = Evidence(measures=np.stack(columns[_FIRST:last], -1), **rest)
    return Part(Matches(*columns[:_FIRST]), evidence)
