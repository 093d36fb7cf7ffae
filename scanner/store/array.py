"""An array of a store in Zarr, one chunk a shard: embeddings, or thumbnails.

    rows of a shard (n, W) -> chunk -> the same rows, checked by SHA-256

A missing chunk, which Zarr reads as fill, or a flipped bit raises Damaged, and names the rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.storage import files
from deepssim_scan.storage.layout import ARRAY, STORE_MANIFEST, THUMBNAILS
from deepssim_scan.store.catalog import Shard
from deepssim_scan.store.manifest import StoreManifest

Vectors = NDArray[np.float32]
Flat = NDArray[np.int8]
"""Thumbnails (n, S * S)."""

NORM_TOLERANCE = 1e-3

_NONE = -128  # which no pixel of a thumbnail has: Zarr writes no chunk that is all fill

REPAIR_HINT = "Repair them with `deepssim-scan check --repair`, or build the store again."


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What is made of n images: embeddings (n, D) float32, thumbnails (n, S * S) int8."""

    embeddings: Vectors
    thumbnails: Flat

    def __len__(self) -> int:
        return len(self.embeddings)

    def part(self, kept: slice) -> Self:
        """Return what is made of some of the images."""
        return type(self)(self.embeddings[kept], self.thumbnails[kept])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Put several together, in their order."""
        embeddings = np.concatenate([part.embeddings for part in parts])
        return cls(embeddings, np.concatenate([part.thumbnails for part in parts]))


@dataclass(frozen=True, slots=True)
class Layout:
    """An array: its name, the values of a row, and how many rows a shard has.

    `fill` is what Zarr reads where a chunk is missing.
    """

    name: str
    width: int
    dtype: str
    shard_rows: int
    fill: float


def embedding_layout(manifest: StoreManifest) -> Layout:
    """Return the layout of the embeddings of a store."""
    rows = manifest.shard_rows
    return Layout(ARRAY, manifest.dimension, manifest.dtype, rows, float("nan"))


def thumbnail_layout(manifest: StoreManifest) -> Layout:
    """Return the layout of the thumbnails of a store that has them."""
    return Layout(THUMBNAILS, manifest.thumbnail**2, "int8", manifest.shard_rows, _NONE)


class RowArray:
    """A Zarr array of a store's folder; every row that it gives was verified."""

    def __init__(self, folder: Path, layout: Layout, array: Any) -> None:
        """Use `create` or `open`."""
        self._folder, self._layout, self._array = folder, layout, array

    @property
    def _root(self) -> Path:
        return self._folder / self._layout.name

    @classmethod
    def create(cls, folder: Path, layout: Layout, shards: int) -> Self:
        """Create an array of `shards` full shards whose chunks are kept, and nothing else is."""
        path, rows = folder / layout.name, layout.shard_rows
        kept = {_chunk(number) for number in range(shards)}
        for leftover in path.iterdir() if path.exists() else ():
            if leftover.name not in kept:
                leftover.unlink()
        array = zarr.create_array(
            path,
            shape=(shards * rows, layout.width),
            chunks=(rows, layout.width),
            dtype=layout.dtype,
            fill_value=layout.fill,
            filters=None,
            compressors=[Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        return cls(folder, layout, array)

    @classmethod
    def open(cls, folder: Path, layout: Layout, rows: int) -> Self:
        """Open the array of a finished store; Damaged when it is not what store.json says."""
        path = folder / layout.name
        try:
            array = zarr.open_array(path, mode="r")
        except Exception as error:  # zarr lets any error out, from TypeError to KeyError
            raise Damaged(f"{path}: cannot be opened ({error}). Build the store again.") from error
        found = (array.shape, array.chunks, str(array.dtype))
        shape, chunks = ((n, layout.width) for n in (rows, layout.shard_rows))
        if found != (shape, chunks, layout.dtype):
            raise Damaged(
                f"{path}: its shape, chunks and type are {found}, and {STORE_MANIFEST} says "
                f"{(shape, chunks, layout.dtype)}. Build the store again."
            )
        return cls(folder, layout, array)

    def append(self, rows: Vectors | Flat) -> str:
        """Add the next shard, flush it to the disk, and return its SHA-256."""
        number = -(-self._array.shape[0] // self._array.chunks[0])
        self._array.append(rows)
        for path in (self._root / _chunk(number), self._root / "zarr.json", self._root):
            files.flush(path)
        return rows_sha256(rows)

    def truncate(self, rows: int) -> None:
        """Drop all but the first `rows` rows."""
        self._array.resize((rows, self._array.shape[1]))

    def read(self, shard: Shard) -> Any:
        """Return the rows of a shard, or raise Damaged, which names them."""
        where = f"{self._folder}: rows {shard.first} to {shard.stop - 1}"
        if self._layout.name != ARRAY:
            where += f" of {self._layout.name}"
        try:
            rows = np.ascontiguousarray(self._array[shard.first : shard.stop], self._layout.dtype)
        except (OSError, ValueError) as error:
            raise Damaged(f"{where} cannot be read: {error}. {REPAIR_HINT}") from error
        if not np.isfinite(rows).all():
            raise Damaged(f"{where} are missing, or not finite. {REPAIR_HINT}")
        if rows_sha256(rows) != self._recorded(shard):
            raise Damaged(f"{where} are not those that were written. {REPAIR_HINT}")
        return rows

    def is_intact(self, shard: Shard) -> bool:
        """Tell whether the rows of a shard are those that were written."""
        try:
            self.read(shard)
        except Damaged:
            return False
        return True

    def repair(self, shard: Shard, rows: Vectors | Flat) -> None:
        """Write a damaged shard again; InputError unless its rows are the same to the bit."""
        if rows_sha256(rows) != self._recorded(shard):
            raise InputError(
                f"{self._folder}: rows {shard.first} to {shard.stop - 1} were computed again, and "
                "are not the same to the last bit. Another version of torch, another device or "
                "number of threads does that: use those that were used, or build the store again."
            )
        root = self._root
        chunk = root / _chunk(shard.first // self._array.chunks[0])
        chunk.unlink(missing_ok=True)
        zarr.open_array(root, mode="r+")[shard.first : shard.stop] = rows
        chunk.chmod(0o600)
        files.flush(chunk)
        files.flush(root)

    def _recorded(self, shard: Shard) -> str:
        return shard.sha256 if self._layout.name == ARRAY else shard.thumbnails


def first_not_unit(vectors: Vectors) -> int | None:
    """Return the first row of (n, D), or (n, V, D), that is not finite with norm 1, if any."""
    norms = np.sqrt(np.einsum("...d,...d->...", vectors, vectors, dtype=np.float64))
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # true for NaN as well
    bad = wrong.any(tuple(range(1, wrong.ndim)))
    return int(bad.argmax()) if bad.any() else None


def rows_sha256(rows: Vectors | Flat) -> str:
    """Return the SHA-256 of rows (n, W) as a shard records it: of little-endian bytes."""
    little = rows.dtype.newbyteorder("<")
    return hashlib.sha256(np.ascontiguousarray(rows, little).data).hexdigest()


def _chunk(number: int) -> str:
    return f"c.{number}.0"
