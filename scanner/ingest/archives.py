"""Lists the members of zip and tar archives, and reads one; nothing is ever extracted.

    list_members(file) -> name, MemberLocation or Rejection -> read_member(file, location) -> bytes

Only whole archives are listed, since a part of one would pass for all of it:

- A tar must end with the marker that the format asks for, and nothing may follow it. A tar that was
  cut short, or that another was appended to by `cat`, is "bad-archive".
- A zip must start with its first member. A zip that was appended to another file is "bad-archive".

Zip members must be stored or deflated. They are checked against the size and the CRC-32 of the
archive's directory. Tar members have no checksum. Sizes and offsets are bytes.
"""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from deepssim_scan.ingest.rejection import Rejected, Rejection
from deepssim_scan.ingest.safe_open import MAX_BYTES

_BLOCK, _LOCAL_HEADER = 512, 30
_LONGEST_HEADER = 1 << 20
"""Bytes that one header of a tar may have; a name and its attributes need a few thousand."""

_ZIP = (b"PK\3\4", b"PK\5\6")
"""How a zip begins: with a member, or with the end of its directory when it has none."""


@dataclass(frozen=True, slots=True)
class MemberLocation:
    """Where a member is in its archive.

    In a tar, `size` bytes from `offset` on; `crc` is None. In a zip, a local header at `offset`,
    and after it `packed` bytes that inflate to `size` bytes when `deflated`.
    """

    offset: int
    size: int
    packed: int
    deflated: bool = False
    crc: int | None = None


Member = tuple[str, MemberLocation | Rejection]


def list_members(file: BinaryIO) -> list[Member]:
    """List the members of an archive, without folders, in the archive's order.

    A member that cannot be read faithfully has a rejection for its location: "unsupported",
    "not-a-file" for links and devices, "too-large". Raises Rejected: "bad-archive" for a file
    that is not a whole zip or tar, "too-large" for a tar with a header of more than 1 MiB.
    """
    try:
        zipped = file.read(4) in _ZIP
        return list(_zip_members(file) if zipped else _tar_members(file))
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # its text may hold a member's name
        raise Rejected("bad-archive", f"not a whole zip or tar: {type(error).__name__}") from error


def read_member(file: BinaryIO, location: MemberLocation, most: int = MAX_BYTES) -> bytes:
    """Return a member's bytes, checked; of a member of more than `most` bytes only the first.

    Raises Rejected "damaged" when they are not what the archive's directory says.
    """
    wanted = min(location.size, most)
    if location.crc is None:
        file.seek(location.offset)
        data = file.read(wanted)
    else:
        data = _unpack(file, location, wanted)
    if len(data) != wanted:
        raise Rejected("damaged", f"the archive says {wanted} bytes, found {len(data)}")
    if wanted == location.size and location.crc not in (None, zlib.crc32(data)):
        raise Rejected("damaged", "a wrong CRC-32 in the archive")
    return data


def _unpack(file: BinaryIO, location: MemberLocation, wanted: int) -> bytes:
    """Read and inflate a zip member, or its first bytes.

    At most one byte more than its size is inflated, which shows a member that is too long.
    """
    file.seek(location.offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) != _LOCAL_HEADER or header[:4] != _ZIP[0]:
        raise Rejected("damaged", "no local header where the archive's directory says")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    file.seek(names, 1)
    whole = wanted == location.size
    if not location.deflated:
        return file.read(location.packed if whole else wanted)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    # Deflate never grows data by more than 5 bytes in 16,000: a head needs no more input.
    packed = file.read(location.packed if whole else min(location.packed, 2 * wanted + 1000))
    try:
        return stream.decompress(packed, wanted + whole)
    except zlib.error as error:
        raise Rejected("damaged", "a deflated member that does not inflate") from error


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    offsets = [info.header_offset for info in infos] or [directory]
    if min(offsets) != 0:
        raise Rejected("bad-archive", "the zip does not start with its first member")
    for info in infos:
        if not info.is_dir():
            yield info.filename, _zip_location(info)


def _zip_location(info: zipfile.ZipInfo) -> MemberLocation | Rejection:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return Rejection("not-a-file", "a link or device in an archive")
    if info.flag_bits & 0x2061:  # encrypted, a patch, strongly encrypted, a hidden directory
        return Rejection("unsupported", "encrypted in its archive; unpack the archive")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Rejection(
            "unsupported",
            f"packed by method {info.compress_type} of zip; pack it with deflate, or unpack it",
        )
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    location = MemberLocation(
        info.header_offset, info.file_size, info.compress_size, deflated, info.CRC
    )
    return _within_limit(location)


def _within_limit(location: MemberLocation) -> MemberLocation | Rejection:
    largest = max(location.size, location.packed)
    if largest > MAX_BYTES:
        return Rejection("too-large", f"{largest} bytes, over the limit of {MAX_BYTES}")
    return location


@dataclass(frozen=True, slots=True)
class _Headers:
    """A file of which tarfile reads the headers, and which refuses headers that fill the memory."""

    file: BinaryIO

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise Rejected(
                "too-large", f"a header of {size} bytes in the tar, over {_LONGEST_HEADER}"
            )
        return self.file.read(size)

    def seek(self, offset: int) -> int:
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()


def _tar_members(file: BinaryIO) -> Iterator[Member]:
    file.seek(0)
    headers = cast("BinaryIO", _Headers(file))
    with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as archive:
        end = 0
        while (info := archive.next()) is not None:
            # tarfile keeps every member, at a kilobyte each.
            archive.members.clear()  # type: ignore[attr-defined]
            # A negative size would lead back to headers already seen, for ever.
            if archive.offset <= end or info.size < 0:
                raise Rejected("bad-archive", "a member of the tar has a size below zero")
            end = archive.offset
            if not info.isdir():
                yield info.name, _tar_location(info)
        _check_end(file, archive.offset)


def _tar_location(info: tarfile.TarInfo) -> MemberLocation | Rejection:
    if not info.isreg():
        return Rejection("not-a-file", "a link or device in an archive")
    if info.issparse():
        return Rejection("unsupported", "a sparse member of a tar; unpack the archive")
    return _within_limit(MemberLocation(info.offset_data, info.size, info.size))


def _check_end(file: BinaryIO, offset: int) -> None:
    """Check that the marker, a block of zeros, is at `offset`, and that nothing else follows.

    tarfile stops without an error at a header that it cannot read, and at the end of the file.
    """
    file.seek(offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise Rejected("bad-archive", "the tar has no end: cut short, or a damaged header")
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise Rejected("bad-archive", "the tar goes on after its end; unpack it")
