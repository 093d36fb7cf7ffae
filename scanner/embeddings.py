"""The store on disk: unit-norm embeddings in Zarr, and a catalog of every file in SQLite.

    entries + embeddings (n, V D) float32 -> folder -> the same, verified

    store.json        the encoder, layout and source, and last of all the seal: counts and digests
    catalog.sqlite    one row per file or frame, embedded or rejected; one row per shard
    embeddings.zarr   (N, V D) float32, one chunk a shard, Crc32c, fill value NaN

A row holds the embeddings of all views of an image (`views`), of training images the one. A shard
is written and flushed before the transaction that makes its rows part of the catalog;
store.json comes last, and a folder without it is not a store. A writer that finds an unfinished
store goes on after its last whole shard. Rows are read whole shard by whole shard against the
SHA-256 in the catalog, and the catalog against the one in store.json: a missing chunk (Zarr
reads it as fill) or a flipped bit raises Damaged, and names the rows.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from deepssim_scan import files
from deepssim_scan.catalog import Catalog, CatalogWriter, Entry, Shard
from deepssim_scan.errors import Damaged, InputError, StoreMismatch
from deepssim_scan.records import check_types, read_json, record, write_json

Vectors = NDArray[np.float32]

MANIFEST, CATALOG, ARRAY = "store.json", "catalog.sqlite", "embeddings.zarr"
FORMAT = 3
NORM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """What is fixed before the first row: the encoder's fingerprint (hex), the layout, the source.

    `dimension` is that of one embedding, of which a row has one for each of `views`.
    `source` says which folder was embedded and how, in values that JSON can hold.
    """

    encoder: str
    dimension: int
    shard_rows: int = 4096
    format: int = FORMAT
    dtype: str = "float32"
    views: int = 1
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError for a value that no store of this format can have."""
        check_types(self)
        sizes = min(self.dimension, self.shard_rows, self.views)
        fixed = (self.format, self.dtype) == (FORMAT, "float32")
        if not re.fullmatch("[0-9a-f]+", self.encoder) or sizes < 1 or not fixed:
            raise InputError(
                f"{self} must have a hexadecimal encoder, dimension, shard_rows and views >= 1, "
                f"format {FORMAT} and dtype 'float32'"
            )

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return self.views * self.dimension

    def by_view(self, rows: Vectors) -> Vectors:
        """Return rows (n, V D) as (n, V, D)."""
        return rows.reshape(len(rows), self.views, self.dimension)


@dataclass(frozen=True, slots=True)
class Seal:
    """What is known after the last row.

    `items` files and members of archives gave `listed` images, of which `rows` were embedded.
    `catalog` and `array` are the SHA-256 of the catalog and of the array's zarr.json, `digest` that
    of the SHA-256s of the catalog and of every shard: it stands for all of the store.
    """

    items: int
    listed: int
    rows: int
    rejected: int
    digest: str
    catalog: str
    array: str

    def __post_init__(self) -> None:
        """Raise InputError when a listed image is neither embedded nor rejected."""
        check_types(self)
        if min(self.rows, self.rejected) < 0 or self.rows + self.rejected != self.listed:
            raise InputError(
                f"{self.listed} images were listed, {self.rows} embedded and {self.rejected} "
                "rejected: every image must end in one of the two states"
            )


