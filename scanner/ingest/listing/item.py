"""What a listing holds: items that are one image file each, or one member of an archive."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

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
    files: tuple[Item, ...]
    ignored: int
    excluded: int = 0
