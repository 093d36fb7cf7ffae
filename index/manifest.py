"""What an index folder records of its index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deepssim_scan.errors import InputError
from deepssim_scan.storage.layout import INDEX, INDEX_MANIFEST
from deepssim_scan.storage.records import check_types, read_json, record

FORMAT = 2


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What index.json records: of which store and encoder, and the SHA-256 of the files."""

    encoder: str
    store: str
    rows: int
    dimension: int
    files: dict[str, str]
    faiss: str
    factory: str = "Flat"
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raise InputError for a value that no index of this version can have."""
        check_types(self)
        fixed = (self.factory, self.format) == ("Flat", FORMAT)
        if min(self.rows, self.dimension) < 1 or not fixed or INDEX not in self.files:
            raise InputError(
                f"{self} must have rows and dimension >= 1, factory 'Flat', format {FORMAT} and "
                f"the SHA-256 of {INDEX}"
            )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read index.json; InputMissing when `folder` is not a finished index, or Damaged."""
        return record(cls, read_json(folder / INDEX_MANIFEST), folder / INDEX_MANIFEST)
