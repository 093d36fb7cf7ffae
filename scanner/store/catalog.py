"""The catalog of a store: a SQLite file with a row for every image that was listed.

    images    one row per file, or per frame of one: what was read, and what became of it
    shards    one row per chunk of embeddings that is on the disk, with its SHA-256
    about     the manifest of the store that is being written

While a store is written, the rows of a shard are committed in one transaction, after the shard
itself is on the disk. When the store is finished, all rows are copied, in order, to a new file
that replaces the old one. So its bytes depend on the rows alone, not on how often the run stopped.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import astuple, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from deepssim_scan.errors import Damaged, InputError, ScanError, WriteFailed
from deepssim_scan.ingest.record import ImageRecord, State
from deepssim_scan.ingest.rejection import BLANK
from deepssim_scan.storage.files import flush

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS about (manifest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL, member BLOB NOT NULL, frame TEXT NOT NULL,
    frames INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL, mode TEXT NOT NULL, subject BLOB NOT NULL, reason TEXT,
    detail BLOB NOT NULL, subject_known INTEGER NOT NULL, row INTEGER UNIQUE,
    state TEXT AS (CASE WHEN reason IS NULL THEN 'embedded'
        WHEN reason = '{BLANK}' THEN 'blank' ELSE 'rejected' END),
    CHECK ((reason IS NULL) = (row IS NOT NULL)));
CREATE TABLE IF NOT EXISTS shards (
    shard INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, rows INTEGER NOT NULL,
    sha256 TEXT NOT NULL, last_image INTEGER NOT NULL, thumbnails_sha256 TEXT NOT NULL,
    images_sha256 TEXT NOT NULL);
"""
_STORED = (
    "path, member, frame, frames, size, mtime_ns, sha256, mode, subject, reason, detail, "
    "subject_known"
)
"""The fields of a record, in their order."""
_COPIED = {
    "about": "manifest",
    "images": f"id, {_STORED}, row",
    "shards": "shard, first_row, rows, sha256, last_image, thumbnails_sha256, images_sha256",
}


_TOGETHER = 1000  # images that SQLite is given at once

