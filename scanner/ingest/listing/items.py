"""The items of a listing, in columns, which take less than half of what objects take."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from heapq import merge
from operator import attrgetter, eq
from typing import overload

from deepssim_scan.ingest.archives import MemberLocation
from deepssim_scan.ingest.listing.item import Item

_WIDTH = 6  # numbers of an item: the ends of path and member, size, time, location, subject
_PLACE = 5  # numbers of a location
_NONE = -1
_ORDER = attrgetter("order")


class Items(Sequence[Item]):
    """Items in the order in which they were given; each is made anew when it is asked for."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        """Keep items. Those that fit into no column are kept as they are: rejected ones, mostly."""
        self._names = bytearray()
        self._numbers = array("q")
        self._locations = array("q")
        self._subjects: dict[str, int] = {}
        self._whole: dict[int, Item] = {}
        for item in items:
            self._append(item)
        self._subject_of = [*self._subjects]

    def __len__(self) -> int:
        """Count the items."""
        return len(self._numbers) // _WIDTH

    def __eq__(self, other: object) -> bool:
        """Tell whether the others are the same."""
        return isinstance(other, Items) and len(self) == len(other) and all(map(eq, self, other))

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Items": ...
    def __getitem__(self, index: int | slice) -> "Item | Items":
        """Return an item, or some."""
        if isinstance(index, slice):
            return Items(map(self._item, range(len(self))[index]))
        return self._item(range(len(self))[index])

    def _append(self, item: Item) -> None:
        path, member = item.order
        ends = len(self._names) + len(path), len(self._names) + len(path) + len(member)
        subject = self._subjects.setdefault(item.subject, len(self._subjects))
        try:
            place = self._place(item.location)
            numbers = array("q", (*ends, item.size, item.mtime_ns, place, subject))
        except OverflowError:  # of an archive that lies, or a clock
            self._whole[len(self)] = item
            numbers = array("q", (*ends, 0, 0, _NONE, subject))
        if item.rejection:
            self._whole[len(self)] = item
        self._names += path + member
        self._numbers += numbers

    def _place(self, location: MemberLocation | None) -> int:
        """Keep a location, and return where; OverflowError where it has numbers beyond 64 bits."""
        if location is None:
            return _NONE
        *places, crc = astuple(location)
        place = len(self._locations)
        self._locations += array("q", (*places, _NONE if crc is None else crc))
        return place

    def _item(self, index: int) -> Item:
        if index in self._whole:
            return self._whole[index]
        at = index * _WIDTH
        start = self._numbers[at - _WIDTH + 1] if index else 0
        middle, end, size, time, place, subject = self._numbers[at : at + _WIDTH]
        path, member = (
            os.fsdecode(bytes(self._names[a:b])) for a, b in ((start, middle), (middle, end))
        )
        location = None if place == _NONE else self._location(place)
        return Item(path, member, size, time, location, self._subject_of[subject])

    def _location(self, place: int) -> MemberLocation:
        offset, size, packed, deflated, crc = self._locations[place : place + _PLACE]
        return MemberLocation(offset, size, packed, bool(deflated), None if crc == _NONE else crc)


def in_order(found: Iterable[Item]) -> Items:
    """Keep items by their paths and members. Those that come too late take as much as an object."""
    late = list[Item]()
    first = Items(_rising(found, late))
    late.sort(key=_ORDER)
    return merged(first, late) if late else first


def merged(*found: Iterable[Item]) -> Items:
    """Keep items of several, each of which is in order."""
    return Items(merge(*found, key=_ORDER))


def _rising(found: Iterable[Item], late: list[Item]) -> Iterator[Item]:
    last = b"", b""
    for item in found:
        order = item.order
        if order < last:
            late.append(item)
        else:
            last = order
            yield item
