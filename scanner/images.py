"""Folders of image files to standardised pixels, with a reason for everything left out.

    list_images(folder) -> Listing -> decode_images -> a list of Decoded per item, in its order

Every item that is listed comes out exactly once, as one Decoded per frame: pixels (H', W')
float32, or a rejection. Sizes are bytes, times nanoseconds.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from deepssim_scan.archives import read_member
from deepssim_scan.decode import Frame, Pixels, Reading, Rejected, Rejection, decode
from deepssim_scan.errors import InputError
from deepssim_scan.inputs import MAX_BYTES, inside, open_regular
from deepssim_scan.listing import Item, Listing
from deepssim_scan.standardise import Standardisation, standardise
from deepssim_scan.workers import Limits, each

_CHUNK_BYTES = 8 << 20
_AS_IT_IS = Reading()
_DEFAULT = Limits()


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What became of one frame: pixels (H', W') float32, standardised, or a rejection.

    `frame` names it in its file, or in the `member` of an archive, which has `frames` of them;
    a file that is rejected whole has one, named "". `size` and `sha256` are of the very bytes
    that were decoded, `mtime_ns` of the file on disk; they, `mode` and `subject` are empty or 0
    where the file did not get that far. `subject` is a keyed hash, or what a manifest says.
    """

    path: str
    member: str
    frame: str
    frames: int
    size: int
    mtime_ns: int
    sha256: str
    mode: str
    subject: str
    pixels: Pixels | None
    rejection: Rejection | None

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.rejection is None):
            raise ValueError(f"{self.path!r} must have either pixels or a rejection")


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """A frame, standardised, before it is known how many there are."""

    frame: str
    mode: str
    subject: str
    pixels: Pixels | None
    rejection: Rejection | None


def decode_item(
    folder: Path, item: Item, rule: Standardisation, reading: Reading = _AS_IT_IS
) -> list[Decoded]:
    """Read, hash, decode and standardise one item; every failure is a rejection.

    A frame that is constant or not finite is rejected among the others; whatever else is wrong
    rejects the item whole. The bytes are read once, and the hash is of those that were decoded.
    """
    data, sha256 = b"", ""
    try:
        if item.rejection is not None:
            raise Rejected(item.rejection.reason, item.rejection.detail)
        data = _read(folder, item)
        sha256 = hashlib.sha256(data).hexdigest()
        planes = [_plane(frame, rule) for frame in decode(data, reading)]
        if not planes:
            raise Rejected("damaged", "no frame in it")
        if len({plane.frame for plane in planes}) < len(planes):
            raise Rejected("bad-array", "two of its frames have one name")
    except Rejected as error:
        planes = [_Plane("", "", "", None, error.rejection)]
    except MemoryError:
        planes = [_Plane("", "", "", None, Rejection("too-large", "not enough memory"))]
    subject = _keyed(item.subject, reading.subject_key)
    return [
        Decoded(
            path=item.path,
            member=item.member,
            frame=plane.frame,
            frames=len(planes),
            size=len(data),
            mtime_ns=item.mtime_ns if sha256 else 0,
            sha256=sha256,
            mode=plane.mode,
            subject=subject or plane.subject,
            pixels=plane.pixels,
            rejection=plane.rejection,
        )
        for plane in planes
    ]


def _plane(frame: Frame, rule: Standardisation) -> _Plane:
    try:
        pixels = standardise(frame.pixels, rule)
    except Rejected as error:
        return _Plane(frame.name, frame.mode, frame.subject, None, error.rejection)
    return _Plane(frame.name, frame.mode, frame.subject, pixels, None)


def _keyed(subject: str, key: bytes) -> str:
    """Return a manifest's subject as DICOM patient ids are kept: hashed when there is a key."""
    if not (subject and key):
        return subject
    return hmac.new(key, subject.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def _read(folder: Path, item: Item) -> bytes:
    """Return an item's bytes, of a file that did not change since it was listed."""
    path = folder / item.path
    if not inside(os.path.realpath(folder), path):
        raise Rejected("outside-folder", "the path leaves the folder")
    with open_regular(path) as file:
        _check_same(os.fstat(file.fileno()), item)
        data = read_member(file, item.place) if item.place else _read_whole(file, item)
        _check_same(os.fstat(file.fileno()), item)
    return data


def _read_whole(file: BinaryIO, item: Item) -> bytes:
    if item.size > MAX_BYTES:
        raise Rejected("too-large", f"{item.size} bytes, over the limit of {MAX_BYTES}")
    data = file.read(item.size + 1)
    if len(data) != item.size:
        raise Rejected("changed", "its size changed while it was read")
    return data


def _check_same(status: os.stat_result, item: Item) -> None:
    if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
        raise Rejected("changed", "its size or time is not what it was when it was listed")


def decode_images(
    listing: Listing,
    rule: Standardisation,
    reading: Reading = _AS_IT_IS,
    *,
    workers: int,
    limits: Limits = _DEFAULT,
    chunk: int = 32,
) -> Generator[list[Decoded], None, None]:
    """Decode every item of a listing, in its order: one list of Decoded per item, never empty.

    `workers` processes (0: this one, where nothing limits a file's time or memory) take
    `chunk` items at a time, or fewer: at most 8 MiB of files, so that volumes go alone. At most
    2 * workers + 2 chunks of standardised images are held, so memory does not grow with the
    folder; where images are large and never resized, a smaller `chunk` holds fewer. Closing the
    generator ends the processes. The result does not depend on `workers` or `chunk`.

    Raises InputError for numbers out of range, at the call; ScanError while iterating, when
    no process can be started.
    """
    if workers < 0 or chunk < 1:
        raise InputError(f"workers ({workers}) must be >= 0, and chunk ({chunk}) >= 1")
    one = partial(decode_item, listing.folder, rule=rule, reading=reading)
    readable = (item for item in listing.files if item.rejection is None)
    pooled = each(one, _chunks(readable, chunk), workers, limits) if workers else None
    return _in_order(listing, one, pooled or (one(item) for item in readable))


def _chunks(items: Iterator[Item], most: int) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    total = 0
    for item in items:
        size = item.place.size if item.place else item.size
        if chunk and (len(chunk) == most or total + size > _CHUNK_BYTES):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


_Answer = list[Decoded] | Rejection


def _in_order(
    listing: Listing,
    one: Callable[[Item], list[Decoded]],
    answers: Generator[_Answer, None, None],
) -> Generator[list[Decoded], None, None]:
    """Put items that the listing rejects, and those that workers died of, in their places."""
    with closing(answers):
        for item in listing.files:
            answer = next(answers) if item.rejection is None else item.rejection
            if isinstance(answer, Rejection):
                answer = one(replace(item, rejection=answer))
            yield answer
