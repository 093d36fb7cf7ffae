"""What an index folder records of its index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deepssim_scan.errors import InputError
from deepssim_scan.index.config import FLAT
from deepssim_scan.storage.layout import (
    APPROXIMATE,
    DIRECTIONS,
    INDEX,
    INDEX_MANIFEST,
    REDUCED,
    SEARCHED,
)
from deepssim_scan.storage.records import check_types, read_json, record

FORMAT = 4


@dataclass(frozen=True, slots=True)
class SearchType:
    """How an index is searched: its type, its effort, and the share of best matches it found.

    `recall` is of queries by which the effort was not chosen; 1 of an exact search.
    """

    factory: str
    effort: int
    recall: float


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What index.json records: of which store and encoder, and the SHA-256 of the files.

    `reduced` is the dimension of the reduced rows (`index.reduced`), 0 where there are none.
    `factory` is the type of the index as FAISS calls it. Of an approximate one, `recall` is
    the share of best matches that was asked for, `effort` how much it looks at, and `curve` what it
    found with this and with less (`index.recall.Point`). `unfound` are
    the rows that it does not find by themselves, which are searched exactly.
    """

    encoder: str
    store: str
    rows: int
    dimension: int
    files: dict[str, str]
    faiss: str
    factory: str
    reduced: int
    recall: float
    effort: int
    curve: list[dict[str, Any]]
    unfound: list[int]
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raise InputError for a value that no index of this version can have."""
        check_types(self)
        files = {INDEX} if self.factory == FLAT else {INDEX, APPROXIMATE}
        files |= {REDUCED, DIRECTIONS} if self.reduced else set()
        least = min(self.rows - 1, self.dimension - 1, self.effort, self.reduced)
        if least < 0 or self.format != FORMAT:
            raise InputError(
                f"{self} must have rows and dimension >= 1, effort and reduced >= 0, and "
                f"format {FORMAT}"
            )
        if any(type(row) is not int or not 0 <= row < self.rows for row in self.unfound):
            raise InputError(f"unfound must name rows, found {self.unfound}")
        if {*SEARCHED} & self.files.keys() != files:
            raise InputError(f"{self} must have the SHA-256 of {' and '.join(sorted(files))}")

    @property
    def search(self) -> SearchType:
        """How the index is searched."""
        told = self.curve[-1] if self.curve else {"found": 1, "queries": 1}
        return SearchType(self.factory, self.effort, told["found"] / told["queries"])

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read index.json; InputMissing when `folder` is not a finished index, or Damaged."""
        return record(cls, read_json(folder / INDEX_MANIFEST), folder / INDEX_MANIFEST)