class StoreWriter(AbstractContextManager["StoreWriter"]):
    """Write a store, or go on with an unfinished one; holds one shard in memory.

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
        self._buffer = np.empty((manifest.shard_rows, manifest.width), np.float32)
        self._filled = self._last = 0
        self._catalog = CatalogWriter(folder / CATALOG, json.dumps(asdict(manifest)))
        try:
            self._array, self._shards = self._whole_shards()
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

    def last_item(self) -> tuple[Entry, int] | None:
        """Return the last entry, and how many there are of the same file or member."""
        return self._catalog.last_item()

    def add(self, entries: Sequence[Entry], embeddings: Vectors) -> None:
        """Take images in their final order, and one unit-norm row for each that has no reason.

        Raises InputError, and takes nothing, when the rows are not float32 (n, D) with n the
        number of embedded entries, or when one is not finite or not of unit norm.
        """
        embedded = [entry for entry in entries if entry.reason is None]
        wanted = (len(embedded), self.manifest.width)
        if embeddings.shape != wanted or embeddings.dtype != np.float32:
            raise InputError(
                f"{self.folder}: embeddings are {embeddings.dtype} {embeddings.shape}, "
                f"and these entries need float32 {wanted}"
            )
        bad = first_not_unit(self.manifest.by_view(embeddings))
        if bad is not None:
            raise InputError(
                f"{self.folder}: the embedding of {embedded[bad].name!r} is not finite with norm 1 "
                f"(within {NORM_TOLERANCE}). Reject the file, or check the encoder."
            )
        rows = iter(embeddings)
        for entry in entries:
            self._take(entry, next(rows) if entry.reason is None else None)

    def finish(self, items: int) -> None:
        """Write the last shard, then store.json: the store is whole only from here on.

        `items` is the number of files and members of archives that were to be added. InputError
        when there are more or fewer, or when one has not exactly one entry for each frame.
        """
        if self._filled:
            self._write_shard()
        self._catalog.commit()
        self._check_ledger(items)
        rows, rejected = self._catalog.counts()
        self._catalog.finish()
        files.make_private(self.folder)
        catalog = files.sha256(self.folder / CATALOG)
        seal = Seal(
            items=items,
            listed=rows + rejected,
            rows=rows,
            rejected=rejected,
            digest=_digest(catalog, self._shards),
            catalog=catalog,
            array=files.sha256(self.folder / ARRAY / "zarr.json"),
        )
        write_json(self.folder / MANIFEST, asdict(self.manifest) | asdict(seal))

    def _check_ledger(self, items: int) -> None:
        """Raise InputError unless every image that was to be added is there once."""
        found, miscounted = self._catalog.items(), self._catalog.miscounted()
        if found != items or miscounted or self._catalog.counts()[0] != self.rows:
            first = f", the first {miscounted[0]!r}" if miscounted else ""
            raise InputError(
                f"{self.folder}: {items} files were listed and {found} are in the catalog, "
                f"{len(miscounted)} of them not with one entry a frame{first}: every image must be "
                "embedded or rejected, once"
            )

    def _take(self, entry: Entry, embedding: Vectors | None) -> None:
        row = None if embedding is None else self.rows + self._filled
        self._last = self._catalog.add(entry, row)
        if embedding is None:
            return
        self._buffer[self._filled] = embedding
        self._filled += 1
        if not self.room:
            self._write_shard()

    def _write_shard(self) -> None:
        """Write the buffered rows, flush them, and only then commit their catalog rows."""
        rows = self._buffer[: self._filled]
        shard = Shard(self.rows, len(rows), rows_sha256(rows), self._last)
        self._array.append(rows)
        root = self.folder / ARRAY
        for path in (root / _chunk(len(self._shards)), root / "zarr.json", root):
            files.flush(path)
        self._catalog.commit(shard)
        self._shards.append(shard)
        self._filled = 0

    def _whole_shards(self) -> tuple[Any, list[Shard]]:
        """Return the array, and the shards, from the first on, that are full and as written."""
        full = [s for s in self._catalog.whole() if s.rows == self.manifest.shard_rows]
        array = _create_array(self.folder / ARRAY, len(full), self.manifest)
        whole: list[Shard] = []
        for shard in full:
            try:
                _read_shard(self.folder, array, shard)
            except Damaged:
                array.resize((shard.first, self.manifest.width))
                break
            whole.append(shard)
        return array, whole


class Store(AbstractContextManager["Store"]):
    """A finished store, read only; a context manager. Nothing unverified is ever returned."""

    def __init__(self, folder: Path, manifest: StoreManifest, seal: Seal) -> None:
        """Use `Store.open`."""
        self.folder, self.manifest, self.seal = folder, manifest, seal
        self.dimension, self.digest = manifest.dimension, seal.digest
        self.rows, self.rejected_count, self.listed = seal.rows, seal.rejected, seal.listed
        path = folder / CATALOG
        files.check_sha256(path, seal.catalog)
        self.catalog = Catalog(path)
        try:
            self.table = self.catalog.shards()
            self._check_counts()
            files.check_sha256(folder / ARRAY / "zarr.json", seal.array)
            self._array = _open_array(folder / ARRAY, self.rows, manifest)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Check the manifest, the catalog's SHA-256 and the counts; rows are checked when read.

        Raises InputMissing when `folder` is not a finished store, StoreMismatch when it has
        another format, Damaged when its parts do not fit together.
        """
        path = folder / MANIFEST
        value = read_json(path)
        if value.get("format") != FORMAT:
            raise StoreMismatch(
                f"{path}: a store of format {value.get('format')!r}, and this version reads "
                f"{FORMAT}. Build it again, or use the version that wrote it."
            )
        return cls(folder, record(StoreManifest, value, path), record(Seal, value, path))

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog."""
        self.catalog.close()

    def read(self, start: int, stop: int) -> Vectors:
        """Return rows `start` to `stop` - 1, (stop - start, V D) float32, all of them verified.

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
            self._verified(shard)[max(start - shard.first, 0) : stop - shard.first]
            for shard in touched
        ]
        return np.concatenate([np.empty((0, self.manifest.width), np.float32), *parts])

    def shards(self) -> Iterator[tuple[int, Vectors]]:
        """Give every row in order, a shard at a time: its first row, and (n, V D) float32."""
        return ((shard.first, self._verified(shard)) for shard in self.table)

    def verify(self) -> None:
        """Read every row; Damaged, which names all that are not what was written."""
        if damaged := self.damaged():
            rows = ", ".join(f"{shard.first} to {shard.stop - 1}" for shard in damaged)
            raise Damaged(
                f"{self.folder}: rows {rows} are missing or not those that were written. Mend them "
                "with `deepssim-scan check --repair`, or build the store again."
            )

    def damaged(self) -> list[Shard]:
        """Return the shards that are missing, or are not what was written."""
        return [shard for shard in self.table if not self._intact(shard)]

    def mend(self, shard: Shard, rows: Vectors) -> None:
        """Write a damaged shard again; InputError unless its rows are the same to the bit."""
        if rows_sha256(rows) != shard.sha256:
            raise InputError(
                f"{self.folder}: rows {shard.first} to {shard.stop - 1} were computed again, and "
                "are not the same to the last bit. Another version of torch, another device or "
                "number of threads does that: use those that were used, or build the store again."
            )
        root = self.folder / ARRAY
        chunk = root / _chunk(self.table.index(shard))
        chunk.unlink(missing_ok=True)
        zarr.open_array(root, mode="r+")[shard.first : shard.stop] = rows
        chunk.chmod(0o600)
        files.flush(chunk)
        files.flush(root)

    def paths(self, rows: NDArray[np.int64] | None = None) -> list[str]:
        """Return the name of each row asked for, or of every row, in order."""
        entries = self.embedded() if rows is None else self.entries_at(rows.tolist())
        return [entry.name for entry in entries]

    def entries_at(self, rows: Sequence[int]) -> list[Entry]:
        """Return the entry of each row; InputError for one that is not there."""
        found = self.catalog.at(rows)
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            row = rows[found.index(None)]
            raise InputError(f"{self.folder}: row {row} is not in its 0 to {self.rows}")
        return entries

    def embedded(self) -> Iterator[Entry]:
        """Give the images that were embedded, in row order."""
        return self.catalog.embedded()

    def rejections(self) -> Iterator[Entry]:
        """Give the images that were rejected, in the order that they were listed."""
        return self.catalog.rejections()

    def entries(self, shard: Shard) -> list[Entry]:
        """Return the entries that were made while the rows of `shard` were."""
        before = self.table[: self.table.index(shard)]
        return self.catalog.between(before[-1].last_entry + 1 if before else 1, shard.last_entry)

    def _check_counts(self) -> None:
        """Raise Damaged when the catalog and store.json differ."""
        found = (*self.catalog.counts(), _digest(self.seal.catalog, self.table))
        wanted = (self.rows, self.rejected_count, self.digest)
        if found != wanted:
            raise Damaged(
                f"{self.catalog.path}: its rows, rejections and digest are {found}, and {MANIFEST} "
                f"says {wanted}. Build the store again."
            )

    def _verified(self, shard: Shard) -> Vectors:
        return _read_shard(self.folder, self._array, shard)

    def _intact(self, shard: Shard) -> bool:
        try:
            self._verified(shard)
        except Damaged:
            return False
        return True


