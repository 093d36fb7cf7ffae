"""The members of zip and tar archives, and the bytes of one; nothing is ever extracted.

    list_members(file) -> name, Place or Rejection -> read_member(file, place) -> bytes

Only whole archives are listed, since a part of one would pass for all of it:

- A tar must end with the marker that the format asks for, and with nothing after it: one that
  was cut short, or had another appended by `cat`, is "bad-archive".
- A zip must start with its first member: one with another before it is "bad-archive".

Zip members must be stored or deflated, and are checked against the size and the CRC-32 of the
archive's directory. Tar members have no checksum. Sizes and offsets are bytes.
"""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from deepssim_scan.decode import Rejected, Rejection
from deepssim_scan.inputs import MAX_BYTES

_BLOCK, _LOCAL_HEADER = 512, 30
_ZIP = (b"PK\3\4", b"PK\5\6")
"""How a zip begins: with a member, or with the end of its directory when it has none."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is: in a tar `size` bytes from `offset` on.

    In a zip, which has a `crc`, a local header is at `offset` and `packed` bytes follow it.
    """

    offset: int
    size: int
    packed: int
    deflated: bool = False
    crc: int | None = None


Member = tuple[str, Place | Rejection]


def list_members(file: BinaryIO) -> list[Member]:
    """List what an archive holds, folders left out, in the archive's order.

    The place of a member that cannot be read faithfully is a rejection instead: "unsupported",
    "not-a-file" for links and devices, "too-large". Raises Rejected "bad-archive" for a file
    that is not a whole zip or tar.
    """
    try:
        zipped = file.read(4) in _ZIP
        return list(_zip_members(file) if zipped else _tar_members(file))
    except Rejected:
        raise
    except Exception as error:  # its text may hold a member's name
        raise Rejected("bad-archive", f"not a whole zip or tar: {type(error).__name__}") from error


def read_member(file: BinaryIO, place: Place, most: int = MAX_BYTES) -> bytes:
    """Return a member's bytes, whole and checked; or, if it has more than `most`, its first ones.

    Raises Rejected "damaged" when they are not what the archive's directory says.
    """
    wanted = min(place.size, most)
    if place.crc is None:
        file.seek(place.offset)
        data = file.read(wanted)
    else:
        data = _unpack(file, place, wanted)
    if len(data) != wanted:
        raise Rejected("damaged", f"the archive says {wanted} bytes, found {len(data)}")
    if wanted == place.size and place.crc not in (None, zlib.crc32(data)):
        raise Rejected("damaged", "a wrong CRC-32 in the archive")
    return data


def _unpack(file: BinaryIO, place: Place, wanted: int) -> bytes:
    """Read and inflate a zip member, or its first bytes.

    No more is inflated than one byte over the size of a whole member, which tells that it has
    not the size it should.
    """
    file.seek(place.offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) != _LOCAL_HEADER or header[:4] != _ZIP[0]:
        raise Rejected("damaged", "no local header where the archive's directory says")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    file.seek(names, 1)
    whole = wanted == place.size
    if not place.deflated:
        return file.read(place.packed if whole else wanted)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    # Deflate never grows data by more than 5 bytes in 16,000: a head needs no more input.
    packed = file.read(place.packed if whole else min(place.packed, 2 * wanted + 1000))
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
            yield info.filename, _zip_place(info)


def _zip_place(info: zipfile.ZipInfo) -> Place | Rejection:
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
    place = Place(info.header_offset, info.file_size, info.compress_size, deflated, info.CRC)
    return _within_limit(place)


def _within_limit(place: Place) -> Place | Rejection:
    largest = max(place.size, place.packed)
    if largest > MAX_BYTES:
        return Rejection("too-large", f"{largest} bytes, over the limit of {MAX_BYTES}")
    return place


def _tar_members(file: BinaryIO) -> Iterator[Member]:
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
        end = 0
        while (info := archive.next()) is not None:
            # Which would otherwise hold a kilobyte a member.
            archive.members.clear()  # type: ignore[attr-defined]
            # A negative size would lead back to headers already seen, for ever.
            if archive.offset <= end or info.size < 0:
                raise Rejected("bad-archive", "a member of the tar has a size below zero")
            end = archive.offset
            if not info.isdir():
                yield info.name, _tar_place(info)
        _check_end(file, archive.offset)


def _tar_place(info: tarfile.TarInfo) -> Place | Rejection:
    if not info.isreg():
        return Rejection("not-a-file", "a link or device in an archive")
    if info.issparse():
        return Rejection("unsupported", "a sparse member of a tar; unpack the archive")
    return _within_limit(Place(info.offset_data, info.size, info.size))


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
