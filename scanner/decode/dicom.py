"""DICOM: every frame as its modality meant it, and nothing of the patient.

    stored samples -> modality LUT or rescale -> window, when asked -> MONOCHROME1 negated

- Rescaling and windows are the frame's own: its functional groups', those shared by all frames, or
  the file's. A window clips; its values stay in the rescaled unit.
- Colour and palettes become luminance, at their own depth.
- Only the tags that say what the samples mean are read. No value of any tag leaves this module,
  except a keyed hash of the patient id: errors name neither values nor pydicom's messages, which
  quote them.
- What is compressed is decoded by what is installed. Where two decoders of one lossy syntax differ,
  they do by a grey level.
"""

import hashlib
import hmac
import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepssim_scan.decode.arrays import to_float32
from deepssim_scan.decode.values import (
    MAX_FRAMES,
    MAX_INFLATED,
    Frame,
    Pixels,
    Reading,
    Rejected,
    luminance,
)

if TYPE_CHECKING:
    from pydicom import Dataset

_Values = npt.NDArray[np.float64]

_PREFIX = b"DICM"
_PROGRAMS = (
    b"MZ",
    b"\x7fELF",
    b"#!",
    b"\xfe\xed\xfa\xce",  # Mach-O: 32 and 64 bits, either byte order, and fat
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\xca\xfe\xba\xbf",
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_RLE = "1.2.840.10008.1.2.5"
_FRAME_HEADERS = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG-LS, and every JPEG
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
_END = b"\xff\xd9"
_CHANNELS = ("Red", "Green", "Blue")
_TAGS = (
    *_PIXELS,
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _CHANNELS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _CHANNELS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _CHANNELS),
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "HighBit",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PatientID",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelPresentation",
    "PixelRepresentation",
    "PlanarConfiguration",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SamplesPerPixel",
    "SharedFunctionalGroupsSequence",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)


def is_dicom(data: bytes) -> bool:
    """Tell whether a file is DICOM; it may be a TIFF as well."""
    return data[128:132] == _PREFIX


@dataclass(frozen=True, slots=True)
class Layout:
    """What the tags say of the stored samples; checked before any is decoded."""

    rows: int
    columns: int
    count: int
    photometric: str
    samples: int
    bits: int

    def check(self, max_pixels: int) -> None:
        """Refuse what is too large, or not one of the layouts that are read."""
        if self.rows * self.columns > max_pixels:
            raise Rejected("too-large", f"a frame is over the limit of {max_pixels} pixels")
        if self.count > MAX_FRAMES:
            raise Rejected("too-large", f"more frames than the limit of {MAX_FRAMES}")
        if self.photometric not in (*_GREY, *_COLOUR, _PALETTE):
            raise Rejected("unsupported", "a photometric interpretation that is not read")
        if min(self.rows, self.columns, self.count) < 1:
            raise Rejected("damaged", "no rows, no columns, or no frames")
        if self.samples != (3 if self.photometric in _COLOUR else 1):
            raise Rejected("damaged", "as many samples a pixel as its colours do not have")

    def nbytes(self, count: int) -> int:
        """Bytes of `count` frames that are not compressed."""
        bits = self.rows * self.columns * self.samples * self.bits * count
        return -(-bits * 2 // 24) if self.photometric == "YBR_FULL_422" else -(-bits // 8)


def frames(data: bytes, reading: Reading) -> Iterator[Frame]:
    """Give every frame; each step must run without warnings and logs, which quote tags."""
    if data.startswith(_PROGRAMS):
        raise Rejected("executable", "the preamble is the start of a program")
    tags = _read(data)
    layout = _layout(tags)
    layout.check(reading.max_pixels)
    subject = _subject(tags, reading.subject_key)
    for number, (stored, photometric) in enumerate(_stored(tags, layout)):
        if layout.photometric in _GREY:
            pixels = to_float32(_grey(tags, stored, number, reading))
        else:
            pixels = _colour(tags, stored, photometric)
        yield Frame(
            f"frame={number}" if layout.count > 1 else "",
            f"dicom:{layout.photometric}:{stored.dtype.name}",
            -pixels if layout.photometric == "MONOCHROME1" else pixels,
            subject,
        )


def _read(data: bytes) -> "Dataset":
    """Read the tags of interest; the samples must be there, and whole."""
    # Imported late: most files are not DICOM.
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag
    from pydicom.uid import (
        UID,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
    )

    stream = io.BytesIO(data)
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if "TransferSyntaxUID" not in meta:
        raise Rejected("damaged", "no transfer syntax")
    syntax = UID(meta.TransferSyntaxUID)
    if syntax == DeflatedExplicitVRLittleEndian:
        data = _inflate(data[stream.tell() :])
        stream = io.BytesIO(data)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    tags = read_dataset(stream, implicit, little, specific_tags=[Tag(name) for name in _TAGS])
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = syntax
    held = [name for name in _PIXELS if name in tags]
    if len(held) != 1:
        raise Rejected("no-pixels", f"{len(held)} elements of pixel data")
    if stream.tell() > len(data):  # an element that is not of interest is only skipped
        raise Rejected("damaged", "the file ends before its last element does")
    return tags


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, MAX_INFLATED + 1)
    if len(inflated) > MAX_INFLATED:
        raise Rejected("too-large", f"inflates to more than {MAX_INFLATED} bytes")
    if not stream.eof:
        raise Rejected("damaged", "the deflated data ends early")
    return inflated


