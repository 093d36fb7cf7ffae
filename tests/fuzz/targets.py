"""What is fuzzed: readers, what each is given at first, and what must hold whatever bytes it gets.

    target(name) -> Target; Target.check(bytes) raises AssertionError, or what must not be raised

Of images and archives: the only error is `Rejected`; pixels are float32 planes, and standardised
ones finite; the same bytes give the same answer; nothing is printed to stdout, and no file is
opened. Of our own files: the only errors are ours, and bytes that are not those that were written
are an error, or mean the same.
"""

import gzip
import hashlib
import io
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import own_files
from archive_bytes import deflated, tarred, zipped
from dicom_bytes import RLE, dicom, encapsulated, rle
from image_bytes import nifti, npy, npz, png, saved, saved_all, tiff
from PIL import Image

from deepssim_scan.audit.config.audit import read_config
from deepssim_scan.audit.config.conditions import Condition
from deepssim_scan.audit.config.waivers import read_waivers
from deepssim_scan.encoder.architecture import SMALL
from deepssim_scan.errors import ScanError
from deepssim_scan.ingest.archives import MemberLocation, list_members, read_member
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode import decode
from deepssim_scan.ingest.listing.manifest_csv import read_manifest
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.standardise import standardise

Check = Callable[[bytes], None]

_OPTIONS = ReadOptions(max_pixels=1 << 18, subject_key=b"k" * 32)
_MOST_SEED = 1 << 15  # bytes of a file that another package carries
_MEMBER = 1 << 16  # bytes of a member that are read
_SIDE = 12
_KINDS = {"found": int, "rate": float, "set": str, "complete": bool}  # that a condition may name


@dataclass(frozen=True, slots=True)
class Target:
    """A reader under test."""

    seeds: Callable[[], list[bytes]]
    check: Check


def _pictures() -> Iterator[Any]:
    rng = np.random.default_rng(0)
    yield rng.integers(0, 256, (_SIDE, _SIDE), np.uint8)
    yield rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)


def _saved(form: str, **options: Any) -> list[bytes]:
    return [saved(Image.fromarray(image), form, **options) for image in _pictures()]


def _png_seeds() -> list[bytes]:
    grey = next(_pictures())
    return [*_saved("PNG"), png(grey, 8, 0), png(grey.astype(np.uint16) * 256, 16, 0)]


def _array_seeds() -> list[bytes]:
    grey = next(_pictures())
    return [npy(grey), npy(grey.astype(">f4")), npz(grey, grey), npz(grey, compressed=False)]


def _nifti_seeds() -> list[bytes]:
    volume = np.random.default_rng(0).integers(0, 99, (_SIDE, _SIDE, 3)).astype(np.int16)
    return [nifti(volume), nifti(volume, slope=2.0, intercept=-1.0)]


def _dicom_seeds() -> list[bytes]:
    grey = next(_pictures())
    made = [dicom(grey), dicom(grey.astype(np.uint16)), encapsulated(grey, RLE, rle(grey))]
    return made + _carried("pydicom", "data/test_files", ".dcm")


def _carried(package: str, folder: str, suffix: str) -> list[bytes]:
    """Return the small files that an installed package carries, none where it is not there."""
    root = Path(__import__(package).__file__ or "").parent / folder
    files = sorted(path for path in root.rglob(f"*{suffix}") if path.is_file())
    return [path.read_bytes() for path in files if path.stat().st_size <= _MOST_SEED]


def _archive_seeds() -> list[bytes]:
    images = {f"{number}.png": data for number, data in enumerate(_saved("PNG"))}
    return [zipped(*(deflated(*each) for each in images.items())), tarred(images)]


def decodes(data: bytes) -> None:
    """Check what decoding makes of bytes."""
    first = _decoded(data)
    if data[-1:] < b"\x20":  # one in eight: to look twice costs as much again
        assert first == _decoded(data), "another answer the second time"


def _decoded(data: bytes) -> list[str]:
    """Decode bytes; return what came out of it, with digests of pixels."""
    told = []
    try:
        with watched():
            for frame in decode(data, _OPTIONS):
                pixels = frame.pixels
                assert pixels.dtype == np.float32, f"{pixels.dtype} pixels"
                assert pixels.ndim == 2, f"pixels {pixels.shape}"
                told.append(f"{frame.name} {frame.mode} {pixels.shape} {_digest(pixels)}")
                told.append(_standardised(pixels))
    except Rejected as error:
        told.append(str(error))
    return told


