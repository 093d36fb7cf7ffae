"""The samples of a DICOM file as they are stored, a frame at a time.

Everything that can be checked is, before a decoder sees it: decoders allocate what the data says.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from deepssim_scan.ingest.decode.dicom_tags import PIXELS, Layout
from deepssim_scan.ingest.rejection import Rejected

if TYPE_CHECKING:
    from pydicom import Dataset

_PLUGINS = ("pylibjpeg", "pillow")
"""Of pydicom, best first. It would try GDCM first, which ends the process for some files."""

_RLE = "1.2.840.10008.1.2.5"
_SEQUENTIAL = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # JPEG, of 8 and 12 bits
_SCAN, _NO_SCAN, _WHOLE_SCAN = 0xDA, b"\0\0\0", b"\0\x3f\0"  # coefficients 0 to 0, or to 63
_FRAME_HEADERS = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG-LS, and every JPEG
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
_END = b"\xff\xd9"
_BOXES, _CODESTREAM = b"\0\0\0\x0cjP  ", b"jp2c"  # of JPEG 2000


def stored_frames(tags: "Dataset", layout: Layout) -> Iterator[tuple[npt.NDArray[Any], str]]:
    """Decode every frame to samples as stored, with the photometric interpretation they now have.

    (H, W), or (H, W, 3) for colour
    """
    from pydicom.pixels.decoders.base import get_decoder

    syntax = tags.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
        available = decoder.is_available
    except NotImplementedError:
        available = False
    if not available:
        name = syntax.name if syntax.name != syntax else "an unknown transfer syntax"
        raise Rejected(
            "no-decoder", f"{name}; the extra 'dicom' brings those of JPEG, JPEG-LS and JPEG 2000"
        )
    if decoder.is_encapsulated:
        _check_encapsulated(tags, layout)
    else:
        _check_native(tags, layout)
    if syntax in _SEQUENTIAL:
        _state_whole_scans(tags, layout)
    # One, and not the next where it fails: that may give an image of what the first finds damaged.
    plugin = next((name for name in _PLUGINS if name in decoder.available_plugins), "")
    for stored, properties in decoder.iter_array(
        tags, allow_excess_frames=False, decoding_plugin=plugin
    ):
        yield stored, str(properties["photometric_interpretation"])


def _check_native(tags: "Dataset", layout: Layout) -> None:
    """Compare the bytes that there are with what the frames take; up to a frame may be padding."""
    (element,) = (tags[name] for name in PIXELS if name in tags)
    if element.is_undefined_length:
        raise Rejected("damaged", "compressed samples in a transfer syntax without compression")
    found, wanted = len(element.value), layout.nbytes(layout.count)
    if found < wanted:
        raise Rejected("damaged", "fewer samples than its frames take")
    if found != wanted + wanted % 2 and found >= layout.nbytes(layout.count + 1):
        raise Rejected("damaged", "more samples than its frames take")


def _check_encapsulated(tags: "Dataset", layout: Layout) -> None:
    """Look at every compressed frame before any is decoded: all whole, and of the size declared.

    Decoders allocate what the compressed data says, give parts of what was cut short, and leave
    alone what follows the first image of a frame.
    """
    found = 0
    for fragments in _fragments(tags, layout):
        found += 1
        if tags.file_meta.TransferSyntaxUID == _RLE:  # two bytes of it give at least one
            whole = len(fragments) == 1 and len(fragments[0]) <= 100 + 2 * layout.nbytes(1)
        else:
            frame = b"".join(fragments)
            if _coded_size(frame) != (layout.rows, layout.columns):
                raise Rejected("damaged", "a compressed frame of another size than declared")
            whole = _boxes_end(frame) and _END in frame[-10:]
            whole = whole and not any(part.startswith(_STARTS) for part in fragments[1:])
        if not whole:
            raise Rejected("damaged", "a frame that is cut short, or holds more than an image")
    if found != layout.count:
        raise Rejected("damaged", "more or fewer frames than it declares")


def _fragments(tags: "Dataset", layout: Layout) -> Iterator[tuple[bytes, ...]]:
    """Give the fragments of each frame."""
    from pydicom.encaps import generate_fragmented_frames

    table = (tags.get("ExtendedOffsetTable"), tags.get("ExtendedOffsetTableLengths"))
    return generate_fragmented_frames(
        tags.PixelData,
        number_of_frames=layout.count,
        extended_offsets=table if all(table) else None,
    )


def _state_whole_scans(tags: "Dataset", layout: Layout) -> None:
    """Write into each sequential JPEG that its first scan holds every coefficient.

    ITU-T T.81, B.2.3, allows nothing else there. Some encoders left zeros, which viewers pass
    over and libjpeg does not.
    """
    stated = {}  # by the headers: most frames have the same
    for fragments in _fragments(tags, layout):
        frame = b"".join(fragments)
        for marker, at in _segments(frame):
            end = at + 8 + 2 * frame[at + 4]
            if marker == _SCAN and frame[end - 3 : end] == _NO_SCAN:
                stated[frame[:end]] = frame[: end - 3] + _WHOLE_SCAN
    for headers, whole in stated.items():
        tags.PixelData = tags.PixelData.replace(headers, whole)


def _boxes_end(data: bytes) -> bool:
    """Tell whether a walk through the boxes of a JPEG 2000 file, as pydicom's, comes to an end.

    pydicom 3.0.2 (`get_j2k_parameters`) never leaves a box that says it has no length.
    """
    at = 12
    while data.startswith(_BOXES) and at < len(data) and data[at + 4 : at + 8] != _CODESTREAM:
        length = int.from_bytes(data[at : at + 4], "big")
        if not length:
            return False
        at += length
    return True


def _coded_size(data: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that a JPEG, JPEG-LS or JPEG 2000 image says it has."""
    if not data.startswith(b"\xff\xd8"):
        start = data.find(b"\xff\x4f\xff\x51")  # JPEG 2000, bare or in a box
        right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
        return (bottom - top, right - left) if start >= 0 else None
    for marker, at in _segments(data):
        if marker in _FRAME_HEADERS:
            return struct.unpack(">HH", data[at + 5 : at + 9])
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Give the marker and the offset of each segment of a JPEG, up to its first scan."""
    at, marker = 2, 0
    while marker != _SCAN and at + 1 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        else:
            yield marker, at
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