def _layout(tags: "Dataset") -> Layout:
    layout = Layout(
        rows=int(tags.Rows),
        columns=int(tags.Columns),
        count=int(tags.get("NumberOfFrames") or 1),
        photometric=str(tags.PhotometricInterpretation),
        samples=int(tags.SamplesPerPixel),
        bits=int(tags.BitsAllocated),
    )
    stored = tags.get("BitsStored", layout.bits)
    if tags.get("HighBit", stored - 1) != stored - 1:
        raise Rejected("unsupported", "samples that do not lie in the lowest bits")
    return layout


def _subject(tags: "Dataset", key: bytes) -> str:
    """Hash the bytes of the patient id, without what pads them."""
    value = tags.get_item("PatientID").value if key and "PatientID" in tags else None
    value = value.strip(b" \0") if isinstance(value, bytes) else b""
    return hmac.new(key, value, hashlib.sha256).hexdigest() if value else ""


def _stored(tags: "Dataset", layout: Layout) -> Iterator[tuple[npt.NDArray[Any], str]]:
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
    for stored, properties in decoder.iter_array(tags, allow_excess_frames=False):
        yield stored, str(properties["photometric_interpretation"])


def _check_native(tags: "Dataset", layout: Layout) -> None:
    """Compare the bytes that there are with what the frames take; up to a frame may be padding."""
    found = max(len(tags[name].value) for name in _PIXELS if name in tags)
    wanted = layout.nbytes(layout.count)
    padded = found == wanted + wanted % 2
    if not padded and not wanted <= found < layout.nbytes(layout.count + 1):
        raise Rejected("damaged", "more or fewer samples than its frames take")


def _check_encapsulated(tags: "Dataset", layout: Layout) -> None:
    """Look at every compressed frame before any is decoded: all whole, and of the size declared.

    Decoders allocate what the compressed data says, give parts of what was cut short, and leave
    alone what follows the first image of a frame.
    """
    from pydicom.encaps import generate_fragmented_frames

    table = (tags.get("ExtendedOffsetTable"), tags.get("ExtendedOffsetTableLengths"))
    offsets = table if all(table) else None
    found = 0
    for fragments in generate_fragmented_frames(
        tags.PixelData, number_of_frames=layout.count, extended_offsets=offsets
    ):
        found += 1
        if tags.file_meta.TransferSyntaxUID == _RLE:  # two bytes of it give at least one
            whole = len(fragments) == 1 and len(fragments[0]) <= 100 + 2 * layout.nbytes(1)
        else:
            whole = _coded_size(fragments[0]) == (layout.rows, layout.columns)
            whole = whole and _END in fragments[-1][-10:]
            whole = whole and not any(part.startswith(_STARTS) for part in fragments[1:])
        if not whole:
            raise Rejected("damaged", "a frame that is cut short, or not of the size declared")
    if found != layout.count:
        raise Rejected("damaged", "more or fewer frames than it declares")


