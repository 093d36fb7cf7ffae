"""The store on disk: unit-norm embeddings in Zarr, and a catalog of every file in SQLite.

    entries + embeddings (n, D) float32 -> folder -> the same, verified

    store.json        the encoder and layout, and last of all the seal: counts and digests
    catalog.sqlite    one row per input file, embedded or rejected; one row per shard
    embeddings.zarr   (N, D) float32, one chunk a shard, Crc32c, fill value NaN

A shard is written and flushed before the transaction that makes its rows part of the catalog;
store.json comes last, and a folder without it is not a store. Rows are read whole shard by
whole shard against the SHA-256 in the catalog, and the catalog against the one in store.json:
a missing chunk (Zarr reads it as fill) or a flipped bit raises Damaged, and names the rows.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from deepssim_scan import files
from deepssim_scan.errors import Damaged, InputError, InputMissing, StoreMismatch

Vectors = NDArray[np.float32]
Record = TypeVar("Record")

MANIFEST, CATALOG, ARRAY = "store.json", "catalog.sqlite", "embeddings.zarr"
FORMAT = 1
NORM_TOLERANCE = 1e-3
SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL, mode TEXT NOT NULL, reason TEXT, detail BLOB NOT NULL,
    row INTEGER UNIQUE, CHECK ((reason IS NULL) = (row IS NOT NULL)));
CREATE TABLE shards (
    shard INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, rows INTEGER NOT NULL,
    sha256 TEXT NOT NULL);
"""
COLUMNS = "SELECT path, size, mtime_ns, sha256, mode, reason, detail FROM entries"


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """What is fixed before the first row: the encoder's fingerprint (hex) and the layout."""

    encoder: str
    dimension: int
    shard_rows: int = 4096
    format: int = FORMAT
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raise InputError for a value that no store of this format can have."""
        check_types(self)
        sizes = min(self.dimension, self.shard_rows)
        fixed = (self.format, self.dtype) == (FORMAT, "float32")
        if not re.fullmatch("[0-9a-f]+", self.encoder) or sizes < 1 or not fixed:
            raise InputError(
                f"{self} must have a hexadecimal encoder, dimension and shard_rows >= 1, "
                f"format {FORMAT} and dtype 'float32'"
            )


@dataclass(frozen=True, slots=True)
class Seal:
    """What is known after the last row; `digest` is the SHA-256 of the shards' SHA-256s."""

    rows: int
    rejected: int
    listed: int
    digest: str
    catalog: str

    def __post_init__(self) -> None:
        """Raise InputError when a listed file is neither embedded nor rejected."""
        check_types(self)
        if min(self.rows, self.rejected) < 0 or self.rows + self.rejected != self.listed:
            raise InputError(
                f"{self.listed} files were listed, {self.rows} embedded and {self.rejected} "
                "rejected: every file must end in one of the two states"
            )


