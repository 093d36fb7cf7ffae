"""The items of a listing that a finished store holds as they are: their records and rows.

a finished store + items in the order of a listing -> records and rows, where nothing changed

A file is the same when its size and its time are those that the catalog has. It is not read then.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.listing import Item, Listing
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.ingest.rejection import MAY_PASS
from deepssim_scan.ingest.subjects import subject_of
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.store import Store

Images = list[tuple[ImageRecord, int | None]]
"""The records of one item, and the row of each that has one."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How a listing differs from a store.

    `kept` images are the same. `new` files and members of archives were not there, or have changed;
    `gone` ones, of `before`, are not listed any more.
    """

    kept: int
    new: int
    gone: int
    before: int


class Unchanged:
    """Finds the items of a listing in a store, both in their order."""

    def __init__(self, store: Store, ingest: IngestConfig) -> None:
        """Begin at the first item."""
        self.gone = 0
        self._store, self._ingest = store, ingest
        self._groups = _groups(store)
        self._next = next(self._groups, None)
        self._shards = store.shards()
        self._first, self._rows = 0, np.empty((0, store.dimension), np.float32)

    def records(self, item: Item) -> Images | None:
        """Return the records of an item, after those before it; None when it changed or is new."""
        order = item.order
        while self._next is not None and self._next[0] < order:
            self.gone += 1
            self._next = next(self._groups, None)
        if self._next is None or self._next[0] != order:
            return None
        images, self._next = self._next[1], next(self._groups, None)
        return images if all(self._is_same(item, record) for record, _ in images) else None

    def take(self, item: Item) -> tuple[list[ImageRecord], Vectors] | None:
        """Return the records and rows (n, D) of an item; None when it changed or is new."""
        images = self.records(item)
        if images is None:
            return None
        rows = [self._row(row) for _, row in images if row is not None]
        empty = np.empty((0, self._store.dimension), np.float32)
        return [record for record, _ in images], np.stack(rows) if rows else empty

    def rest(self) -> int:
        """Return how many items are left."""
        return sum(1 for _ in self._groups) + (self._next is not None)

    def _row(self, row: int) -> Vectors:
        while row >= self._first + len(self._rows):
            self._first, self._rows = next(self._shards)
        wanted: Vectors = self._rows[row - self._first]
        return wanted

    def _is_same(self, item: Item, record: ImageRecord) -> bool:
        size = item.location.size if item.location else item.size
        if (record.size, record.mtime_ns) != (size, item.mtime_ns) or record.reason in MAY_PASS:
            return False
        whose = subject_of(item, record.frame, "", self._ingest)
        of_file = not whose.known and self._ingest.selection.manifest is None
        return of_file or (whose.name, whose.known) == (record.subject, record.subject_known)


def changes(store: Store, listing: Listing, ingest: IngestConfig) -> Changes:
    """Compare a listing with a store."""
    unchanged, kept, new = Unchanged(store, ingest), 0, 0
    for item in listing.files:
        images = unchanged.records(item)
        kept, new = kept + len(images or ()), new + (images is None)
    return Changes(kept, new, unchanged.gone + unchanged.rest(), store.footer.items)


def _groups(store: Store) -> Iterator[tuple[tuple[bytes, bytes], Images]]:
    """Give the images of each item, after what items are sorted by."""
    for (path, member), images in groupby(store.catalog.every(), lambda each: each[0].key[:2]):
        yield Item(path, member).order, [*images]