def _coded_size(data: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that a JPEG, JPEG-LS or JPEG 2000 image says it has."""
    if not data.startswith(b"\xff\xd8"):
        start = data.find(b"\xff\x4f\xff\x51")  # JPEG 2000, bare or in a box
        right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
        return (bottom - top, right - left) if start >= 0 else None
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _FRAME_HEADERS:
            return struct.unpack(">HH", data[at + 5 : at + 9])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _grey(tags: "Dataset", stored: npt.NDArray[Any], number: int, reading: Reading) -> _Values:
    values = _rescaled(tags, stored.astype(np.float64), number)
    if reading.window == "file":
        return _file_window(tags, values, number)
    return reading.clip(values)


def _rescaled(tags: "Dataset", values: _Values, number: int) -> _Values:
    """Apply the modality's look-up table, or slope and intercept."""
    if tags.get("ModalityLUTSequence"):
        return _looked_up(tags, values, "ModalityLUTSequence")
    source = _functional(tags, "PixelValueTransformationSequence", number)
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise Rejected("damaged", "a rescale slope of 0, or one that is not finite")
    return values * slope + intercept


def _functional(tags: "Dataset", macro: str, number: int) -> "Dataset":
    """Return what holds a value of one frame: its own group, the shared one, or the file."""
    for name, place in (
        ("PerFrameFunctionalGroupsSequence", number),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = tags.get(name) or []
        if place < len(groups) and groups[place].get(macro):
            found: Dataset = groups[place].get(macro)[0]
            return found
    return tags


def _looked_up(tags: "Dataset", values: _Values, name: str) -> _Values:
    """Look whole values up; those before the table get its first entry, those after its last."""
    item = tags.get(name)[0]
    entries, first, bits = item.LUTDescriptor
    entries = entries % 65536 or 65536
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if tags.file_meta.TransferSyntaxUID.is_little_endian else ">"
        narrow = bits <= 8 and len(table) < 2 * entries
        table = np.frombuffer(table, "u1" if narrow else f"{order}u2")
    table = np.asarray(table, np.float64)
    if len(table) < entries:
        raise Rejected("damaged", "a look-up table with too few entries")
    looked_up: _Values = table[np.clip(values - first, 0, entries - 1).astype(np.intp)]
    return looked_up


def _file_window(tags: "Dataset", values: _Values, number: int) -> _Values:
    """Apply a frame's first window, else its first VOI table, else nothing.

    PS3.3 C.11.2.1.2 and C.11.2.1.3, but in the rescaled unit.
    """
    source = _functional(tags, "FrameVOILUTSequence", number)
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if centre is None or width is None:
        return _looked_up(tags, values, "VOILUTSequence") if tags.get("VOILUTSequence") else values
    function = source.get("VOILUTFunction") or "LINEAR"
    if not (math.isfinite(centre) and width >= (1 if function == "LINEAR" else 1e-30)):
        raise Rejected("damaged", "a window without a width")
    if function == "SIGMOID":
        return centre - width / 2 + width / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return np.clip(values, centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    """Return the first of a tag's values."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    value = (value[0] if value else None) if several else value
    return None if value is None or value == "" else float(value)


def _colour(tags: "Dataset", stored: npt.NDArray[Any], photometric: str) -> Pixels:
    """Return the luminance of colour (H, W, 3), or of indices into a palette (H, W)."""
    if photometric == _PALETTE:
        stored = _painted(tags, stored)
    elif photometric != "RGB":
        raise Rejected("unsupported", "colour that was not brought to RGB")
    return luminance(stored)


def _painted(tags: "Dataset", stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_color_lut

    entries, first, _ = tags.RedPaletteColorLookupTableDescriptor
    entries = entries % 65536 or 65536
    # pydicom's index has the type of the table's entries, in which a greater one wraps round.
    painted = apply_color_lut(np.clip(stored.astype(np.int32), first, first + entries - 1), tags)
    if painted.dtype.itemsize == 1 and entries > 256:
        raise Rejected("unsupported", f"a palette of {entries} colours of 8 bits")
    return painted