@dataclass(frozen=True, slots=True)
class Entry:
    """One input file: `path` is relative and may hold surrogates (os.fsdecode) for odd bytes.

    `reason` is None when the file was embedded, otherwise the code of why it was rejected.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    mode: str
    reason: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Shard:
    """`rows` embeddings from row `first` on, and the SHA-256 of their little-endian bytes."""

    first: int
    rows: int
    sha256: str

    @property
    def stop(self) -> int:
        return self.first + self.rows


class StoreWriter(AbstractContextManager["StoreWriter"]):
    """Write a store into a new folder, as a context manager, holding one shard in memory.

    How the rows are cut into calls of `add` has no influence on what is written. Without
    `finish` no store.json is written, so what is left is not a store.
    """

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        """Begin in `folder`, made 0700; InputError when it already holds something."""
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty, and a store is written into a new folder.")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder, self.manifest = folder, manifest
        self._buffer = np.empty((manifest.shard_rows, manifest.dimension), np.float32)
        self._filled = self._rejected = 0
        self._shards: list[Shard] = []
        self._array = zarr.create_array(
            folder / ARRAY,
            shape=(0, manifest.dimension),
            chunks=self._buffer.shape,
            dtype=manifest.dtype,
            fill_value=float("nan"),
            filters=None,
            compressors=[Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        with _sqlite_errors(folder / CATALOG):
            self._catalog = sqlite3.connect(folder / CATALOG)
            self._catalog.executescript(SCHEMA)

    def __exit__(self, *_: object) -> None:
        self._catalog.close()  # which drops what was not committed

    def add(self, entries: Sequence[Entry], embeddings: Vectors) -> None:
        """Take files in their final order, and one unit-norm row for each that has no reason.

        Raises InputError, and takes nothing, when the rows are not float32 (n, D) with n the
        number of embedded entries, or when one is not finite or not of unit norm.
        """
        embedded = [entry for entry in entries if entry.reason is None]
        wanted = (len(embedded), self.manifest.dimension)
        if embeddings.shape != wanted or embeddings.dtype != np.float32:
            raise InputError(
                f"{self.folder}: embeddings are {embeddings.dtype} {embeddings.shape}, "
                f"and these entries need float32 {wanted}"
            )
        bad = first_not_unit(embeddings)
        if bad is not None:
            raise InputError(
                f"{self.folder}: the embedding of {embedded[bad].path!r} is not finite with norm 1 "
                f"(within {NORM_TOLERANCE}). Reject the file, or check the encoder."
            )
        rows = iter(embeddings)
        with _sqlite_errors(self.folder / CATALOG):
            for entry in entries:
                self._take(entry, next(rows) if entry.reason is None else None)

    def finish(self, listed: int) -> None:
        """Write the last shard, then store.json: the store is whole only from here on.

        `listed` is the number of files that were to be added; InputError when it is not.
        """
        counts = (self._rows + self._filled, self._rejected, listed)
        Seal(*counts, digest="", catalog="")  # refuses counts that do not sum
        with _sqlite_errors(self.folder / CATALOG):
            if self._filled:
                self._write_shard()
            self._catalog.commit()
            self._catalog.close()
        for path in self.folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
            files.flush(path)
        seal = Seal(*counts, _digest(self._shards), files.sha256(self.folder / CATALOG))
        files.write_json(self.folder / MANIFEST, asdict(self.manifest) | asdict(seal))

    @property
    def _rows(self) -> int:
        return self._shards[-1].stop if self._shards else 0

    def _take(self, entry: Entry, embedding: Vectors | None) -> None:
        row = None if embedding is None else self._rows + self._filled
        path, *facts, detail = astuple(entry)
        self._catalog.execute(
            "INSERT INTO entries VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
            (os.fsencode(path), *facts, detail.encode("utf-8", "surrogatepass"), row),
        )
        if embedding is None:
            self._rejected += 1
            return
        self._buffer[self._filled] = embedding
        self._filled += 1
        if self._filled == len(self._buffer):
            self._write_shard()

    def _write_shard(self) -> None:
        """Write the buffered rows, flush them, and only then commit their catalog rows."""
        rows = self._buffer[: self._filled]
        shard = Shard(self._rows, len(rows), _sha256(rows))
        number = len(self._shards)
        self._array.append(rows)
        root = self.folder / ARRAY
        for path in (root / f"c.{number}.0", root / "zarr.json", root):
            files.flush(path)
        self._catalog.execute("INSERT INTO shards VALUES (?, ?, ?, ?)", (number, *astuple(shard)))
        self._catalog.commit()
        self._shards.append(shard)
        self._filled = 0


class Store(AbstractContextManager["Store"]):
    """A finished store, read only; a context manager. Nothing unverified is ever returned."""

    def __init__(self, folder: Path, manifest: StoreManifest, seal: Seal) -> None:
        """Use `Store.open`."""
        self.folder, self.manifest = folder, manifest
        self.dimension, self.digest = manifest.dimension, seal.digest
        self.rows, self.rejected_count, self.listed = seal.rows, seal.rejected, seal.listed
        self._path = folder / CATALOG
        self._array = _open_array(folder / ARRAY, self.rows, manifest)
        check_sha256(self._path, seal.catalog)
        # Immutable: no lock and no journal, so that a store on read-only media can be read.
        uri = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
        with _sqlite_errors(self._path):
            self._catalog = sqlite3.connect(uri, uri=True)

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
        store = cls(folder, record(StoreManifest, value, path), record(Seal, value, path))
        try:
            store._load_shards()
        except BaseException:
            store.close()
            raise
        return store

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._catalog.close()

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
        touched = self._shards[start // size : -(-stop // size)] if start < stop else []
        parts = [
            self._verified(shard)[max(start - shard.first, 0) : stop - shard.first]
            for shard in touched
        ]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *parts])

    def shards(self) -> Iterator[tuple[int, Vectors]]:
        """Give every row in order, a shard at a time: its first row, and (n, D) float32."""
        return ((shard.first, self._verified(shard)) for shard in self._shards)

    def paths(self, rows: NDArray[np.int64] | None = None) -> list[str]:
        """Return the relative path of each row asked for, or of every row, in order."""
        if rows is None:
            return [entry.path for entry in self.embedded()]
        query = "SELECT path FROM entries WHERE row = ?"
        with _sqlite_errors(self._path):
            found = [self._catalog.execute(query, (row,)).fetchone() for row in rows.tolist()]
        if None in found:
            row = rows.tolist()[found.index(None)]
            raise InputError(f"{self.folder}: row {row} is not in its 0 to {self.rows}")
        return [os.fsdecode(path) for (path,) in found]

    def embedded(self) -> Iterator[Entry]:
        """Give the files that were embedded, in row order."""
        return self._entries("WHERE row IS NOT NULL ORDER BY row")

    def rejections(self) -> Iterator[Entry]:
        """Give the files that were rejected, in the order that they were listed."""
        return self._entries("WHERE row IS NULL ORDER BY id")

    def _entries(self, where: str) -> Iterator[Entry]:
        with _sqlite_errors(self._path):
            for row in self._catalog.execute(f"{COLUMNS} {where}"):
                detail = row[6].decode("utf-8", "surrogatepass")
                values = (os.fsdecode(row[0]), *row[1:6], detail)
                yield Entry(*values)

    def _load_shards(self) -> None:
        """Read the shards' table; Damaged when it or the counts differ from store.json."""
        with _sqlite_errors(self._path):
            counts = self._catalog.execute("SELECT count(row), count(reason) FROM entries")
            rows, rejected = counts.fetchone()
            table = self._catalog.execute("SELECT first_row, rows, sha256 FROM shards ORDER BY 1")
            self._shards = [Shard(*values) for values in table]
        found = (rows, rejected, _digest(self._shards))
        wanted = (self.rows, self.rejected_count, self.digest)
        if found != wanted:
            raise Damaged(
                f"{self._path}: its rows, rejections and digest are {found}, and {MANIFEST} says "
                f"{wanted}. Build the store again."
            )

    def _verified(self, shard: Shard) -> Vectors:
        where = f"{self.folder}: rows {shard.first} to {shard.stop - 1}"
        try:
            rows: Vectors = np.ascontiguousarray(self._array[shard.first : shard.stop], np.float32)
        except (OSError, ValueError) as error:
            raise Damaged(f"{where} cannot be read: {error}. Build the store again.") from error
        if not np.isfinite(rows).all():
            raise Damaged(f"{where} are missing, or not finite. Build the store again.")
        if _sha256(rows) != shard.sha256:
            raise Damaged(f"{where} are not those that were written. Build the store again.")
        return rows


