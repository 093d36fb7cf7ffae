"""Image files as bytes, written by Pillow, numpy and nibabel.

Byte by byte after the format's specification (TIFF 6.0, PNG) where those cannot write the case.
"""

import io
import struct
import zlib

import nibabel
import numpy as np
from PIL import Image

NOISE = np.random.default_rng(7).integers(0, 256, (90, 70)).astype(np.uint8)
DEEP = np.random.default_rng(8).integers(0, 65536, (9, 7)).astype(np.uint16)
RGB = np.random.default_rng(9).integers(0, 256, (12, 10, 3)).astype(np.uint8)
ALPHA = np.random.default_rng(10).integers(0, 256, (12, 10)).astype(np.uint8)
STACK = np.random.default_rng(11).integers(0, 256, (3, 30, 20)).astype(np.uint8)
WEIGHTS = np.array([0.299, 0.587, 0.114])


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def saved_all(arrays, form, **options):
    first, *others = (Image.fromarray(array) for array in arrays)
    return saved(first, form, save_all=True, append_images=others, **options)


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


def npz(*arrays, compressed=True, **named):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, *arrays, **named)
    return stream.getvalue()


def nifti(array, slope=None, intercept=None, kind=nibabel.Nifti1Image):
    image = kind(array, np.eye(4))
    data = bytearray(image.to_bytes())
    if slope is not None:  # NIfTI-1: scl_slope and scl_inter at bytes 112 and 116
        data[112:120] = struct.pack("<ff", slope, intercept)
    return bytes(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, colour, size=None, before=b"", interlaced=0):
    """Write a PNG without Pillow: 16-bit colour, or a size that its samples do not have."""
    height, width = size or samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in samples))
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(samples, kind=1, photometric=1, deflated=False):
    """Write one grey strip, deflated or not; kind is 1 unsigned, 2 signed, 3 float."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, width = samples.shape
    data = zlib.compress(samples.tobytes()) if deflated else samples.tobytes()
    tags = {256: width, 257: height, 258: samples.itemsize * 8, 259: 8 if deflated else 1}
    tags |= {262: photometric, 273: 8, 277: 1, 278: height, 279: len(data), 339: kind}
    data += b"\0" * (len(data) % 2)
    entries = b"".join(
        struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items())
    )
    magic = b"MM\0*" if order == ">" else b"II*\0"
    ifd = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    return magic + struct.pack(order + "I", 8 + len(data)) + data + ifd


FORMATS = {form: saved(Image.fromarray(NOISE), form) for form in ("PNG", "JPEG", "TIFF")}
