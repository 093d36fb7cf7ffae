"""What a listing holds: items that are one image file each, or one member of an archive."""

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from deepssim_scan.ingest.archives import MemberLocation
from deepssim_scan.ingest.rejection import Rejection


@dataclass(frozen=True, slots=True)
class Item:
    """One file or member to decode, or one that its name and kind already rule out.

    `path` is relative to the folder, with `/`; bytes that are not UTF-8 are kept by Python's
    surrogateescape, so `os.fsencode(path)` gives the name on disk. `member` is a name inside of
    the archive `path`, at `location`, or "". `size` in bytes and `mtime_ns` are those of the file
    `path` when it was listed. `subject` is what a manifest says, or "".
    """

    path: str
    member: str = ""
    size: int = 0
    mtime_ns: int = 0
    location: MemberLocation | None = None
    subject: str = ""
    rejection: Rejection | None = None

    @property
    def order(self) -> tuple[bytes, bytes]:
        """What items of a listing are sorted by."""
        return os.fsencode(self.path), os.fsencode(self.member)

    def rejected(self, rejection: Rejection) -> Self:
        """Return the same item, rejected."""
        return replace(self, rejection=rejection)


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder, sorted by the bytes of path and member.

    No two items have the same path and member. `ignored` counts the files and members that are no
    images, or were not asked for; `excluded` the files that exclude patterns left out.
    """

    folder: Path
    files: Sequence[Item]
    ignored: int
    excluded: int = 0

    def find(self, path: str, member: str) -> Item | None:
        """Return the item of a path and member, None where there is none."""
        wanted = Item(path, member).order
        index = bisect_left(self.files, wanted, key=lambda item: item.order)
        there = index < len(self.files) and self.files[index].order == wanted
        return self.files[index] if there else None


def item_of(archive: Item, values: Mapping[str, Any]) -> Item:
    """Return the item of an archive that plain values, those of `asdict`, describe.

    What the file on the disk is like is taken from the archive. Raises KeyError, TypeError or
    ValueError where the values are others.
    """
    member, location, rejection = (values[name] for name in ("member", "location", "rejection"))
    if not isinstance(member, str):
        raise TypeError("a member has a name")
    return replace(
        archive,
        member=member,
        location=None if location is None else _location_of(**location),
        rejection=None if rejection is None else Rejection(**rejection),
    )


def _location_of(
    offset: int, size: int, packed: int, deflated: bool, crc: int | None
) -> MemberLocation:
    numbers = offset, size, packed, 0 if crc is None else crc
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a location is of whole numbers")
    return MemberLocation(offset, size, packed, bool(deflated), crc)
