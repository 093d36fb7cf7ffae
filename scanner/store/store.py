"""Reads a finished store: rows against the SHA-256 of their shard, the catalog against store.json.

folder -> Store: embeddings (N, D) float32, and a record of every image that was listed
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.storage import files
from deepssim_scan.storage.layout import ARRAY, THUMBNAILS
from deepssim_scan.store.array import (
    REPAIR_HINT,
    Made,
    RowArray,
    Vectors,
    embedding_layout,
    thumbnail_layout,
)
from deepssim_scan.store.catalog import Shard
from deepssim_scan.store.manifest import Footer, StoreManifest, open_catalog, read_manifest


class Store(AbstractContextManager["Store"]):
    """A finished store, read only; a context manager. Nothing unverified is ever returned."""

    def __init__(self, folder: Path, manifest: StoreManifest, footer: Footer) -> None:
        """Use `Store.open`."""
        self.folder, self.manifest, self.footer = folder, manifest, footer
        self.dimension, self.digest = manifest.dimension, footer.digest
        self.listed, self.rows = footer.listed, footer.rows
        self.rejected_count, self.blank_count = footer.rejected, footer.blank
        self.catalog = open_catalog(folder, footer)
        try:
            self.table = self.catalog.shards()
            files.check_sha256(folder / ARRAY / "zarr.json", footer.array)
            self._array = RowArray.open(folder, embedding_layout(manifest), self.rows)
            self._small: RowArray | None = None
            if manifest.thumbnail:
                files.check_sha256(folder / THUMBNAILS / "zarr.json", footer.thumbnails)
                self._small = RowArray.open(folder, thumbnail_layout(manifest), self.rows)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Check the manifest, the catalog's SHA-256 and the counts; rows are checked when read.

        Raises InputMissing when `folder` is not a finished store, StoreMismatch when it has
        another format, Damaged when its parts do not fit together.
        """
        return cls(folder, *read_manifest(folder))

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog."""
        self.catalog.close()

    def read(self, start: int, stop: int) -> Vectors:
        """Return rows `start` to `stop` - 1, (stop - start, D) float32, all of them verified.

        Every shard that they touch is read whole. Damaged, which names the rows, when a chunk
        is missing, fails its Crc32c, or is not what the catalog's SHA-256 says was written.
        """
        if not 0 <= start <= stop <= self.rows:
            raise InputError(
                f"{self.folder}: rows {start} to {stop} are not in its 0 to {self.rows}"
            )
        size = self.manifest.shard_rows
        touched = self.table[start // size : -(-stop // size)] if start < stop else []
        parts = [
            self._array.read(shard)[max(start - shard.first, 0) : stop - shard.first]
            for shard in touched
        ]
        return np.concatenate([np.empty((0, self.manifest.dimension), np.float32), *parts])

    def shards(self) -> Iterator[tuple[int, Vectors]]:
        """Give every row in order, a shard at a time: its first row, and (n, D) float32."""
        return ((shard.first, self._array.read(shard)) for shard in self.table)

    def made(self) -> Iterator[tuple[int, Made]]:
        """Give all that was made of images, a shard at a time: its first row, and its rows."""
        return ((shard.first, self.made_of(shard)) for shard in self.table)

    def made_of(self, shard: Shard) -> Made:
        """Return all that was made of the images of a shard."""
        rows = self._array.read(shard)
        empty = np.empty((len(rows), 0), np.int8)
        return Made(rows, empty if self._small is None else self._small.read(shard))

    def thumbnails(self) -> Iterator[tuple[int, NDArray[np.int8]]]:
        """Give all thumbnails, a shard at a time: its first row, and (n, S, S) int8.

        There are none in a store that was written without.
        """
        side = self.manifest.thumbnail
        if self._small is not None:
            for shard in self.table:
                yield shard.first, self._small.read(shard).reshape(-1, side, side)

    def verify(self) -> None:
        """Read every row; Damaged, which names all that are not what was written."""
        if damaged := self.damaged():
            rows = ", ".join(f"{shard.first} to {shard.stop - 1}" for shard in damaged)
            raise Damaged(
                f"{self.folder}: rows {rows} are missing or not those that were written. "
                f"{REPAIR_HINT}"
            )

    def damaged(self) -> list[Shard]:
        """Return the shards that are missing, or are not what was written."""
        arrays = [self._array] if self._small is None else [self._array, self._small]
        return [s for s in self.table if not all(array.is_intact(s) for array in arrays)]

    def repair(self, shard: Shard, rows: Made) -> None:
        """Write a damaged shard again; InputError unless its rows are the same to the bit."""
        self._array.repair(shard, rows.embeddings)
        if self._small is not None:
            self._small.repair(shard, rows.thumbnails)

    def paths(self, rows: NDArray[np.int64] | None = None) -> list[str]:
        """Return the name of each row asked for, or of every row, in order."""
        records = self.embedded() if rows is None else self.records_at(rows.tolist())
        return [each.name for each in records]

    def records_at(self, rows: Sequence[int]) -> list[ImageRecord]:
        """Return the record of each row; InputError for one that is not there."""
        found = self.catalog.at(rows)
        records = [each for each in found if each is not None]
        if len(records) < len(found):
            row = rows[found.index(None)]
            raise InputError(f"{self.folder}: row {row} is not in its 0 to {self.rows}")
        return records

    def embedded(self) -> Iterator[ImageRecord]:
        """Give the images that were embedded, in row order."""
        return self.catalog.in_state("embedded")

    @property
    def subject_count(self) -> int:
        """How many different subjects the embedded images show, known or guessed."""
        return self.catalog.subjects()

    def subject_numbers(self) -> NDArray[np.int64]:
        """Return a number of the subject of each row (N,); a row without one has one of its own."""
        first: dict[bytes, int] = {}  # row of each subject, by which it goes
        rows = enumerate(self.catalog.subject_of_each_row())
        found = (first.setdefault(whose, row) if whose else row for row, (whose, _) in rows)
        return np.unique(np.fromiter(found, np.int64), return_inverse=True)[1]

    def subjects_told(self) -> NDArray[np.bool_]:
        """Return of which rows (N, 2) there is a subject, and of which it is known, not guessed."""
        rows = self.catalog.subject_of_each_row()
        told = ((whose != b"", known and whose != b"") for whose, known in rows)
        return np.fromiter(told, np.dtype((bool, 2)))

    def rejections(self) -> Iterator[ImageRecord]:
        """Give the images that were rejected, in the order that they were listed."""
        return self.catalog.in_state("rejected")

    def blanks(self) -> Iterator[ImageRecord]:
        """Give the frames with nothing on them, in the order that they were listed."""
        return self.catalog.in_state("blank")

    def records_of(self, shard: Shard) -> list[ImageRecord]:
        """Return the records that were written together with the rows of a shard."""
        before = self.table[: self.table.index(shard)]
        return self.catalog.between(before[-1].last_image + 1 if before else 1, shard.last_image)
