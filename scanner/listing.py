"""A folder to the list of its images, and to a count of what is none.

What is listed, by default, of the files of the folder and of the members of its archives:

- Names with a suffix of SUFFIXES, in any case. Zip and tar archives are listed as their members;
  an archive in an archive is rejected.
- Names of image formats and archives that are not read (FOREIGN, PACKED), which end as
  rejections: they are not passed over in silence.
- Files of other names, often DICOM, whose first bytes are those of an image format, gzipped or
  not. A file that cannot be looked into is rejected, since it may be an image. Zip is told by
  its suffix alone: most office documents are zips.

With `include`, every file that a pattern matches, whatever its suffix, and no other; nothing is
looked into. `*`, `?` and `[...]` match within one part of the path, `**` any number of parts:
`*.png` is the top level only, `**/*.png` every level, `*/training.png` one down. Members of an
archive are chosen as above.

With `manifest`, every file that a CSV file names, and no other. Its header is `path` or
`path,subject`, its encoding UTF-8; paths are relative to the folder. Members of an archive
have the archive's subject.

The folder is walked so:

- Names that start with a dot, and DICOMDIR, are ignored, `include` or not; a hidden folder
  counts once. So are members of archives under such a name, or under __MACOSX.
- A link to a file inside the folder is a file. A link that leaves the folder is rejected.
- A link to a folder is never walked, so no loop can occur: inside the folder its files are
  listed under their own name, and the link is ignored; outside, it is rejected.
- Folders that cannot be listed, and image names on FIFOs, devices and sockets, are rejected.
"""

import csv
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from deepssim_scan.archives import Place, list_members, read_member
from deepssim_scan.decode import Rejected, Rejection, arrays, pillow
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.inputs import inside, open_regular, regular_status

