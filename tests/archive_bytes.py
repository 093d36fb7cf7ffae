"""Zip and tar archives, and deflate streams, that may lie about what is in them."""

import io
import stat
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


@cache
def zeros(mebibytes: int) -> bytes:
    """Return a raw deflate stream of so many MiB of zeros, some 1 KiB for each."""
    packer = zlib.compressobj(9, wbits=-15)
    # Flushed fully it refers to nothing before, so it can be repeated.
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * mebibytes + packer.flush()


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a zip, and what its headers say of it; None: the truth."""

    name: str
    data: bytes
    method: int = 0
    size: int | None = None
    crc: int | None = None
    flags: int = 0x800  # the name is UTF-8
    mode: int = stat.S_IFREG

    def header(self) -> bytes:
        """Return what both headers of a member have in common."""
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.size is None else self.size
        when = 0, 0x21  # the first of January 1980
        sizes = crc, len(self.data), size, len(self.encoded()), 0
        return struct.pack("<HHHHHIIIHH", 20, self.flags, self.method, *when, *sizes)

    def encoded(self) -> bytes:
        """Return the name's bytes."""
        return self.name.encode("utf-8" if self.flags & 0x800 else "cp437")


def deflated(name: str, data: bytes, **headers: int) -> Member:
    """Return a member that is compressed."""
    packer = zlib.compressobj(wbits=-15)
    stream = packer.compress(data) + packer.flush()
    return Member(name, stream, 8, **({"size": len(data), "crc": zlib.crc32(data)} | headers))


def zipped(*members: Member) -> bytes:
    """Return a zip (APPNOTE 4.3) of members that may lie, or have one name."""
    body, directory = b"", b""
    for member in members:
        attributes = struct.pack("<HHHII", 0, 0, 0, member.mode << 16, len(body))
        directory += b"PK\1\2\x14\3" + member.header() + attributes + member.encoded()
        body += b"PK\3\4" + member.header() + member.encoded() + member.data
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end


def tarred(content: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """Return a tar of files and symbolic links."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return stream.getvalue()
