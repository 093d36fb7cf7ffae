"""The items of a listing that a finished store holds as they are: their records and rows.

a finished store + items in the order of a listing -> records and rows, where nothing changed

A file is the same when its size and its time are those that the catalog has. It is not read then.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.listing import Item, Listing
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.ingest.rejection import MAY_PASS
from deepssim_scan.ingest.subjects import subject_of
from deepssim_scan.store.array import Made
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
    """Finds the items of a listing in a store, both in their order, and counts what changed."""

    def __init__(self, store: Store, ingest: IngestConfig) -> None:
        """Stand before the first item."""
        self._store, self._ingest = store, ingest
        self.begin()

    def begin(self) -> None:
        """Go back to before the first item."""
        self._kept = self._new = self._gone = self._passed = 0
        self._groups: Iterator[tuple[tuple[str, str], Images]] = _groups(self._store)
        self._next = next(self._groups, None)
        self._shards = self._store.made()
        self._first, self._rows = 0, self._nothing

    def close(self) -> None:
        """Read no more of the store, which can be closed then."""
        self._groups = iter(())

    def records(self, item: Item) -> Images | None:
        """Return the records of an item, after those before it; None when it changed or is new."""
        images = self._there(item)
        if images is not None and not all(self._is_same(item, record) for record, _ in images):
            images = None
        self._passed, self._new = self._passed + 1, self._new + (images is None)
        self._kept += len(images or ())
        return images

    def take(self, item: Item) -> tuple[list[ImageRecord], Made] | None:
        """Return the records and rows of an item; None when it changed or is new."""
        images = self.records(item)
        if images is None:
            return None
        rows = [self._row(row) for _, row in images if row is not None]
        return [record for record, _ in images], Made.joined([self._nothing, *rows])

    def skip(self, items: Iterable[Item]) -> None:
        """Pass by items, and count them."""
        for item in items:
            self.records(item)

    def changes(self, listing: Listing) -> Changes:
        """Tell how a listing differs from the store, having passed by what is left of it."""
        self.skip(islice(listing.files, self._passed, None))
        while self._next is not None:
            self._gone, self._next = self._gone + 1, next(self._groups, None)
        return Changes(self._kept, self._new, self._gone, self._store.footer.items)

    def _there(self, item: Item) -> Images | None:
        """Return the images of the item that the store has; None where it has none of that name."""
        key = item.path, item.member
        if self._next is not None and self._next[0] != key:
            order = item.order
            while self._next is not None and Item(*self._next[0]).order < order:
                self._gone, self._next = self._gone + 1, next(self._groups, None)
        if self._next is None or self._next[0] != key:
            return None
        images, self._next = self._next[1], next(self._groups, None)
        return images

    @property
    def _nothing(self) -> Made:
        width = self._store.manifest.thumbnail**2
        return Made(np.empty((0, self._store.dimension), np.float32), np.empty((0, width), np.int8))

    def _row(self, row: int) -> Made:
        while row >= self._first + len(self._rows):
            self._first, self._rows = next(self._shards)
        at = row - self._first
        return self._rows.part(slice(at, at + 1))

    def _is_same(self, item: Item, record: ImageRecord) -> bool:
        size = item.location.size if item.location else item.size
        if (record.size, record.mtime_ns) != (size, item.mtime_ns) or record.reason in MAY_PASS:
            return False
        whose = subject_of(item, record.frame, "", self._ingest)
        of_file = not whose.known and self._ingest.selection.manifest is None
        return of_file or (whose.name, whose.known) == (record.subject, record.subject_known)


def _groups(store: Store) -> Iterator[tuple[tuple[str, str], Images]]:
    """Give the path and the member of each item, and its images."""
    for key, images in groupby(store.catalog.every(), lambda each: each[0].key[:2]):
        yield key, [*images]