ARCHIVES = (".zip", ".tar")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".npy", ".npz", ".nii", ".nii.gz"),
    *(".dcm", ".dicom", ".ima", *ARCHIVES),
)
FOREIGN = (
    *(".bmp", ".webp", ".jp2", ".j2k", ".j2c", ".jpx", ".jls", ".jxl"),
    *(".tga", ".pbm", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pnm"),
    *(".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc", ".img", ".svs", ".ndpi", ".czi"),
)
PACKED = (".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tar.zst", ".7z", ".rar")

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".z")
_HEAD = 348
"""Bytes that tell every format: a NIfTI-1 has its magic at 344."""
_FOREIGN_MAGIC = (
    *(b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\2\0\0\0UL"),  # DICOM without preamble
    *(b"\xff\x4f\xff\x51", b"\xff\x0a", b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n"),
)


class _Kind(Enum):
    """What a name, or the first bytes under it, say of a file."""

    IMAGE = "an image, or to be rejected as one"
    ARCHIVE = "a zip or tar"
    PACKED = "a compressed archive, which is not read"
    UNKNOWN = "its first bytes must tell"
    IGNORED = "neither image nor archive, or not asked for"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder are meant: all images, those of patterns, or those of a manifest."""

    include: tuple[str, ...] = ()
    manifest: Path | None = None

    def __post_init__(self) -> None:
        if self.include and self.manifest:
            raise InputError("include patterns and a manifest were given; give one of the two")


@dataclass(frozen=True, slots=True)
class Item:
    """One file or member to decode, or one that its name and kind already rule out.

    `path` is relative to the folder, with `/`; bytes that are not UTF-8 are kept by Python's
    surrogateescape, so `os.fsencode(path)` gives the name on disk. `member` is a name inside of
    the archive `path`, at `place`, or "". `size` in bytes and `mtime_ns` are those of the file
    `path` when it was listed. `subject` comes from a manifest.
    """

    path: str
    member: str = ""
    size: int = 0
    mtime_ns: int = 0
    place: Place | None = None
    subject: str = ""
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder, sorted by the bytes of path and member, and how many others.

    No two items have the same path and member.
    """

    folder: Path
    files: tuple[Item, ...]
    ignored: int


_ALL = Selection()
_PACKED = Rejection(
    "unknown-format", "a compressed archive; unpack it, or pack it as a plain .tar or .zip"
)
_Found = tuple[Item, _Kind]


def list_images(folder: Path, selection: Selection = _ALL) -> Listing:
    """List a folder's images; the module's text says which those are.

    Raises InputMissing when the folder or the manifest is absent, and InputError when the folder
    is not one, a pattern is not relative, the manifest is not as described above, or no image is
    listed: an empty input has no result.
    """
    _check_folder(folder)
    manifest = selection.manifest
    found = _named(folder, manifest) if manifest else _walked(folder, selection.include)
    items: list[Item] = []
    ignored = 0
    for item, kind in found:
        if kind is _Kind.ARCHIVE:
            members, others = _members(folder, item, named=manifest is not None)
            items += members
            ignored += others
        elif kind is _Kind.IGNORED:
            ignored += 1
        else:
            items.append(item)
    if not items:
        raise InputError(
            f"{folder}: no image to read ({ignored} other files). Images are named "
            f"{', '.join('*' + suffix for suffix in SUFFIXES)}; --include PATTERN, relative to "
            "the folder, takes others, as in --include '**/*.raw'."
        )
    return Listing(folder, tuple(sorted(items, key=_by_bytes)), ignored)


def _by_bytes(item: Item) -> tuple[bytes, bytes]:
    return os.fsencode(item.path), os.fsencode(item.member)


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputMissing(f"{folder}: there is no such folder. Check the path.")
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder. Give the folder that holds the images.")


def _walked(folder: Path, include: Sequence[str]) -> Iterator[_Found]:
    """Give every file of a folder, and what it is; folders that cannot be listed as well."""
    root = os.path.realpath(folder)
    patterns = [_parts(pattern) for pattern in include]
    failed: list[Item] = []
    for entry, path in _walk(folder, failed):
        kind = _Kind.IGNORED if _hidden(entry.name) else _chosen(path, patterns)
        if entry.is_symlink():
            yield _linked(root, entry, path, kind)
        else:
            yield _file(Item(path), entry.path, kind)
    yield from ((item, _Kind.IMAGE) for item in failed)


def _walk(folder: Path, failed: list[Item]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Give every entry that is not a plain folder, with its relative path, in no fixed order.

    Folders that cannot be listed are added to `failed`. Not recursive, so any depth will do.
    """
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(folder / parent) as entries:
                children = list(entries)
        except OSError as error:
            if not parent:
                raise InputError(f"{folder}: cannot be listed: {error.strerror}.") from error
            rejection = Rejection("unreadable", f"folder: {error.strerror}")
            failed.append(Item(parent, rejection=rejection))
            continue
        for entry in children:
            path = f"{parent}/{entry.name}" if parent else entry.name
            if entry.is_dir(follow_symlinks=False) and not _hidden(entry.name):
                pending.append(path)
            else:
                yield entry, path


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _chosen(path: str, patterns: list[list[str]]) -> _Kind:
    """Tell what a path is by its name, or by the patterns where there are any."""
    if not patterns:
        return _by_name(path)
    kind = _by_name(path)
    if kind is _Kind.IGNORED or not any(_matches(path.split("/"), parts) for parts in patterns):
        return _Kind.IGNORED
    return _Kind.IMAGE if kind is _Kind.UNKNOWN else kind


def _by_name(path: str) -> _Kind:
    name = path.lower()
    if path.rpartition("/")[2] == "DICOMDIR":  # a list of other files, that may lead anywhere
        return _Kind.IGNORED
    if name.endswith(ARCHIVES):
        return _Kind.ARCHIVE
    if name.endswith(SUFFIXES + FOREIGN):
        return _Kind.IMAGE
    packed = name.endswith(_COMPRESSED) and name.rpartition(".")[0].endswith(SUFFIXES + FOREIGN)
    return _Kind.PACKED if packed or name.endswith(PACKED) else _Kind.UNKNOWN


def _by_content(head: bytes) -> _Kind:
    if head[257:262] == b"ustar":
        return _Kind.ARCHIVE
    if head.startswith(b"\x1f\x8b"):
        kind = _by_content(_inflated(head))
        return _Kind.PACKED if kind is _Kind.ARCHIVE else kind
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    boxed = b"WEBP" in head[8:12] or b"jP  " in head[4:8]
    if bitmap or boxed or head.startswith(_FOREIGN_MAGIC):
        return _Kind.IMAGE
    nifti = head[344:347] == b"n+1" or head[4:7] == b"n+2"
    known = pillow.form(head) or head.startswith(arrays.MAGIC) or head[128:132] == b"DICM"
    return _Kind.IMAGE if nifti or known else _Kind.IGNORED


def _inflated(head: bytes) -> bytes:
    """Return the first bytes of what was gzipped."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD)
    except zlib.error:
        return b""


def _parts(pattern: str) -> list[str]:
    """Split a pattern, refusing one that could never match a relative path."""
    parts = pattern.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise InputError(
            f"include pattern {pattern!r} must be relative to the folder, with no '.', '..' or "
            "empty part, as in '*/training.png'"
        )
    return parts


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _linked(root: str, entry: os.DirEntry[str], path: str, kind: _Kind) -> _Found:
    """Judge a link: one that leaves the folder is rejected, one to a folder in it ignored."""
    to_folder = _is_folder(entry)
    if _hidden(entry.name) or (kind is _Kind.IGNORED and not to_folder):
        return Item(path), _Kind.IGNORED
    if not inside(root, entry.path):
        return _refused(Item(path), Rejection("outside-folder", "a link to outside of the folder"))
    return (Item(path), _Kind.IGNORED) if to_folder else _file(Item(path), entry.path, kind)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops
        return False


def _refused(item: Item, rejection: Rejection) -> _Found:
    return replace(item, rejection=rejection), _Kind.IMAGE


def _file(item: Item, path: str | Path, kind: _Kind) -> _Found:
    """Add the size and time of what is at `path`, and look into it where its name says nothing."""
    if kind is _Kind.IGNORED:
        return item, kind
    try:
        status = regular_status(path)
        item = replace(item, size=status.st_size, mtime_ns=status.st_mtime_ns)
        if kind is _Kind.UNKNOWN:
            with open_regular(path) as file:
                kind = _by_content(file.read(_HEAD))
    except Rejected as error:
        if kind is _Kind.UNKNOWN and error.rejection.reason == "not-a-file":
            return item, _Kind.IGNORED
        return _refused(item, error.rejection)
    return _refused(item, _PACKED) if kind is _Kind.PACKED else (item, kind)


def _members(folder: Path, archive: Item, *, named: bool) -> tuple[list[Item], int]:
    """List the images in an archive, and count what else it holds.

    An archive without any counts as one file that is none, unless a manifest named it: then it
    is rejected, because every row of a manifest has an end.
    """
    try:
        with open_regular(folder / archive.path) as file:
            found = list_members(file)
            often = Counter(name for name, _ in found)
            items = [_member(file, archive, name, place) for name, place in found]
    except Rejected as error:
        return [replace(archive, rejection=error.rejection)], 0
    images = {item.member: item for item in items if item is not None}
    twice = Rejection("bad-archive", "several members of this name")
    listed = [
        replace(item, place=None, rejection=twice) if often[name] > 1 else item
        for name, item in images.items()
    ]
    if not listed and named:
        listed.append(replace(archive, rejection=Rejection("bad-archive", "no image in it")))
    return listed, max(items.count(None), not listed)


def _member(file: BinaryIO, archive: Item, name: str, place: Place | Rejection) -> Item | None:
    """Judge a member by its name and, where that says nothing, its first bytes; None: no image."""
    parts = re.split(r"[/\\]", name)
    if any(_hidden(part) and part not in (".", "..") for part in parts) or "__MACOSX" in parts:
        return None
    kind = _by_name(name)
    try:
        if kind is _Kind.UNKNOWN:
            kind = _look(file, place)
        if kind is _Kind.IGNORED:
            return None
        return replace(archive, member=name, place=_checked(parts, kind, place))
    except Rejected as error:
        return replace(archive, member=name, rejection=error.rejection)


def _look(file: BinaryIO, place: Place | Rejection) -> _Kind:
    if isinstance(place, Place):
        return _by_content(read_member(file, place, _HEAD))
    # A link leads to another member, which is listed; what cannot be read may be an image.
    return _Kind.IGNORED if place.reason == "not-a-file" else _Kind.IMAGE


def _checked(parts: list[str], kind: _Kind, place: Place | Rejection) -> Place:
    """Return the place of a member that can be read; raises Rejected for any other."""
    if ".." in parts or not parts[0] or re.fullmatch("[A-Za-z]:", parts[0]):
        raise Rejected("outside-folder", "an absolute name, or one with '..', in an archive")
    if kind is _Kind.ARCHIVE:
        raise Rejected("unsupported", "an archive in an archive; unpack the outer one")
    if kind is _Kind.PACKED:
        raise Rejected(_PACKED.reason, _PACKED.detail)
    if isinstance(place, Rejection):
        raise Rejected(place.reason, place.detail)
    return place


def _named(folder: Path, manifest: Path) -> Iterator[_Found]:
    """Give every file that a manifest names, and what it is by its name alone."""
    root = os.path.realpath(folder)
    for path, subject in _rows(manifest):
        item = Item(path, subject=subject)
        if path.startswith("/") or ".." in path.split("/") or not inside(root, folder / path):
            yield _refused(item, Rejection("outside-folder", "a path or link out of the folder"))
        else:
            kind = _by_name(path)
            asked = kind in (_Kind.UNKNOWN, _Kind.IGNORED)
            yield _file(item, folder / path, _Kind.IMAGE if asked else kind)


def _rows(manifest: Path) -> Iterator[tuple[str, str]]:
    """Give the path and subject of each row; raises InputError, naming the line, for a bad one."""
    reader = csv.reader(io.StringIO(_text(manifest), newline=""), strict=True)
    seen: set[str] = set()
    try:
        header = next(reader, [])
        if header not in (["path"], ["path", "subject"]):
            raise ValueError("the header must be 'path' or 'path,subject'")
        for row in filter(None, reader):
            if len(row) != len(header):
                raise ValueError(f"{len(row)} columns, and the header has {len(header)}")
            path = _canonical(row[0])
            if path in seen:
                raise ValueError("a path that is listed above")
            seen.add(path)
            yield path, "".join(row[1:])
    except (ValueError, csv.Error) as error:
        raise InputError(f"{manifest}, line {reader.line_num}: {error}.") from error
    if not seen:
        raise InputError(f"{manifest}: names no file.")


def _text(manifest: Path) -> str:
    try:
        with open_regular(manifest) as file:
            return file.read().decode("utf-8-sig", "surrogateescape")
    except Rejected as error:
        kind = InputMissing if error.rejection.reason == "vanished" else InputError
        raise kind(
            f"{manifest}: cannot be read as a manifest: {error.rejection.detail}."
        ) from error


def _canonical(path: str) -> str:
    """Spell a path in the one way that a walk would; ValueError when it can name no file."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or "\0" in path:
        raise ValueError("an empty path, or one that no file can have")
    return "/" * path.startswith("/") + "/".join(parts)