def first_not_unit(vectors: Vectors) -> int | None:
    """Return the first of the rows (n, D) that is not finite or has not norm 1, if any."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    bad = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # true for NaN as well
    return int(bad.argmax()) if bad.any() else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of ours; InputMissing without it, Damaged if it is not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputMissing(f"{path}: not there, or its making was not finished.") from error
    except ValueError as error:
        raise Damaged(f"{path}: not the JSON that was written ({error}). Make it again.") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path}: holds no JSON object. Make it again.")
    return value


def record(kind: type[Record], value: dict[str, Any], path: Path) -> Record:
    """Return the dataclass `kind` from the JSON object that `path` held, or raise Damaged."""
    try:
        return kind(**{name: value[name] for name in kind.__annotations__})
    except KeyError as error:
        raise Damaged(f"{path}: has no {error}. Make it again.") from error
    except InputError as error:
        raise Damaged(f"{path}: {error}. Make it again.") from error


def check_types(value: object) -> None:
    """Raise InputError when a field of a dataclass is not of the very type that it declares."""
    for name, kind in type(value).__annotations__.items():
        found = getattr(value, name)
        if type(found) is not kind:
            raise InputError(f"{name} ({found!r}) must be of type {kind.__name__}")


def check_sha256(path: Path, wanted: str) -> None:
    """Raise Damaged when `path` is absent or its bytes have another SHA-256."""
    if not path.is_file():
        raise Damaged(f"{path}: is missing. Make it again.")
    found = files.sha256(path)
    if found != wanted:
        raise Damaged(
            f"{path}: its SHA-256 is {found[:12]}, and {wanted[:12]} was written. Make it again."
        )


def _open_array(path: Path, rows: int, manifest: StoreManifest) -> Any:
    try:
        array = zarr.open_array(path, mode="r")
    except Exception as error:  # zarr lets any error out, from TypeError to KeyError
        raise Damaged(f"{path}: cannot be opened ({error}). Build the store again.") from error
    found = (array.shape, array.chunks, str(array.dtype))
    shape, chunks = ((n, manifest.dimension) for n in (rows, manifest.shard_rows))
    if found != (shape, chunks, manifest.dtype):
        raise Damaged(
            f"{path}: its shape, chunks and type are {found}, and {MANIFEST} says "
            f"{(shape, chunks, manifest.dtype)}. Build the store again."
        )
    return array


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Damaged(f"{path}: {error}. Build the store again.") from error


def _sha256(rows: Vectors) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, "<f4").data).hexdigest()


def _digest(shards: Iterable[Shard]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(shard.sha256) for shard in shards)).hexdigest()
