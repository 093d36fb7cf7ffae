"""DICOM files byte by byte after the standard (PS3.5 and PS3.10), so that they may break it."""

import struct

import numpy as np

PATIENT, PATIENT_ID = "QUORTLE^ZYXWV", "SECRET-770031"
"""What every file says of its patient, and nothing else may."""

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
RLE, JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
MPEG4, UNKNOWN = "1.2.840.10008.1.2.4.102", "1.2.840.99999.7"
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UN")


def element(tag: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return a DICOM element, explicit and little-endian (PS3.5, 7.1.2)."""
    value += (b"\0" if kind in (b"UI", b"OB") else b" ") * (len(value) % 2)
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind
    return head + struct.pack("<xxI" if kind in _LONG else "<H", length) + value


def us(tag: int, value: int) -> bytes:
    """Return a DICOM element of one 16-bit number."""
    return element(tag, b"US", struct.pack("<H", value))


def dicom_tags(pixels: np.ndarray, photometric: bytes = b"MONOCHROME2") -> bytes:
    """Return the elements before the pixel data of grey frames ((N,) H, W), patient included."""
    count, bits = (len(pixels) if pixels.ndim == 3 else 1), pixels.itemsize * 8
    parts = [
        element(0x00100010, b"PN", PATIENT.encode()),
        element(0x00100020, b"LO", PATIENT_ID.encode()),
        us(0x00280002, 1),
        element(0x00280004, b"CS", photometric),
        element(0x00280008, b"IS", str(count).encode()),
        us(0x00280010, pixels.shape[-2]),
        us(0x00280011, pixels.shape[-1]),
        us(0x00280100, bits),
        us(0x00280101, bits),
        us(0x00280102, bits - 1),
        us(0x00280103, int(pixels.dtype.kind == "i")),
    ]
    return b"".join(parts)


def dicom_file(body: bytes, syntax: str = EXPLICIT, preamble: bytes = b"") -> bytes:
    """Return a DICOM file of a data set, as it is in that syntax."""
    meta = element(0x00020010, b"UI", syntax.encode())
    length = element(0x00020000, b"UL", struct.pack("<I", len(meta)))
    return preamble.ljust(128, b"\0") + b"DICM" + length + meta + body


def dicom(
    pixels: np.ndarray,
    *,
    photometric: bytes = b"MONOCHROME2",
    more: bytes = b"",
    body: bytes = b"",
    preamble: bytes = b"",
) -> bytes:
    """Return a DICOM file of grey frames that are not compressed, or of `body` in their place.

    `more` are elements between those of `dicom_tags` and the pixel data.
    """
    samples = element(0x7FE00010, b"OW", body or pixels.tobytes())
    return dicom_file(dicom_tags(pixels, photometric) + more + samples, preamble=preamble)


def encapsulated(pixels: np.ndarray, syntax: str, *fragments: bytes) -> bytes:
    """Return a DICOM file of compressed frames (PS3.5, A.4)."""
    items = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, len(data) + len(data) % 2) + data + bytes(len(data) % 2)
        for data in (b"", *fragments)
    )
    items += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    body = element(0x7FE00010, b"OB", items, 0xFFFFFFFF)
    return dicom_file(dicom_tags(pixels) + body, syntax)


def rle(pixels: np.ndarray) -> bytes:
    """Return a frame of 8 bits as RLE (PS3.5, annex G), in literal runs."""
    data = pixels.tobytes()
    runs = (data[at : at + 128] for at in range(0, len(data), 128))
    packed_runs = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return struct.pack("<16I", 1, 64, *[0] * 14) + packed_runs
