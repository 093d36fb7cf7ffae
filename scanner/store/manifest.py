"""What store.json says: a manifest, known before the first row, and a footer after the last.

Loads neither NumPy nor Zarr, so that a store can be described without them.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepssim_scan.errors import Damaged, InputError, StoreMismatch
from deepssim_scan.storage.files import check_sha256
from deepssim_scan.storage.layout import CATALOG, STORE_MANIFEST
from deepssim_scan.storage.records import check_types, read_json, record
from deepssim_scan.store.catalog import Catalog, Shard

FORMAT = 6


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """What is fixed before the first row: the encoder's fingerprint (hex), the layout, the source.

    `source` says which folder was embedded and how, in values that JSON can hold. `thumbnail` is
    the side of the thumbnails, in pixels; 0 where there are none.
    """

    encoder: str
    dimension: int
    shard_rows: int = 4096
    format: int = FORMAT
    dtype: str = "float32"
    source: dict[str, Any] = field(default_factory=dict)
    thumbnail: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a value that no store of this format can have."""
        check_types(self)
        sizes = min(self.dimension, self.shard_rows)
        fixed = (self.format, self.dtype) == (FORMAT, "float32")
        sound = sizes >= 1 and self.thumbnail >= 0 and fixed
        if not re.fullmatch("[0-9a-f]+", self.encoder) or not sound:
            raise InputError(
                f"{self} must have a hexadecimal encoder, dimension and shard_rows >= 1, "
                f"thumbnail >= 0, format {FORMAT} and dtype 'float32'"
            )


@dataclass(frozen=True, slots=True)
class Footer:
    """What is known after the last row.

    `items` files and members of archives gave `listed` images: `rows` of them were embedded,
    `rejected` could not be, and on `blank` there is nothing. `catalog`, `array` and `thumbnails`
    are the SHA-256 of the catalog and of the zarr.json of the arrays, "" where there is none.
    `digest` is that of the SHA-256s of the catalog and of every shard: it stands for all of the
    store.
    """

    items: int
    listed: int
    rows: int
    rejected: int
    blank: int
    digest: str
    catalog: str
    array: str
    thumbnails: str

    def __post_init__(self) -> None:
        """Raise InputError when a listed image has not exactly one of the three ends."""
        check_types(self)
        ends = self.rows, self.rejected, self.blank
        if min(ends) < 0 or sum(ends) != self.listed:
            raise InputError(
                f"{self.listed} images were listed, {self.rows} embedded, {self.rejected} rejected "
                f"and {self.blank} are blank: every image must have one of the three ends"
            )


def store_digest(catalog: str, shards: Iterable[Shard]) -> str:
    """Return the SHA-256, in hex, of those of the catalog and of every shard."""
    parts = (catalog, *(shard.sha256 for shard in shards))
    return hashlib.sha256(b"".join(map(bytes.fromhex, parts))).hexdigest()


def read_manifest(folder: Path) -> tuple[StoreManifest, Footer]:
    """Read store.json.

    Raises InputMissing when `folder` is not a finished store, StoreMismatch when it has another
    format, Damaged when store.json is not what was written.
    """
    path = folder / STORE_MANIFEST
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise StoreMismatch(
            f"{path}: a store of format {value.get('format')!r}, and this version reads "
            f"{FORMAT}. Build it again, or use the version that wrote it."
        )
    return record(StoreManifest, value, path), record(Footer, value, path)


def open_catalog(folder: Path, footer: Footer) -> Catalog:
    """Open the catalog of a finished store; Damaged unless it is the one that store.json names."""
    check_sha256(folder / CATALOG, footer.catalog)
    catalog = Catalog(folder / CATALOG)
    try:
        found = (*catalog.counts(), store_digest(footer.catalog, catalog.shards()))
        wanted = (footer.rows, footer.rejected, footer.blank, footer.digest)
        if found != wanted:
            raise Damaged(
                f"{catalog.path}: its rows, rejections, blanks and digest are {found}, and "
                f"{STORE_MANIFEST} says {wanted}. Build the store again."
            )
    except BaseException:
        catalog.close()
        raise
    return catalog
