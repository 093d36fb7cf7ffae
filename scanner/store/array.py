"""The array of a store: embeddings in Zarr, one chunk a shard.

    rows of a shard (n, D) float32 -> chunk -> the same rows, checked by SHA-256

A missing chunk, which Zarr reads as fill, or a flipped bit raises Damaged, and names the rows.
"""

import hashlib
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.storage import files
from deepssim_scan.storage.layout import ARRAY, STORE_MANIFEST
from deepssim_scan.store.catalog import Shard
from deepssim_scan.store.manifest import StoreManifest

Vectors = NDArray[np.float32]

NORM_TOLERANCE = 1e-3

REPAIR_HINT = "Repair them with `deepssim-scan check --repair`, or build the store again."


class EmbeddingArray:
    """The Zarr array of a store's folder; every row that it gives was verified."""

    def __init__(self, folder: Path, array: Any) -> None:
        """Use `create` or `open`."""
        self._folder, self._array = folder, array

    @classmethod
    def create(cls, folder: Path, manifest: StoreManifest, shards: int) -> Self:
        """Create an array of `shards` full shards whose chunks are kept, and nothing else is."""
        path, width = folder / ARRAY, manifest.dimension
        kept = {_chunk(number) for number in range(shards)}
        for leftover in path.iterdir() if path.exists() else ():
            if leftover.name not in kept:
                leftover.unlink()
        array = zarr.create_array(
            path,
            shape=(shards * manifest.shard_rows, width),
            chunks=(manifest.shard_rows, width),
            dtype=manifest.dtype,
            fill_value=float("nan"),
            filters=None,
            compressors=[Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        return cls(folder, array)

    @classmethod
    def open(cls, folder: Path, manifest: StoreManifest, rows: int) -> Self:
        """Open the array of a finished store; Damaged when it is not what store.json says."""
        path = folder / ARRAY
        try:
            array = zarr.open_array(path, mode="r")
        except Exception as error:  # zarr lets any error out, from TypeError to KeyError
            raise Damaged(f"{path}: cannot be opened ({error}). Build the store again.") from error
        found = (array.shape, array.chunks, str(array.dtype))
        shape, chunks = ((n, manifest.dimension) for n in (rows, manifest.shard_rows))
        if found != (shape, chunks, manifest.dtype):
            raise Damaged(
                f"{path}: its shape, chunks and type are {found}, and {STORE_MANIFEST} says "
                f"{(shape, chunks, manifest.dtype)}. Build the store again."
            )
        return cls(folder, array)

    def append(self, rows: Vectors) -> None:
        """Add the next shard, and flush it to the disk."""
        number = -(-self._array.shape[0] // self._array.chunks[0])
        self._array.append(rows)
        root = self._folder / ARRAY
        for path in (root / _chunk(number), root / "zarr.json", root):
            files.flush(path)

    def truncate(self, rows: int) -> None:
        """Drop all but the first `rows` rows."""
        self._array.resize((rows, self._array.shape[1]))

    def read(self, shard: Shard) -> Vectors:
        """Return the rows of a shard, or raise Damaged, which names them."""
        where = f"{self._folder}: rows {shard.first} to {shard.stop - 1}"
        try:
            rows: Vectors = np.ascontiguousarray(self._array[shard.first : shard.stop], np.float32)
        except (OSError, ValueError) as error:
            raise Damaged(f"{where} cannot be read: {error}. {REPAIR_HINT}") from error
        if not np.isfinite(rows).all():
            raise Damaged(f"{where} are missing, or not finite. {REPAIR_HINT}")
        if rows_sha256(rows) != shard.sha256:
            raise Damaged(f"{where} are not those that were written. {REPAIR_HINT}")
        return rows

    def is_intact(self, shard: Shard) -> bool:
        """Tell whether the rows of a shard are those that were written."""
        try:
            self.read(shard)
        except Damaged:
            return False
        return True

    def repair(self, shard: Shard, rows: Vectors) -> None:
        """Write a damaged shard again; InputError unless its rows are the same to the bit."""
        if rows_sha256(rows) != shard.sha256:
            raise InputError(
                f"{self._folder}: rows {shard.first} to {shard.stop - 1} were computed again, and "
                "are not the same to the last bit. Another version of torch, another device or "
                "number of threads does that: use those that were used, or build the store again."
            )
        root = self._folder / ARRAY
        chunk = root / _chunk(shard.first // self._array.chunks[0])
        chunk.unlink(missing_ok=True)
        zarr.open_array(root, mode="r+")[shard.first : shard.stop] = rows
        chunk.chmod(0o600)
        files.flush(chunk)
        files.flush(root)


def first_not_unit(vectors: Vectors) -> int | None:
    """Return the first row of (n, D), or (n, V, D), that is not finite with norm 1, if any."""
    norms = np.sqrt(np.einsum("...d,...d->...", vectors, vectors, dtype=np.float64))
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # true for NaN as well
    bad = wrong.any(tuple(range(1, wrong.ndim)))
    return int(bad.argmax()) if bad.any() else None


def rows_sha256(rows: Vectors) -> str:
    """Return the SHA-256 of rows (n, D) as a shard records it."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<f4").data).hexdigest()


def _chunk(number: int) -> str:
    return f"c.{number}.0"