def first_not_unit(vectors: Vectors) -> int | None:
    """Return the first row of (n, D), or (n, V, D), that is not finite with norm 1, if any."""
    norms = np.sqrt(np.einsum("...d,...d->...", vectors, vectors, dtype=np.float64))
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # true for NaN as well
    bad = wrong.any(tuple(range(1, wrong.ndim)))
    return int(bad.argmax()) if bad.any() else None


def _refuse_others(folder: Path) -> None:
    """Raise InputError when a folder holds anything that an unfinished store does not."""
    if not folder.exists():
        return
    ours = (ARRAY, f".{MANIFEST}.partial")  # the latter of a run that was killed at its end
    for path in folder.iterdir():
        if path.name not in ours and CATALOG not in path.name:
            raise InputError(
                f"{folder}: holds {path.name}, and a store is written into a new folder."
            )


def _chunk(number: int) -> str:
    return f"c.{number}.0"


def _create_array(path: Path, shards: int, manifest: StoreManifest) -> Any:
    """Create the array of the first `shards` whole shards; their chunks are kept, nothing else."""
    kept = {_chunk(number) for number in range(shards)}
    for leftover in path.iterdir() if path.exists() else ():
        if leftover.name not in kept:
            leftover.unlink()
    return zarr.create_array(
        path,
        shape=(shards * manifest.shard_rows, manifest.width),
        chunks=(manifest.shard_rows, manifest.width),
        dtype=manifest.dtype,
        fill_value=float("nan"),
        filters=None,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def _open_array(path: Path, rows: int, manifest: StoreManifest) -> Any:
    try:
        array = zarr.open_array(path, mode="r")
    except Exception as error:  # zarr lets any error out, from TypeError to KeyError
        raise Damaged(f"{path}: cannot be opened ({error}). Build the store again.") from error
    found = (array.shape, array.chunks, str(array.dtype))
    shape, chunks = ((n, manifest.width) for n in (rows, manifest.shard_rows))
    if found != (shape, chunks, manifest.dtype):
        raise Damaged(
            f"{path}: its shape, chunks and type are {found}, and {MANIFEST} says "
            f"{(shape, chunks, manifest.dtype)}. Build the store again."
        )
    return array


def _read_shard(folder: Path, array: Any, shard: Shard) -> Vectors:
    """Return the rows of a shard, or raise Damaged, which names them."""
    where = f"{folder}: rows {shard.first} to {shard.stop - 1}"
    cure = "Mend them with `deepssim-scan check --repair`, or build the store again."
    try:
        rows: Vectors = np.ascontiguousarray(array[shard.first : shard.stop], np.float32)
    except (OSError, ValueError) as error:
        raise Damaged(f"{where} cannot be read: {error}. {cure}") from error
    if not np.isfinite(rows).all():
        raise Damaged(f"{where} are missing, or not finite. {cure}")
    if rows_sha256(rows) != shard.sha256:
        raise Damaged(f"{where} are not those that were written. {cure}")
    return rows


def rows_sha256(rows: Vectors) -> str:
    """Return the SHA-256 of rows (n, D) as a shard records it."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<f4").data).hexdigest()


def _digest(catalog: str, shards: Iterable[Shard]) -> str:
    parts = (catalog, *(shard.sha256 for shard in shards))
    return hashlib.sha256(b"".join(map(bytes.fromhex, parts))).hexdigest()
