"""What a file holds beside its frames, which were judged.

    the bytes of a file that was decoded, how many frames it gave -> what else it holds, or ""

Readers pass over it: icons of scanners, thumbnails of cameras, what was appended. Nobody has
compared it with the training images, so a file that holds it is not one to be released.
"""

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from deepssim_scan.ingest.decode import arrays, dicom, nifti, pillow
from deepssim_scan.ingest.decode.dicom_tags import without_samples

_AFTER = "bytes after its end"
_WITHIN = "an image in its metadata"
_PICTURE = re.compile(rb"\xff\xd8\xff[\xc0-\xc4\xdb\xe0-\xef\xfe]|\x89PNG\r\n\x1a\n|GIF8[79]a")
_PICTURE_AS_TEXT = re.compile(rb"/9j/[\w+/]{16}|iVBORw0KGgo|R0lGOD[dl]h")
"""The beginnings of the same in base64, as XMP has its thumbnails."""
_SAMPLES = re.compile(rb"\xe0\x7f[\x08\x09\x10]\0|\x7f\xe0\0[\x08\x09\x10]")
"""The tags of pixel data, little- and big-endian."""

_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_ZEROS = re.compile(rb"\0*")
_MOST_TEXT = 1 << 26  # bytes of a text that are looked through
_EOI, _SOS = 0xD9, 0xDA
_SUB_IFDS, _JPEG_TABLES = 330, 347
_STRIPS = ((273, 279), (324, 325))
"""The tags of where strips and tiles of a TIFF are, and how long they are."""


def found_beside(data: bytes, frames: int) -> str:
    """Say what a file holds beside its frames; "" where nothing is found.

    Raises whatever a file can make it raise.
    """
    if dicom.is_dicom(data):
        return _in_dicom(data)
    look = {"PNG": _in_png, "JPEG": _in_jpeg, "TIFF": _in_tiff, "GIF": _in_gif}
    form = pillow.form(data)
    if form:
        return look[form](data, frames)
    return "" if data.startswith((arrays.MAGIC, arrays.MAGIC_NPZ)) else _in_nifti(data)


def _in_dicom(data: bytes) -> str:
    if pillow.form(data):
        return "another format in its preamble"
    rest, overlays = without_samples(data)
    if overlays:
        return "overlays"
    further = len(_SAMPLES.findall(rest)) > 1 or _PICTURE.search(rest)
    return "an icon or another image" if further else ""


def _in_png(data: bytes, frames: int) -> str:
    chunks = [*pillow.png_chunks(data)]
    if _goes_on(data, len(pillow.PNG) + sum(12 + len(body) for _, body in chunks)):
        return _AFTER
    others = (_inflated(kind, body) for kind, body in chunks if kind not in (b"IDAT", b"fdAT"))
    return _WITHIN if any(map(_shows, others)) or _has_thumbnail(data) else ""


def _inflated(kind: bytes, body: memoryview) -> bytes:
    """Return a chunk of a PNG, and after it what is compressed in it.

    Source: PNG specification, sections 11.3.2 and 11.3.3. Raises ValueError where that is too long.
    """
    _, _, rest = (whole := bytes(body)).partition(b"\0")
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[2]
    elif kind in (b"zTXt", b"iCCP"):
        packed = rest[1:]
    else:
        return whole
    text = (inflating := zlib.decompressobj()).decompress(packed, _MOST_TEXT)
    if inflating.unconsumed_tail:
        raise ValueError("a text that is too long")
    return whole + text


def _in_gif(data: bytes, frames: int) -> str:
    return _AFTER if _goes_on(data, pillow.gif_blocks(data)[1]) else ""


def _in_jpeg(data: bytes, frames: int) -> str:
    """Look through a JPEG, or several: in what is compressed no marker of a beginning can be."""
    at = 0
    for _ in range(frames):
        at = _jpeg_end(data, _after_zeros(data, at))
    if _goes_on(data, at):
        return _AFTER
    further = len(_PICTURE.findall(data)) > frames or _PICTURE_AS_TEXT.search(data)
    return _WITHIN if further or _has_thumbnail(data) else ""


def _has_thumbnail(data: bytes) -> bool:
    """Tell whether a PNG or a JPEG has a second directory of EXIF: that of a thumbnail."""
    with Image.open(io.BytesIO(data)) as image:
        return bool(image.getexif().get_ifd(ExifTags.IFD.IFD1))


def _jpeg_end(data: bytes, at: int) -> int:
    """Return where the JPEG that begins at `at` ends. Source: ITU-T T.81, annex B."""
    at, kind = at + 2, 0
    while kind != _EOI:
        marker = _MARKER.search(data, at) if kind == _SOS else _MARKER.match(data, at)
        if marker is None:
            raise ValueError("a JPEG without its end")
        kind, at = data[marker.end() - 1], marker.end()
        at += 0 if kind == _EOI else int.from_bytes(data[at : at + 2], "big")
    return at


def _in_nifti(data: bytes) -> str:
    between = nifti.before_samples(data)
    return _WITHIN if _shows(between) or _SAMPLES.search(between) else ""


def _in_tiff(data: bytes, frames: int) -> str:
    rest = bytearray(data)
    with TiffImageFile(io.BytesIO(data)) as image:
        for number in range(frames):
            image.seek(number)
            tags = image.tag_v2
            if _SUB_IFDS in tags:
                return "directories below its pages"
            if any(_is_picture(tags[tag]) for tag in tags if tag != _JPEG_TABLES):
                return _WITHIN
            for at, length in _strips(tags):
                rest[at : at + length] = bytes(len(rest[at : at + length]))
            rest = rest.replace(tags.get(_JPEG_TABLES) or b"\0", b"\0")
    return "an image outside of its pages" if _shows(rest) else ""


def _strips(tags: Any) -> Iterator[tuple[int, int]]:
    """Give where the strips or tiles of a page are, and how long they are."""
    for starts, lengths in _STRIPS:
        yield from zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)


def _is_picture(value: Any) -> bool:
    """Tell whether the value of a TIFF tag, or one of several, holds an image."""
    values = value if isinstance(value, tuple) else (value,)
    return any(isinstance(each, bytes) and _shows(each) for each in values)


def _shows(content: bytes | bytearray) -> bool:
    """Tell whether an image of a known format begins in it, as bytes or as text."""
    return bool(_PICTURE.search(content) or _PICTURE_AS_TEXT.search(content))


def _goes_on(data: bytes, end: int) -> bool:
    """Tell whether anything but zeros follows."""
    return _after_zeros(data, end) < len(data)


def _after_zeros(data: bytes, at: int) -> int:
    found = _ZEROS.match(data, at)
    return at if found is None else found.end()
