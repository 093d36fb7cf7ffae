"""Writes a store, or goes on with an unfinished one.

    records + embeddings (n, D) float32 -> folder

    catalog.sqlite    one row per file or frame, whatever became of it; one row per shard
    embeddings.zarr   (N, D) float32, one chunk a shard, Crc32c, fill value NaN
    thumbnails.zarr   (N, S * S) int8, likewise, fill value -128, where thumbnails are kept
    store.json        the manifest and the footer: counts and digests

A row holds one embedding for each test-time view of an image; training images have one. A shard
is written and flushed before the transaction that makes its rows part of the catalog.
store.json comes last: a folder without it is no store.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.storage import files
from deepssim_scan.storage.layout import ARRAY, CATALOG, STORE_MANIFEST, THUMBNAILS
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.array import (
    NORM_TOLERANCE,
    Flat,
    RowArray,
    Vectors,
    embedding_layout,
    first_not_unit,
    thumbnail_layout,
)
from deepssim_scan.store.catalog import CatalogWriter, Shard
from deepssim_scan.store.manifest import Footer, StoreManifest, store_digest


class StoreWriter(AbstractContextManager["StoreWriter"]):
    """Writes a store, or goes on with an unfinished one; holds one shard in memory.

    How the rows are cut into calls of `add`, and how often the writing was stopped and begun
    again, has no influence on what is written. Without `finish` no store.json is written, so what
    is left is not a store.
    """

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        """Begin in `folder`, made 0700, or after the last whole shard of an unfinished store.

        Raises InputError when the folder holds anything else, a finished store included.
        """
        _refuse_others(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder, self.manifest = folder, manifest
        self._buffer = np.empty((manifest.shard_rows, manifest.dimension), np.float32)
        self._small = np.empty((manifest.shard_rows, manifest.thumbnail**2), np.int8)
        self._filled = self._last = 0
        self._catalog = CatalogWriter(folder / CATALOG, json.dumps(asdict(manifest)))
        try:
            self._arrays, self._shards = self._whole_shards()
            self._catalog.keep(len(self._shards))
        except BaseException:
            self._catalog.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._catalog.close()  # which drops what was not committed

    @property
    def rows(self) -> int:
        """How many rows are in shards on the disk."""
        return self._shards[-1].stop if self._shards else 0

    @property
    def room(self) -> int:
        """How many more rows the shard in memory takes."""
        return len(self._buffer) - self._filled

    def last_item(self) -> tuple[ImageRecord, int] | None:
        """Return the last record, and how many there are of the same file or member."""
        return self._catalog.last_item()

    def add(
        self,
        records: Sequence[ImageRecord],
        embeddings: Vectors,
        thumbnails: Flat | None = None,
    ) -> None:
        """Take images in their final order, and one unit-norm row for each that has no reason.

        Raises InputError, and takes nothing, when the rows are not float32 (n, D), and the
        thumbnails int8 (n, S * S), with n the number of records without a reason, or when a row is
        not finite or not of unit norm.
        """
        embedded = [record for record in records if record.reason is None]
        wanted = (len(embedded), self.manifest.dimension)
        if embeddings.shape != wanted or embeddings.dtype != np.float32:
            raise InputError(
                f"{self.folder}: embeddings are {embeddings.dtype} {embeddings.shape}, "
                f"and these records need float32 {wanted}"
            )
        self._check_thumbnails(thumbnails, len(embedded))
        bad = first_not_unit(embeddings)
        if bad is not None:
            raise InputError(
                f"{self.folder}: the embedding of {embedded[bad].name!r} is not finite with norm 1 "
                f"(within {NORM_TOLERANCE}). Reject the file, or check the encoder."
            )
        numbers = iter(range(len(embedded)))
        for record in records:
            if record.reason is not None:
                self._last = self._catalog.add(record, None)
                continue
            number = next(numbers)
            small = None if thumbnails is None else thumbnails[number]
            self._take(record, embeddings[number], small)

    def finish(self, items: int) -> None:
        """Write the last shard, then store.json: the store is whole only from here on.

        `items` is the number of files and members of archives that were to be added. InputError
        when there are more or fewer, or when one has not exactly one record for each frame.
        """
        if self._filled:
            self._write_shard()
        self._catalog.commit()
        self._check_ledger(items)
        rows, rejected, blank = self._catalog.counts()
        self._catalog.finish()
        files.make_private(self.folder)
        catalog, small = files.sha256(self.folder / CATALOG), self.folder / THUMBNAILS / "zarr.json"
        footer = Footer(
            items=items,
            listed=rows + rejected + blank,
            rows=rows,
            rejected=rejected,
            blank=blank,
            digest=store_digest(catalog, self._shards),
            catalog=catalog,
            array=files.sha256(self.folder / ARRAY / "zarr.json"),
            thumbnails=files.sha256(small) if small.is_file() else "",
        )
        write_json(self.folder / STORE_MANIFEST, asdict(self.manifest) | asdict(footer))

    def _check_ledger(self, items: int) -> None:
        """Raise InputError unless every image that was to be added is there once."""
        found, miscounted = self._catalog.items(), self._catalog.miscounted()
        if found != items or miscounted or self._catalog.counts()[0] != self.rows:
            first = f", the first {miscounted[0]!r}" if miscounted else ""
            raise InputError(
                f"{self.folder}: {items} files were listed and {found} are in the catalog, "
                f"{len(miscounted)} of them not with one record a frame{first}: every image must "
                "have one end"
            )

    def _check_thumbnails(self, thumbnails: Flat | None, count: int) -> None:
        width = self.manifest.thumbnail**2
        found = None if thumbnails is None else (thumbnails.shape, thumbnails.dtype.name)
        wanted = ((count, width), "int8") if width else None
        if found != wanted:
            raise InputError(f"{self.folder}: thumbnails are {found}, and it needs {wanted}")

    def _take(self, record: ImageRecord, embedding: Vectors, thumbnail: Flat | None) -> None:
        self._last = self._catalog.add(record, self.rows + self._filled)
        self._buffer[self._filled] = embedding
        if thumbnail is not None:
            self._small[self._filled] = thumbnail
        self._filled += 1
        if not self.room:
            self._write_shard()

    def _write_shard(self) -> None:
        """Write the buffered rows, flush them, and only then commit their catalog rows."""
        digests = ["", ""]
        for number, array in enumerate(self._arrays):
            buffer = self._small if number else self._buffer
            digests[number] = array.append(buffer[: self._filled])
        shard = Shard(self.rows, self._filled, digests[0], self._last, digests[1])
        self._catalog.commit(shard)
        self._shards.append(shard)
        self._filled = 0

    def _whole_shards(self) -> tuple[list[RowArray], list[Shard]]:
        """Return the arrays, and the shards, from the first on, that are full and as written."""
        full = [s for s in self._catalog.whole() if s.rows == self.manifest.shard_rows]
        layouts = [embedding_layout(self.manifest)]
        if self.manifest.thumbnail:
            layouts.append(thumbnail_layout(self.manifest))
        arrays = [RowArray.create(self.folder, layout, len(full)) for layout in layouts]
        whole: list[Shard] = []
        for shard in full:
            if not all(array.is_intact(shard) for array in arrays):
                for array in arrays:
                    array.truncate(shard.first)
                break
            whole.append(shard)
        return arrays, whole


def _refuse_others(folder: Path) -> None:
    """Raise InputError when a folder holds anything that an unfinished store does not."""
    if not folder.exists():
        return
    # The last is of a run that was killed at its end.
    ours = (ARRAY, THUMBNAILS, f".{STORE_MANIFEST}.partial")
    for path in folder.iterdir():
        if path.name not in ours and CATALOG not in path.name:
            raise InputError(
                f"{folder}: holds {path.name}, and a store is written into a new folder."
            )