def _standardised(pixels: Any) -> str:
    try:
        made = standardise(pixels, SMALL.standardisation)
    except Rejected as error:
        return str(error)
    assert np.isfinite(made).all(), "standardised pixels that are not finite"
    return _digest(made)


def _digest(pixels: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def decodes_png(data: bytes) -> None:
    """Put the right checksums into a PNG first, or hardly any change would get further."""
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + length]
        fixed += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    decodes(fixed)


def decodes_gzipped(data: bytes) -> None:
    """Pack what is to be read by nibabel after gzip."""
    decodes(gzip.compress(data, 1, mtime=0))


def lists(data: bytes) -> None:
    """Check what listing an archive makes of bytes, and what its members are."""
    with io.BytesIO(data) as file, watched():
        try:
            for _, location in list_members(file):
                if isinstance(location, MemberLocation):
                    _member(file, location)
        except Rejected:
            return


def _member(file: io.BytesIO, location: MemberLocation) -> None:
    try:
        assert len(read_member(file, location, _MEMBER)) <= _MEMBER
    except Rejected:
        return


_opened: list[str] | None = None


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_notice)


@contextmanager
def watched() -> Iterator[None]:
    """Assert that no file is opened but of modules, and that nothing is written to stdout."""
    global _opened
    kept, opened = sys.stdout, list[str]()
    _opened, sys.stdout = opened, io.StringIO()
    try:
        yield
    finally:
        printed = sys.stdout.getvalue()
        _opened, sys.stdout = None, kept
        assert not printed, f"printed: {printed[:80]!r}"
        foreign = [name for name in opened if not name.endswith((".py", ".pyc"))]
        assert not foreign, f"files were opened: {foreign}"


def _text_file(read: Callable[[Path], object]) -> Check:
    """Check a reader of a file that people write: its only errors are ours."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-")) / "file"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except ScanError as error:
            assert str(error), "an error without a word"

    return check


def _conditions(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    Condition.parse(text, _KINDS).decide(dict.fromkeys(_KINDS))


_CONDITIONS = [b"found > 3 and not complete", b"(rate <= 0.5 or set == 'x') and found != 0"]


def _own(name: str) -> Target:
    """Return the target of one of our own files: what it says must be known to be changed."""
    file = own_files.OWN[name]

    def check(data: bytes) -> None:
        folder, wanted = own_files.made(name)
        path = folder / file.path
        kept = path.read_bytes()
        path.write_bytes(data)
        try:
            found = file.read(folder)
        except ScanError:
            return
        finally:
            path.write_bytes(kept)
        assert found == wanted, "changed, and read as if it were whole"

    return Target(lambda: [own_files.bytes_of(name)], check)


def _text(read: Callable[[Path], object], *seeds: bytes) -> Target:
    return Target(lambda: list(seeds), _text_file(read))


TARGETS: dict[str, Target] = {
    "png": Target(_png_seeds, decodes_png),
    "jpeg": Target(lambda: _saved("JPEG", quality=50), decodes),
    "tiff": Target(lambda: [*_saved("TIFF"), tiff(next(_pictures()))], decodes),
    "gif": Target(lambda: [saved_all([next(_pictures())] * 2, "GIF")], decodes),
    "arrays": Target(_array_seeds, decodes),
    "nifti": Target(_nifti_seeds, decodes),
    "nifti-gz": Target(_nifti_seeds, decodes_gzipped),
    "dicom": Target(_dicom_seeds, decodes),
    "archives": Target(_archive_seeds, lists),
    "manifest": _text(lambda path: list(read_manifest(path)), b"path,subject\na.png,1\nb.png,\n"),
    "configuration": _text(read_config, own_files.CONFIGURATION),
    "waivers": _text(read_waivers, own_files.WAIVERS),
    "condition": _text(_conditions, *_CONDITIONS),
    **{name: _own(name) for name in own_files.OWN},
}


def seeds_of(name: str, folder: Path) -> list[bytes]:
    """Return what a target begins with: made anew, and what once was a finding."""
    found = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
    return TARGETS[name].seeds() + [path.read_bytes() for path in found]