_values = attrgetter(*(field.name for field in fields(ImageRecord)))
"""The values of a record, in their order; `astuple` copies them, which takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Shard:
    """`rows` embeddings from row `first` on, and the SHA-256 of their little-endian bytes.

    `last_image` is the number in the catalog, from 1, of the last image committed with it;
    `thumbnails` the SHA-256 of their thumbnails, "" in a store that has none.
    """

    first: int
    rows: int
    sha256: str
    last_image: int
    thumbnails: str = ""

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.first + self.rows


class _Queries:
    """What a finished catalog and one that is being written can be asked."""

    path: Path
    _database: sqlite3.Connection

    def close(self) -> None:
        """Close the file; images that were added and not committed are dropped."""
        self._database.close()

    def counts(self) -> tuple[int, int, int]:
        """Return how many images were embedded, how many rejected, and how many are blank."""
        found = dict(self._all("SELECT state, count(*) FROM images GROUP BY state"))
        return found.get("embedded", 0), found.get("rejected", 0), found.get("blank", 0)

    def shards(self) -> list[Shard]:
        """Return the shards, in row order."""
        columns = "first_row, rows, sha256, last_image, thumbnails_sha256"
        query = f"SELECT {columns} FROM shards ORDER BY shard"
        return [Shard(*values) for values in self._all(query)]

    def manifest(self) -> str | None:
        """Return the manifest that the writer wrote, if it came that far."""
        found = self._one("SELECT max(manifest) FROM about")[0]
        return None if found is None else str(found)

    def subjects(self) -> int:
        """Return how many different subjects the embedded images have, "" not counted."""
        query = "SELECT count(DISTINCT subject) FROM images WHERE row NOTNULL AND subject != x''"
        return int(self._one(query)[0])

    def subject_of_each_row(self) -> Iterator[tuple[bytes, bool]]:
        """Give the subject of each row, b"" where there is none, and whether it is known."""
        query = "SELECT subject, subject_known FROM images WHERE row NOTNULL ORDER BY row"
        return ((subject, bool(known)) for subject, known in self._all(query))

    def modes(self) -> dict[str, int]:
        """Return how many embedded images have each mode."""
        query = "SELECT mode, count(*) FROM images WHERE row NOTNULL GROUP BY mode ORDER BY mode"
        return {str(mode): int(count) for mode, count in self._all(query)}

    def items(self) -> int:
        """Return how many different files and members of archives there are."""
        return int(self._one("SELECT count(*) FROM (SELECT DISTINCT path, member FROM images)")[0])

    def miscounted(self) -> list[str]:
        """Return the names of items whose images are not one for each frame of the same bytes."""
        query = (
            f"SELECT {_STORED} FROM images GROUP BY path, member HAVING count(*) != max(frames)"
            " OR min(frames) != max(frames) OR count(DISTINCT frame) != count(*)"
            " OR count(DISTINCT sha256) != 1 ORDER BY min(id)"
        )
        return [record.name for record in self._records(query)]

    def in_order(self) -> bool:
        """Tell whether the rows are 0, 1, 2 and so on, in the order of the images."""
        rows = (row for (row,) in self._all("SELECT row FROM images WHERE row NOTNULL ORDER BY id"))
        return all(row == number for number, row in enumerate(rows))

    def at(self, rows: Iterable[int]) -> list[ImageRecord | None]:
        """Return the record of each row, None for one that is not there."""
        query = f"SELECT {_STORED} FROM images WHERE row = ?"
        return [next(self._records(query, (row,)), None) for row in rows]

    def in_state(self, state: State) -> Iterator[ImageRecord]:
        """Give the images in a state, in the order that they were listed, which is row order."""
        query = f"SELECT {_STORED} FROM images WHERE state = ? ORDER BY id"
        return self._records(query, (state,))

    def every(self) -> Iterator[tuple[ImageRecord, int | None]]:
        """Give every image in the order that they were listed, and its row, if it has one."""
        for *values, row in self._all(f"SELECT {_STORED}, row FROM images ORDER BY id"):
            yield _record(values), row

    def between(self, first: int, last: int) -> list[ImageRecord]:
        """Return images `first` to `last` of the catalog, counted from 1, both included."""
        query = f"SELECT {_STORED} FROM images WHERE id BETWEEN ? AND ? ORDER BY id"
        return list(self._records(query, (first, last)))

    def _records(self, query: str, values: Sequence[Any] = ()) -> Iterator[ImageRecord]:
        return map(_record, self._all(query, values))

    def _one(self, query: str) -> tuple[Any, ...]:
        return next(self._all(query))

    def _all(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with self._errors():
            yield from self._database.execute(query, values)

    def _errors(self) -> AbstractContextManager[None]:
        """Turn the errors of SQLite in a block into ours."""
        raise NotImplementedError


class Catalog(_Queries, AbstractContextManager["Catalog"]):
    """A finished catalog, read only."""

    def __init__(self, path: Path) -> None:
        """Open the file, which nothing changes any more; Damaged when SQLite cannot."""
        self.path = path
        # Immutable: no lock and no journal, so that a store on read-only media can be read.
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with self._errors():
            self._database = sqlite3.connect(uri, uri=True)

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise Damaged(f"{self.path}: {error}. Build the store again.") from error


class CatalogWriter(_Queries):
    """The catalog of a store that is being written."""

    def __init__(self, path: Path, manifest: str) -> None:
        """Create the file, or open it as a run of the same manifest left it.

        Raises InputError when it is of another manifest.
        """
        self.path = path
        self._added: list[tuple[Any, ...]] = []
        with self._errors():
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.executescript(_SCHEMA)
            found = self.manifest()
            if found is None:
                self._database.execute("INSERT INTO about VALUES (?)", (manifest,))
            elif found != manifest:
                self.close()
                raise InputError(f"{path.parent}: is the unfinished store of another run.")
            self._last = int(self._one("SELECT coalesce(max(id), 0) FROM images")[0])
            self._database.execute("BEGIN")

    def add(self, record: ImageRecord, row: int | None) -> int:
        """Add an image, not yet committed; return its number, from 1."""
        path, member, *facts, subject, reason, detail, known = _values(record)
        key, texts = (os.fsencode(path), os.fsencode(member)), (_bytes(subject), reason)
        self._added.append((*key, *facts, *texts, _bytes(detail), known, row))
        self._last += 1
        if len(self._added) == _TOGETHER:
            self._insert()
        return self._last

    def _insert(self) -> None:
        """Give SQLite what was added, many at a time."""
        added, self._added = self._added, []
        with self._errors():
            self._database.executemany(
                f"INSERT INTO images ({_STORED}, row) VALUES (?{', ?' * 12})", added
            )

    def _all(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        self._insert()
        return super()._all(query, values)

    def commit(self, shard: Shard | None = None) -> None:
        """Commit what was added, with the shard that its rows are in."""
        self._insert()
        with self._errors():
            if shard is not None:
                number, before = self._one("SELECT count(*), max(last_image) FROM shards")
                digest = self._images_sha256(before or 0, shard.last_image)
                self._database.execute(
                    "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (number, *astuple(shard), digest),
                )
            self._database.execute("COMMIT")
            self._database.execute("BEGIN")

    def whole(self) -> list[Shard]:
        """Return the shards, from the first on, whose images are those that were committed."""
        found: list[Shard] = []
        for shard in self.shards():
            before = found[-1].last_image if found else 0
            query = "SELECT images_sha256 FROM shards WHERE last_image = ?"
            (digest,) = next(self._all(query, (shard.last_image,)))
            if digest != self._images_sha256(before, shard.last_image):
                break
            found.append(shard)
        return found

    def _images_sha256(self, before: int, last: int) -> str:
        """Return the SHA-256 of the images after number `before`, to `last`."""
        query = f"SELECT id, {_STORED}, row FROM images WHERE id > ? AND id <= ? ORDER BY id"
        digest = hashlib.sha256()
        for values in self._all(query, (before, last)):
            digest.update(repr(values).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def keep(self, shards: int) -> None:
        """Forget all that came after the first `shards` shards."""
        with self._errors():
            self._database.execute("DELETE FROM shards WHERE shard >= ?", (shards,))
            self._last = self._one("SELECT coalesce(max(last_image), 0) FROM shards")[0]
            self._database.execute("DELETE FROM images WHERE id > ?", (self._last,))
            self.commit()

    def last_item(self) -> tuple[ImageRecord, int] | None:
        """Return the last image, and how many there are of the same file or member."""
        query = f"SELECT {_STORED} FROM images ORDER BY id DESC LIMIT 1"
        last = next(self._records(query), None)
        if last is None:
            return None
        key = os.fsencode(last.path), os.fsencode(last.member)
        query = "SELECT count(*) FROM images WHERE path = ? AND member = ?"
        return last, next(self._all(query, key))[0]

    def finish(self) -> None:
        """Commit, and copy every row in order to a new file that takes this one's place."""
        self.commit()
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            self._copy_to(partial)
            self.close()
            flush(partial)
            partial.replace(self.path)
            flush(self.path.parent)
        finally:
            partial.unlink(missing_ok=True)

    def _copy_to(self, partial: Path) -> None:
        with self._errors(), closing(sqlite3.connect(partial, isolation_level=None)) as database:
            # No journal: a copy that is cut short is thrown away.
            database.execute("PRAGMA journal_mode = OFF")
            database.executescript(_SCHEMA)
            database.execute("BEGIN")
            for table, columns in _COPIED.items():
                marks = ", ".join("?" * len(columns.split(", ")))
                database.executemany(
                    f"INSERT INTO {table} ({columns}) VALUES ({marks})",
                    self._database.execute(f"SELECT {columns} FROM {table} ORDER BY rowid"),
                )
            database.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ScanError:
            raise
        except sqlite3.OperationalError as error:
            if "decode" in str(error):  # a text that is none any more
                raise Damaged(f"{self.path}: {error}. Build the store again.") from error
            raise WriteFailed(f"{self.path}: {error}.") from error
        except sqlite3.Error as error:
            raise Damaged(f"{self.path}: {error}. Build the store again.") from error


def _record(row: Sequence[Any]) -> ImageRecord:
    """Return the record that the values of its fields hold."""
    key = os.fsdecode(row[0]), os.fsdecode(row[1])
    values = (*key, *row[2:8], _text(row[8]), row[9], _text(row[10]), bool(row[11]))
    return ImageRecord(*values)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
