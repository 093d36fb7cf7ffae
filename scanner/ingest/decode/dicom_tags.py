"""The tags of a DICOM file that say what its samples mean, and the layout of these.

bytes -> pydicom's Dataset of these tags only -> Layout, checked before any sample is decoded
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode.values import MAX_FRAMES, MAX_INFLATED
from deepssim_scan.ingest.rejection import Rejected

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_PREFIX, _META = b"DICM", b"\2\0\0\0UL"
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT, _BIG = f"{_IMPLICIT}.1", f"{_IMPLICIT}.2"  # explicit VR, little and big endian
_FIRST = [bytes((8, 0, element, 0)) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18)]
_FIRST_VRS = (b"UL", b"CS", b"DA", b"UI")  # of these elements of group 8

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_CHANNELS = ("Red", "Green", "Blue")
_TAGS = (
    *PIXELS,
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _CHANNELS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _CHANNELS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _CHANNELS),
    *(f"{kind}PixelPaddingValue" for kind in ("", "Float", "DoubleFloat")),
    *(f"{kind}PixelPaddingRangeLimit" for kind in ("", "Float", "DoubleFloat")),
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
        if self.photometric not in (*GREY, *_COLOUR, PALETTE):
            raise Rejected("unsupported", "a photometric interpretation that is not read")
        if min(self.rows, self.columns, self.count) < 1:
            raise Rejected("damaged", "no rows, no columns, or no frames")
        if self.samples != (3 if self.photometric in _COLOUR else 1):
            raise Rejected("damaged", "as many samples a pixel as its colours do not have")

    def nbytes(self, count: int) -> int:
        """Bytes of `count` frames that are not compressed."""
        bits = self.rows * self.columns * self.samples * self.bits * count
        return -(-bits * 2 // 24) if self.photometric == "YBR_FULL_422" else -(-bits // 8)


def is_dicom(data: bytes) -> bool:
    """Tell whether a file is DICOM, with a preamble or without; it may be a TIFF as well."""
    return data[128:132] == _PREFIX or data.startswith(_META) or bool(_syntax_of(data))


def _syntax_of(data: bytes) -> str:
    """Tell the transfer syntax of a data set from its first element, as viewers do; "": none."""
    first, rest = data[:4], data[4:8]
    if first in _FIRST and rest[:2] in _FIRST_VRS:
        return _EXPLICIT
    if first in _FIRST and rest[2:] == b"\0\0":  # a length below 65536
        return _IMPLICIT
    swapped = first[1::-1] + first[:1:-1]
    return _BIG if swapped in _FIRST and rest[:2] in _FIRST_VRS else ""


def read_tags(data: bytes) -> "Dataset":
    """Read the tags of interest; the samples must be there, and whole."""
    tags, _, whole = _read(data, _TAGS)
    held = [name for name in PIXELS if name in tags]
    if len(held) != 1:
        raise Rejected("no-pixels", f"{len(held)} elements of pixel data")
    if not whole:  # an element that is not of interest is only skipped
        raise Rejected("damaged", "the file ends before its last element does")
    return tags


def without_samples(data: bytes) -> tuple[bytes, bool]:
    """Return the bytes of a file that was decoded but for its samples; and whether it has overlays.

    They are what was deflated, where it was. Samples that come twice are left out once.
    """
    tags, data, _ = _read(data, None)
    (samples,) = (tags.get_item(name).value for name in PIXELS if name in tags)
    before, _, after = data.rpartition(samples)
    return before + after, any(0x6000 <= each.tag.group <= 0x60FF for each in tags.elements())


def _read(data: bytes, names: Sequence[str] | None) -> tuple["Dataset", bytes, bool]:
    """Read the tags of these names, or all.

    Return them, the bytes that they are in, and whether the last element ends within.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.tag import BaseTag, Tag
    from pydicom.uid import (
        UID,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
    )

    stream = io.BytesIO(data)
    stream.seek(132 if data[128:132] == _PREFIX else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    start = stream.tell()
    syntax = UID(meta.get("TransferSyntaxUID") or _syntax_of(data[start : start + 8]))
    if not syntax:
        raise Rejected("damaged", "no transfer syntax")
    if syntax == DeflatedExplicitVRLittleEndian:
        data = _inflate(data[start:])
        stream = io.BytesIO(data)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    wanted: list[BaseTag | int] | None = None if names is None else [Tag(name) for name in names]
    tags = read_dataset(stream, implicit, little, specific_tags=wanted)
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = syntax
    return tags, data, stream.tell() <= len(data)


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, MAX_INFLATED + 1)
    if len(inflated) > MAX_INFLATED:
        raise Rejected("too-large", f"inflates to more than {MAX_INFLATED} bytes")
    if not stream.eof:
        raise Rejected("damaged", "the deflated data ends early")
    return inflated


def layout_of(tags: "Dataset") -> Layout:
    """Read the layout; Rejected when samples do not lie in the lowest bits."""
    layout = Layout(
        rows=_whole(tags, "Rows"),
        columns=_whole(tags, "Columns"),
        count=_whole(tags, "NumberOfFrames") if tags.get("NumberOfFrames") else 1,
        photometric=str(tags.get("PhotometricInterpretation")),
        samples=_whole(tags, "SamplesPerPixel"),
        bits=_whole(tags, "BitsAllocated"),
    )
    stored = tags.get("BitsStored", layout.bits)
    if tags.get("HighBit", stored - 1) != stored - 1:
        raise Rejected("unsupported", "samples that do not lie in the lowest bits")
    return layout


def _whole(tags: "Dataset", name: str) -> int:
    """Read a whole number; Rejected, without the value, where there is none."""
    try:
        return int(tags[name].value)
    except (KeyError, TypeError, ValueError):
        raise Rejected("damaged", f"{name} is missing, or is no whole number") from None


def subject_hash(tags: "Dataset", options: ReadOptions) -> str:
    """Hash the bytes of the patient id, without what pads them."""
    read = options.subject_key and "PatientID" in tags
    value = tags.get_item("PatientID").value if read else None
    value = value.strip(b" \0") if isinstance(value, bytes) else b""
    return options.hashed(value) if value else ""
