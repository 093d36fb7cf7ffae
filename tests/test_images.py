"""Each test is named after its row in the table of bad inputs, where it has one.

Files are written by Pillow, numpy and nibabel, or byte by byte after the format's
specification (TIFF 6.0, PNG) where those cannot write the case.
"""

import ast
import dataclasses
import gzip
import io
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageFile

from deepssim_scan import decode as decode_module
from deepssim_scan import images
from deepssim_scan import listing as listing_module
from deepssim_scan.errors import InputError, InputMissing, ScanError
from deepssim_scan.images import (
    REASONS,
    Decoded,
    Item,
    Listing,
    Rejected,
    Rejection,
    Standardisation,
    decode_file,
    decode_images,
    list_images,
    standardise,
)

AS_IS = Standardisation(size=None)
NOISE = np.random.default_rng(7).integers(0, 256, (90, 70)).astype(np.uint8)


def z(values):
    """Z-score in float64: the oracle."""
    values = np.asarray(values, np.float64)
    return (values - values.mean()) / values.std()


def decoded(folder, name, data, **options):
    (folder / name).write_bytes(data)
    return decode_file(folder, name, AS_IS, **options)


def reason(folder, name, data, **options):
    result = decoded(folder, name, data, **options)
    assert result.pixels is None
    assert str(folder) not in result.rejection.detail
    assert "\n" not in result.rejection.detail
    return result.rejection.reason


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


def nifti(array, slope=None, intercept=None, kind=nibabel.Nifti1Image):
    image = kind(array, np.eye(4))
    data = bytearray(image.to_bytes())
    if slope is not None:  # NIfTI-1: scl_slope and scl_inter at bytes 112 and 116
        data[112:120] = struct.pack("<ff", slope, intercept)
    return bytes(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, colour, size=None, before=b""):
    """Write a PNG without Pillow: 16-bit colour, or a size that its samples do not have."""
    height, width = size or samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in samples))
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(samples, kind=1, photometric=1):
    """Write one uncompressed grey strip; kind is 1 unsigned, 2 signed, 3 float."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, width = samples.shape
    tags = {256: width, 257: height, 258: samples.itemsize * 8, 259: 1, 262: photometric}
    tags |= {273: 8, 277: 1, 278: height, 279: samples.nbytes, 339: kind}
    data = samples.tobytes() + b"\0" * (samples.nbytes % 2)
    entries = b"".join(
        struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items())
    )
    magic = b"MM\0*" if order == ">" else b"II*\0"
    ifd = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    return magic + struct.pack(order + "I", 8 + len(data)) + data + ifd


FORMATS = {form: saved(Image.fromarray(NOISE), form) for form in ("PNG", "JPEG", "TIFF")}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9, -13])
def test_row_01_truncated(tmp_path, form, keep):
    data = FORMATS[form]
    part = data[:keep] if keep < 0 else data[: int(len(data) * keep)]
    assert decoded(tmp_path, "whole.png", data).rejection is None
    assert reason(tmp_path, "part.png", part) == "damaged"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_row_01_truncated_compressed_tiff(tmp_path, compression):
    data = saved(Image.fromarray(NOISE), "TIFF", compression=compression)
    assert decoded(tmp_path, "whole.tif", data).rejection is None
    assert reason(tmp_path, "part.tif", data[: len(data) // 2]) == "damaged"


@pytest.mark.parametrize("form", FORMATS)
def test_row_02_another_library_allows_half_images(tmp_path, monkeypatch, form):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    limit = Image.MAX_IMAGE_PIXELS
    half = FORMATS[form][: len(FORMATS[form]) // 2]
    assert reason(tmp_path, "half.png", half) == "damaged"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert limit == Image.MAX_IMAGE_PIXELS


def test_row_03_png_with_a_wrong_checksum(tmp_path):
    data = bytearray(FORMATS["PNG"])
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    data[start + 4 + length] ^= 1
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow alone does not see it
    assert reason(tmp_path, "a.png", bytes(data)) == "damaged"


def test_row_04_bomb_of_100_megapixels_and_the_limit(tmp_path):
    black = np.zeros((10_000, 1250), np.uint8)
    bomb = png(black, 1, 0, size=(10_000, 10_000))
    assert reason(tmp_path, "bomb.png", bomb) == "too-large"
    exact = NOISE.size
    for form, data in FORMATS.items():
        assert decoded(tmp_path, form, data, max_pixels=exact).rejection is None
        assert reason(tmp_path, form, data, max_pixels=exact - 1) == "too-large"
    assert reason(tmp_path, "a.npy", npy(NOISE), max_pixels=exact - 1) == "too-large"
    assert reason(tmp_path, "a.nii", nifti(NOISE), max_pixels=exact - 1) == "too-large"


def test_row_05_huge_empty_and_foreign(tmp_path):
    one = np.zeros((1, 1), np.uint8)
    assert reason(tmp_path, "a.png", png(one, 8, 0, size=(20_000, 20_000))) == "too-large"
    assert reason(tmp_path, "b.png", png(one, 8, 0, size=(0, 0))) == "damaged"
    assert reason(tmp_path, "c.png", b"") == "empty-file"
    assert reason(tmp_path, "d.png", b"<html>" + b" " * 999) == "unknown-format"
    assert reason(tmp_path, "e.png", b"\x89") == "unknown-format"


@pytest.mark.parametrize("form", ["EPS", "GIF", "BMP", "WEBP", "PPM", "ICO"])
def test_row_06_another_format_renamed(tmp_path, form):
    data = saved(Image.fromarray(NOISE), form)
    assert reason(tmp_path, "a.png", data) == "unknown-format"


def test_the_format_is_told_by_content_and_not_by_name(tmp_path):
    for data, mode in (
        (FORMATS["PNG"], "L"),
        (FORMATS["TIFF"], "L"),
        (npy(NOISE), "npy:uint8"),
        (nifti(NOISE.T), "nifti:uint8"),
        (gzip.compress(nifti(NOISE.T)), "nifti:uint8"),
    ):
        result = decoded(tmp_path, "wrong.jpg", data)
        assert result.mode == mode
        np.testing.assert_array_equal(result.pixels, z(NOISE).astype(np.float32))


DEEP = np.random.default_rng(8).integers(0, 65536, (9, 7)).astype(np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(DEEP), "PNG"),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
        tiff(DEEP.astype("<u2")),
        tiff(DEEP.astype(">u2")),
        tiff(DEEP.astype("<i4"), 2),
        tiff(DEEP.astype(">f4"), 3),
    ],
)
def test_row_07_sixteen_bit_grey_keeps_its_range(tmp_path, data):
    np.testing.assert_allclose(decoded(tmp_path, "a", data).pixels, z(DEEP), rtol=1e-6, atol=1e-6)


def test_row_07_two_that_differ_above_255_stay_two(tmp_path):
    one, other = DEEP | 0x4000, DEEP | 0x8000
    results = [
        decoded(tmp_path, f"{form}-{number}", saved(Image.fromarray(array), form))
        for form in ("PNG", "TIFF")
        for number, array in enumerate((one, other))
    ]
    assert len({result.sha256 for result in results}) == 4
    assert not np.allclose(results[0].pixels, results[1].pixels)
    np.testing.assert_array_equal(results[0].pixels, results[2].pixels)


@pytest.mark.parametrize("dtype", ["i1", "<u4", "<i2", ">i2", ">i4", "<i4"])
def test_row_07_tiff_signs(tmp_path, dtype):
    dtype = np.dtype(dtype)
    info = np.iinfo(dtype)
    samples = np.linspace(float(info.min), float(info.max) * 0.99, 63).reshape(9, 7).astype(dtype)
    kind = 2 if dtype.kind == "i" else 1
    result = decoded(tmp_path, "a.tif", tiff(samples, kind))
    np.testing.assert_allclose(result.pixels, z(samples), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_row_07_white_is_zero_is_inverted_at_8_and_at_16_bits(tmp_path, dtype):
    result = decoded(tmp_path, "a.tif", tiff(DEEP.astype(dtype), photometric=0))
    np.testing.assert_allclose(result.pixels, -z(DEEP.astype(dtype)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_08_not_finite(tmp_path, value):
    samples = NOISE.astype(np.float32)
    samples[3, 4] = value
    assert reason(tmp_path, "a.tif", saved(Image.fromarray(samples), "TIFF")) == "not-finite"
    assert reason(tmp_path, "a.npy", npy(samples)) == "not-finite"
    assert reason(tmp_path, "a.nii", nifti(samples)) == "not-finite"
    assert reason(tmp_path, "b.npy", npy(NOISE.astype(np.float64) * 1e300)) == "not-finite"


RGB = np.random.default_rng(9).integers(0, 256, (12, 10, 3)).astype(np.uint8)
ALPHA = np.random.default_rng(10).integers(0, 256, (12, 10)).astype(np.uint8)
WEIGHTS = np.array([0.299, 0.587, 0.114])


def test_row_09_colour_is_luminance(tmp_path):
    result = decoded(tmp_path, "a.png", saved(Image.fromarray(RGB), "PNG"))
    assert result.mode == "RGB"
    np.testing.assert_allclose(result.pixels, z(RGB @ WEIGHTS), atol=1e-5)


def test_row_09_grey_saved_as_colour_is_the_same_image(tmp_path):
    grey = decoded(tmp_path, "a.png", FORMATS["PNG"])
    image = Image.fromarray(NOISE)
    for name, other in (
        ("RGB", image.convert("RGB")),
        ("RGBA", image.convert("RGBA")),
        ("LA", image.convert("LA")),
        ("P", image.convert("P")),
    ):
        result = decoded(tmp_path, name, saved(other, "PNG"))
        assert result.mode == name
        np.testing.assert_array_equal(result.pixels, grey.pixels)


def test_row_09_alpha_is_composited_over_black(tmp_path):
    rgba = np.dstack([RGB, ALPHA])
    for form in ("PNG", "TIFF"):
        result = decoded(tmp_path, "a", saved(Image.fromarray(rgba), form))
        assert result.mode == "RGBA"
        np.testing.assert_allclose(result.pixels, z(RGB @ WEIGHTS * ALPHA / 255), atol=1e-5)
    la = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(ALPHA)])
    result = decoded(tmp_path, "b.png", saved(la, "PNG"))
    np.testing.assert_allclose(result.pixels, z(RGB[..., 0] * (ALPHA / 255)), atol=1e-5)


@pytest.mark.parametrize("samples", [NOISE, DEEP])
def test_row_09_a_transparent_grey_is_black(tmp_path, samples):
    key = int(samples[2, 2])
    data = png(
        samples.astype(f">u{samples.itemsize}"),
        samples.itemsize * 8,
        0,
        before=chunk(b"tRNS", struct.pack(">H", key)),
    )
    expected = z(np.where(samples == key, 0, samples))
    np.testing.assert_allclose(decoded(tmp_path, "a.png", data).pixels, expected, atol=1e-5)


def test_row_09_palette_with_transparency_cmyk_and_one_bit(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    result = decoded(tmp_path, "p.png", saved(palette, "PNG", transparency=3))
    opaque = (np.asarray(palette) != 3) * (np.asarray(palette.convert("RGB")) @ WEIGHTS)
    assert result.mode == "P"
    np.testing.assert_allclose(result.pixels, z(opaque), atol=1e-5)
    cmyk = Image.fromarray(RGB).convert("CMYK")
    result = decoded(tmp_path, "c.tif", saved(cmyk, "TIFF"))
    assert result.mode == "CMYK"
    np.testing.assert_allclose(result.pixels, z(RGB @ WEIGHTS), atol=1e-5)
    for form in ("PNG", "TIFF"):
        result = decoded(tmp_path, "1", saved(Image.fromarray(ALPHA > 99), form))
        assert result.mode == "1"
        np.testing.assert_allclose(result.pixels, z(ALPHA > 99), atol=1e-5)


def test_row_09_deep_colour_that_would_lose_bits_is_refused(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (5, 6, 4)).astype(">u2")
    for channels, colour in ((3, 2), (2, 4), (4, 6)):
        data = png(np.ascontiguousarray(deep[..., :channels]), 16, colour)
        assert reason(tmp_path, "a.png", data) == "unsupported"
    lab = saved(Image.fromarray(RGB).convert("LAB"), "TIFF")
    assert reason(tmp_path, "lab.tif", lab) == "unsupported"
    two_bit = png(ALPHA, 2, 0, size=(12, 40), before=chunk(b"tRNS", b"\0\1"))
    assert reason(tmp_path, "two.png", two_bit) == "unsupported"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("samples", [NOISE, DEEP])
def test_orientation_is_applied_alike_in_every_format(tmp_path, orientation, samples):
    exif = Image.Exif()
    exif[274] = orientation
    turned = [
        decoded(tmp_path, form, saved(Image.fromarray(samples), form, exif=exif)).pixels
        for form in ("PNG", "TIFF")
    ]
    ops = [lambda a: a, np.fliplr, lambda a: a[::-1, ::-1], np.flipud, np.transpose]
    ops += [lambda a: np.rot90(a, -1), lambda a: a[::-1, ::-1].T, np.rot90]
    for pixels in turned:
        np.testing.assert_allclose(pixels, ops[orientation - 1](z(samples)), atol=1e-5)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "MPO"])
def test_row_10_many_frames(tmp_path, form):
    pages = [Image.fromarray(np.roll(NOISE, shift)) for shift in range(3)]
    data = saved(pages[0], form, save_all=True, append_images=pages[1:])
    assert reason(tmp_path, "a", data) == "multi-frame"


@pytest.mark.parametrize("shape", [(3, 8, 9), (8, 9, 3), (2, 8, 9, 1), (2, 2, 2, 2)])
def test_row_10_many_planes(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert reason(tmp_path, "a.npy", npy(array)) == "multi-frame"
    assert reason(tmp_path, "a.nii", nifti(array)) == "multi-frame"


@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9), (8, 9, 1), (1, 8, 9, 1), (8, 1, 9)])
def test_axes_of_length_one_are_dropped(tmp_path, shape):
    array = np.arange(72, dtype=np.int16).reshape(shape) ** 2
    plane = z(array.reshape(8, 9))
    np.testing.assert_allclose(decoded(tmp_path, "a.npy", npy(array)).pixels, plane, atol=1e-5)
    fortran = npy(np.asfortranarray(array))
    np.testing.assert_allclose(decoded(tmp_path, "b.npy", fortran).pixels, plane, atol=1e-5)
    result = decoded(tmp_path, "a.nii", nifti(array))
    np.testing.assert_allclose(result.pixels, plane.T, atol=1e-5)


def specks(shape, count, low=0, high=255):
    array = np.full(shape, low, np.float32)
    array.ravel()[:count] = high
    return array


@pytest.mark.parametrize(
    ("array", "constant"),
    [
        (np.full((16, 16), 77.0), True),
        (np.zeros((16, 16)), True),
        (specks((100, 100), 9), True),  # 9 of 10,000 differ
        (specks((100, 100), 10), False),
        (specks((100, 100), 5000, 30000, 30001), False),  # deviation 1.7e-5 of the magnitude
        (specks((100, 100), 5000, 1e6, 1e6 + 1), True),  # 5e-7
        (1e9 + NOISE.astype(np.float64) / 1e3, True),  # float32 cannot hold the difference
        (NOISE * 1e-30, False),
        (NOISE * 1e30, False),
        (NOISE * 1e-300, True),
    ],
)
def test_row_11_constant_by_the_written_bound(tmp_path, array, constant):
    rejection = decoded(tmp_path, "a.npy", npy(array)).rejection
    assert (rejection is not None) == constant
    assert rejection is None or rejection.reason == "constant"


def test_row_11_holds_for_the_scaled_image_too():
    line = np.random.default_rng(2).normal(size=(1, 5000)).astype(np.float32)
    assert standardise(line, Standardisation(size=512)).shape == (512, 512)
    with pytest.raises(Rejected, match="constant"):  # one row of 2048
        standardise(line, Standardisation(size=2048))


def test_row_12_nifti_slope_and_intercept(tmp_path):
    array = NOISE.astype(np.int16)
    plain = decoded(tmp_path, "a.nii", nifti(array))
    negative = decoded(tmp_path, "b.nii", nifti(array, -2.0, 5.0))
    np.testing.assert_allclose(plain.pixels, z(NOISE.T), atol=1e-5)
    np.testing.assert_allclose(negative.pixels, -z(NOISE.T), atol=1e-5)
    for none in (0.0, np.nan):
        unscaled = decoded(tmp_path, "b.nii", nifti(array, none, 5.0))
        np.testing.assert_array_equal(unscaled.pixels, plain.pixels)
    second = decoded(tmp_path, "c.nii", nifti(array, kind=nibabel.Nifti2Image))
    np.testing.assert_array_equal(second.pixels, plain.pixels)
    for slope, intercept in ((np.inf, 0.0), (1.0, np.inf), (1.0, np.nan)):
        assert reason(tmp_path, "d.nii", nifti(array, slope, intercept)) == "damaged"
    assert reason(tmp_path, "e.nii", nifti(array.astype(np.float32), 3e38, 0.0)) == "not-finite"


def test_row_12_nifti_big_endian(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(NOISE.astype(">i2"), np.eye(4), header)
    data = image.to_bytes()
    assert data[:4] == b"\0\0\1\x5c"
    np.testing.assert_allclose(decoded(tmp_path, "a.nii", data).pixels, z(NOISE.T), atol=1e-5)


def test_row_12_nifti_headers_that_lie(tmp_path):
    data = nifti(NOISE)
    huge = bytearray(data)
    huge[40:48] = struct.pack("<hhhh", 3, 32000, 32000, 32000)
    assert reason(tmp_path, "a.nii", bytes(huge)) == "multi-frame"
    huge[40:48] = struct.pack("<hhhh", 2, 32000, 32000, 1)
    assert reason(tmp_path, "a.nii", bytes(huge)) == "too-large"
    for shape in ((0, 0, 0), (2, 0, 5), (2, -4, 5), (1, 5, 5), (9, 5, 5)):
        wrong = bytearray(data)
        wrong[40:46] = struct.pack("<hhh", *shape)
        assert reason(tmp_path, "b.nii", bytes(wrong)) in ("bad-array", "multi-frame")
    for offset in (0.0, -400.0, 1e30, np.nan, np.inf):
        wrong = bytearray(data)
        wrong[108:112] = struct.pack("<f", offset)
        assert reason(tmp_path, "c.nii", bytes(wrong)) == "damaged"
    pair = bytearray(data)
    pair[344:348] = b"ni1\0"
    assert reason(tmp_path, "d.nii", bytes(pair)) == "unknown-format"
    assert reason(tmp_path, "e.nii", nifti(NOISE.astype(np.complex64))) == "bad-array"


def test_row_12_nifti_truncated_trailing_or_altered(tmp_path):
    data = nifti(NOISE)
    packed = gzip.compress(data)
    assert reason(tmp_path, "a.nii", data[:-1]) == "bad-array"
    assert reason(tmp_path, "a.nii", data + b"\0") == "bad-array"
    assert reason(tmp_path, "a.nii", data[:300]) == "unknown-format"
    assert reason(tmp_path, "a.nii.gz", gzip.compress(data[:-1])) == "bad-array"
    assert reason(tmp_path, "a.nii.gz", packed[: len(packed) // 2]) == "damaged"
    assert reason(tmp_path, "a.nii.gz", packed[:-1]) == "damaged"
    wrong = bytearray(packed)
    wrong[-8] ^= 1  # the checksum
    assert reason(tmp_path, "a.nii.gz", bytes(wrong)) == "damaged"
    members = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    assert decoded(tmp_path, "a.nii.gz", members).rejection is None
    assert reason(tmp_path, "a.nii.gz", gzip.compress(FORMATS["PNG"])) == "unknown-format"


def test_row_12_gzip_bomb_is_not_inflated(tmp_path):
    bomb = gzip.compress(nifti(NOISE) + bytes(50_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        assert reason(tmp_path, "bomb.nii.gz", bomb) == "bad-array"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


class Trap:
    """Pickled into a file; unpickling it would make the file that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_row_13_pickled_npy_is_not_executed(tmp_path):
    trap = np.empty((2, 2), object)
    trap[...] = Trap(tmp_path / "sprung")
    assert reason(tmp_path, "a.npy", npy(trap, allow_pickle=True)) == "bad-array"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("(2000000, 2000000)", "too-large"),  # 29 TiB of float64
        ("(9" + "9" * 5000 + ", 2)", "bad-array"),
        ("(3, 3)", "bad-array"),
        ("(0, 4)", "bad-array"),
        ("(-2, -2)", "bad-array"),
        ("(4,)", "bad-array"),
        ("()", "bad-array"),
        ("__import__('os')", "bad-array"),
    ],
)
def test_row_13_npy_headers_that_lie(tmp_path, shape, expected):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(32)
    assert reason(tmp_path, "a.npy", data) == expected


def test_row_13_npy_bytes_and_types(tmp_path):
    data = npy(NOISE)
    assert reason(tmp_path, "a.npy", data + b"\0") == "bad-array"
    assert reason(tmp_path, "a.npy", data[:-1]) == "bad-array"
    assert reason(tmp_path, "a.npy", data[:20]) == "bad-array"
    assert reason(tmp_path, "a.npy", b"\x93NUMPY\x09\x00" + data[8:]) == "bad-array"
    for dtype in ("c8", "S4", "M8[s]", "f4,f4", "O", "U2"):
        array = np.zeros((4, 4), dtype)
        assert reason(tmp_path, "b.npy", npy(array, allow_pickle=True)) == "bad-array"
    for dtype in ("?", "<i8", ">u8", "<f2", ">f8", "u1"):
        array = (NOISE > 99).astype(dtype)
        result = decoded(tmp_path, "c.npy", npy(array, version=(2, 0)))
        np.testing.assert_allclose(result.pixels, z(NOISE > 99), atol=1e-5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_npy_is_the_z_score_or_constant_by_the_bound(tmp_path, array):
    result = decoded(tmp_path, "a.npy", npy(array))
    values = array.astype(np.float64)
    commonest = np.unique(array, return_counts=True)[1].max()
    flat = values.std() <= 1e-6 * np.abs(values).max()
    if flat or (array.size - commonest) * 1000 < array.size:
        assert result.rejection.reason == "constant"
    else:
        np.testing.assert_allclose(result.pixels, z(array), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(st.integers(8, 60), st.sampled_from([8, 16, 33, 64]), st.integers(0, 2**32))
def test_flips_and_transposes_commute_with_standardise(side, size, seed):
    square = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    rule = Standardisation(size=size)
    plain = standardise(square, rule)
    for turn in (np.fliplr, np.flipud, np.transpose, np.rot90):
        turned = standardise(np.ascontiguousarray(turn(square)), rule)
        np.testing.assert_allclose(turned, turn(plain), atol=1e-5)


@settings(deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_gain_and_offset_do_not_matter(height, width, gain, offset):
    image = np.random.default_rng(3).normal(size=(height, width))
    rule = Standardisation(size=16)
    moved = standardise((image * gain + offset).astype(np.float32), rule)
    np.testing.assert_allclose(moved, standardise(image.astype(np.float32), rule), atol=0.05)


@pytest.mark.parametrize("shape", [(136, 112), (112, 136), (1, 50), (3000, 5), (512, 512), (9, 9)])
def test_row_17_any_size_and_aspect(shape):
    image = np.random.default_rng(5).normal(100, 20, shape).astype(np.float32)
    result = standardise(image, Standardisation())
    assert result.shape == (128, 128)
    assert result.dtype == np.float32
    assert abs(result.mean(dtype=np.float64)) < 1e-6
    assert abs(result.std(dtype=np.float64) - 1) < 1e-6
    assert standardise(image, AS_IS).shape == shape


def test_row_17_padding_is_symmetric_and_the_median_of_the_border():
    image = np.full((32, 16), 10, np.float32)
    image[0] = 900
    image[4:-4, 4:-4] = np.arange(24 * 8).reshape(24, 8)
    result = standardise(image, Standardisation(size=32))
    framed = np.full((32, 32), 10.0)
    framed[:, 8:24] = image
    np.testing.assert_allclose(result, z(framed), atol=1e-5)


def test_row_17_shrinking_averages_and_does_not_alias():
    image = np.random.default_rng(6).normal(size=(256, 256)).astype(np.float32)
    image[:, 128:] += 3
    result = standardise(image, Standardisation(size=32))
    blocks = image.reshape(32, 8, 32, 8).mean((1, 3))
    assert np.corrcoef(result.ravel(), blocks.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("size", [0, 7, 4097, -1, 12.5, True, "128"])
def test_standardisation_checks_itself(size):
    with pytest.raises(InputError, match="size"):
        Standardisation(size=size)
    with pytest.raises(InputError, match="pad"):
        Standardisation(pad="zero")


def test_standardisation_survives_its_dictionary():
    for rule in (Standardisation(), AS_IS):
        assert Standardisation(**dataclasses.asdict(rule)) == rule


def test_standardise_does_not_write_to_its_input():
    image = NOISE.astype(np.float32)
    image.flags.writeable = False
    standardise(image, Standardisation(size=70))


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FORMATS["PNG"])


def listed(folder, include=()):
    listing = list_images(folder, include)
    return {item.path: item.rejection and item.rejection.reason for item in listing.files}


def test_row_19_links_and_paths_that_leave_the_folder(tmp_path):
    folder = tmp_path / "in"
    fill(tmp_path, "in/a.png", "in/sub/b.png", "out/c.png", "in-beside/d.png")
    (folder / "leaves.png").symlink_to(tmp_path / "out/c.png")
    (folder / "beside.png").symlink_to("../in-beside/d.png")
    (folder / "stays.png").symlink_to("sub/b.png")
    (folder / "leaving").symlink_to(tmp_path / "out")
    (folder / "staying").symlink_to("sub")
    (folder / "nothing.png").symlink_to("absent.png")
    assert listed(folder) == {
        "a.png": None,
        "sub/b.png": None,
        "stays.png": None,
        "leaves.png": "outside-folder",
        "beside.png": "outside-folder",
        "leaving": "outside-folder",
        "nothing.png": "vanished",
    }
    assert list_images(folder).ignored == 1  # "staying"
    for path in ("../out/c.png", "leaves.png", str(tmp_path / "out/c.png")):
        assert decode_file(folder, path, AS_IS).rejection.reason == "outside-folder"
    assert decode_file(folder, "stays.png", AS_IS).rejection is None


def test_row_19_the_folder_itself_may_be_a_link(tmp_path):
    fill(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert listed(tmp_path / "link") == {"a.png": None}
    assert decode_file(tmp_path / "link", "a.png", AS_IS).rejection is None


def test_row_20_link_loops_end(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "self.png").symlink_to("self.png")
    assert listed(tmp_path) == {"a.png": None, "self.png": "unreadable"}


def test_row_21_fifo_socket_device_and_folder(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "folder.png/b.png")
    os.mkfifo(tmp_path / "fifo.png")
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        assert listed(tmp_path) == {
            "a.png": None,
            "folder.png/b.png": None,
            "fifo.png": "not-a-file",
            "socket.png": "not-a-file",
        }
        for name in ("fifo.png", "socket.png", "folder.png"):
            assert decode_file(tmp_path, name, AS_IS).rejection.reason == "not-a-file"
    assert decode_file(Path("/dev"), "zero", AS_IS).rejection.reason == "not-a-file"


def test_row_21_a_fifo_that_takes_a_files_place_does_not_hang(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    check, calls = images._check_regular, []

    def late(status):
        calls.append(status)
        if len(calls) > 1:
            check(status)

    monkeypatch.setattr(images, "_check_regular", late)
    assert decode_file(tmp_path, "a.png", AS_IS).rejection.reason == "not-a-file"
    assert len(calls) == 2


def test_row_22_vanished_and_unreadable(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    listing = list_images(tmp_path)
    (tmp_path / "a.png").unlink()
    first, second = decode_images(listing, AS_IS, workers=0)
    assert (first.path, first.rejection.reason) == ("a.png", "vanished")
    assert second.rejection is None
    # A regular file whose first byte no process may read: an error of the system, not a mock.
    assert decode_file(Path("/proc/self"), "mem", AS_IS).rejection.reason == "unreadable"


def test_row_22_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed(tmp_path) == {"a.png": None, "closed": "unreadable"}
    with pytest.raises(InputError, match="Permission denied"):
        list_images(tmp_path / "closed")


def test_row_23_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    fill(tmp_path, "a.png")
    path, check, calls = tmp_path / "a.png", images._check_regular, []

    def change(status):
        check(status)
        calls.append(status)
        if len(calls) == 2:
            path.write_bytes(FORMATS["TIFF"])

    monkeypatch.setattr(images, "_check_regular", change)
    assert decode_file(tmp_path, "a.png", AS_IS).rejection.reason == "changed"


def test_row_23_the_hash_is_of_the_bytes_decoded(tmp_path):
    fill(tmp_path, "a.png")
    result = decode_file(tmp_path, "a.png", AS_IS)
    status = (tmp_path / "a.png").stat()
    assert result.sha256 == images.hashlib.sha256(FORMATS["PNG"]).hexdigest()
    assert (result.size, result.mtime_ns) == (status.st_size, status.st_mtime_ns)
    damaged = decoded(tmp_path, "b.png", FORMATS["PNG"][:99])
    assert damaged.sha256 == images.hashlib.sha256(FORMATS["PNG"][:99]).hexdigest()


def test_a_file_over_the_byte_limit_is_not_read(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert decode_file(tmp_path, "sparse.png", AS_IS).rejection.reason == "too-large"


def test_row_24_one_name_in_two_folders(tmp_path):
    fill(tmp_path, "b/image.png", "a/image.png")
    assert list(listed(tmp_path)) == ["a/image.png", "b/image.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_row_25_any_name(tmp_path, workers):
    names = ["\N{GRINNING FACE}".encode()]  # before 0xff in bytes, after it as a string
    names += [b"=cmd", b"@x", b"<script>", b"\x1b[31m", b"new\nline", b"\xff not utf-8", b"a" * 251]
    for name in names:
        (tmp_path / os.fsdecode(name + b".png")).write_bytes(FORMATS["PNG"])
    listing = list_images(tmp_path)
    paths = [os.fsencode(item.path) for item in listing.files]
    assert paths == sorted(name + b".png" for name in names)
    results = list(decode_images(listing, AS_IS, workers=workers))
    assert [os.fsencode(result.path) for result in results] == paths
    assert all(result.rejection is None for result in results)


def test_row_26_nothing_to_read(tmp_path):
    with pytest.raises(InputMissing, match="no such folder"):
        list_images(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no image to read \(0 other"):
        list_images(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no image to read \(1 other.*--include"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        list_images(tmp_path / "notes.txt")
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"no image to read \(2 other"):
        list_images(tmp_path, ["*.tif"])


def test_what_is_listed_and_what_is_counted(tmp_path):
    fill(tmp_path, "A.PNG", "b.JPeG", "c.tif", "d.npy", "e.nii", "f.nii.gz", "g.tiff", "h.jpg")
    fill(tmp_path, "x.gz", "png", "y.txt", ".h.png", ".hidden/z.png", ".hidden/more.png", "B/a.png")
    listing = list_images(tmp_path)
    assert [item.path for item in listing.files] == [
        *("A.PNG", "B/a.png", "b.JPeG", "c.tif", "d.npy", "e.nii", "f.nii.gz", "g.tiff", "h.jpg")
    ]
    assert listing.ignored == 5


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["1/gen-0.png", "1/training.png", "2/training.png", "a.png", "x/y/a.png"]),
        ("*/training.png", ["1/training.png", "2/training.png"]),
        ("[!1]/training.png", ["2/training.png"]),
        ("x/**", ["x/b.img", "x/y/a.png"]),
        ("**/*.img", ["x/b.img"]),
        ("?/gen-?.png", ["1/gen-0.png"]),
        ("**/y/**/a.png", ["x/y/a.png"]),
        ("A.png", []),
    ],
)
def test_include_patterns(tmp_path, pattern, paths):
    fill(tmp_path, "a.png", "1/training.png", "1/gen-0.png", "2/training.png", ".h/training.png")
    fill(tmp_path, "x/b.img", "x/y/a.png", "keep.txt")
    listing = list_images(tmp_path, [pattern, "keep.txt"])
    assert [item.path for item in listing.files] == sorted([*paths, "keep.txt"])
    assert listing.ignored == 8 - len(listing.files)


@pytest.mark.parametrize("pattern", ["", "/a.png", "../*.png", "a//b", "./a.png", "a/"])
def test_include_patterns_that_could_not_match(tmp_path, pattern):
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match="include pattern"):
        list_images(tmp_path, [pattern])


def test_a_folder_deeper_than_the_recursion_limit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    depth = 1050
    for _ in range(depth):  # relative, because the whole path is near the system's limit
        Path("d").mkdir()
        os.chdir("d")
    Path("a.png").write_bytes(FORMATS["PNG"])
    try:
        assert listed(tmp_path) == {"d/" * depth + "a.png": None}
    finally:  # pytest's own cleaning is recursive
        Path("a.png").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()


def mixed(folder, count=11):
    """Fill a folder with good, damaged and pre-rejected files; return its listing."""
    for number in range(count):
        shifted = Image.fromarray(np.roll(NOISE, number))
        data = saved(shifted, "PNG")
        (folder / f"{number:02}.png").write_bytes(data[:99] if number == 4 else data)
    (folder / "03b.png").symlink_to("/")
    return list_images(folder)


def values(results):
    return [
        (
            *dataclasses.astuple(dataclasses.replace(result, pixels=None, rejection=TOKEN))[:5],
            None if result.pixels is None else result.pixels.tobytes(),
            result.rejection,
        )
        for result in results
    ]


TOKEN = Rejection("constant", "")


def test_results_do_not_depend_on_workers_or_chunk(tmp_path):
    listing = mixed(tmp_path)
    alone = values(decode_images(listing, Standardisation(size=32), workers=0))
    assert [row[0] for row in alone] == [item.path for item in listing.files]
    assert [row[6].reason for row in alone if row[6]] == ["outside-folder", "damaged"]
    for workers, size in ((1, 1), (2, 4)):
        rule = Standardisation(size=32)
        assert values(decode_images(listing, rule, workers=workers, chunk=size)) == alone


def test_numbers_out_of_range_are_refused_at_the_call(tmp_path):
    listing = Listing(tmp_path, (Item("a.png"),), 0)
    for options in ({"workers": -1}, {"workers": 1, "chunk": 0}, {"workers": 1, "max_pixels": 0}):
        with pytest.raises(InputError, match="must be"):
            decode_images(listing, AS_IS, **options)


def test_closing_early_ends_the_workers(tmp_path):
    results = decode_images(mixed(tmp_path), AS_IS, workers=2, chunk=1)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert not multiprocessing.active_children()


def named(path):
    return Decoded(path, 0, 0, "", f"{os.getpid()}", None, TOKEN)


def deadly(folder, path):
    """Die on every file named "dead", and once on "unlucky"; interrupt on "interrupt"."""
    if "dead" in path:
        os._exit(1)
    if "unlucky" in path and not (folder / path).exists():
        (folder / path).touch()
        os._exit(1)
    if "interrupt" in path:
        os.kill(os.getpid(), signal.SIGINT)
    return named(path)


def test_row_28_and_37_a_worker_that_dies_costs_only_its_file(tmp_path):
    paths = [f"{number:02}" for number in range(22)]
    paths[3], paths[6], paths[18], paths[20] = "dead", "unlucky-a", "unlucky-b", "interrupt"
    results = list(images._pooled(partial(deadly, tmp_path), iter(paths), 1, 4))
    assert [result.path for result in results] == paths
    assert [result.path for result in results if result.rejection != TOKEN] == ["dead"]
    assert results[3].rejection.reason == "decoder-crashed"
    assert not multiprocessing.active_children()


def test_work_in_flight_is_bounded():
    taken = []
    paths = (taken.append(number) or str(number) for number in range(1000))
    results = images._pooled(named, paths, 1, 3)
    next(results)
    assert len(taken) == (2 * 1 + 2) * 3
    results.close()


def test_workers_that_cannot_start_are_an_error_and_not_a_rejection(monkeypatch):
    monkeypatch.setattr(images, "_ignore_interrupts", partial(os._exit, 1))
    with pytest.raises(ScanError, match="die as they start"):
        list(images._pooled(named, iter("ab"), 1, 1))


def test_running_out_of_memory_is_too_large(tmp_path, monkeypatch):
    def greedy(*_):
        raise MemoryError

    for module, name in ((decode_module, "_decode"), (images, "standardise")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, greedy)
            assert reason(tmp_path, "a.png", FORMATS["PNG"]) == "too-large"


def test_an_unexpected_error_is_damaged_and_an_interrupt_passes(tmp_path, monkeypatch):
    for error in (RecursionError("deep\nsecret"), KeyboardInterrupt()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(decode_module, "_decode", fail)
        if isinstance(error, Exception):
            result = decoded(tmp_path, "a.png", b"x")
            assert result.rejection == Rejection("damaged", "RecursionError: deep")
        else:
            with pytest.raises(KeyboardInterrupt):
                decoded(tmp_path, "a.png", b"x")


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([*FORMATS.values(), npy(NOISE), nifti(NOISE), gzip.compress(nifti(NOISE))]),
    st.data(),
)
def test_altered_bytes_never_raise_anything_but_rejected(data, draw):
    altered = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Half of the changes fall on the header, where they do most.
        end = draw.draw(st.sampled_from([60, len(altered)]))
        altered[draw.draw(st.integers(0, end - 1))] = draw.draw(st.integers(0, 255))
    try:
        _, pixels = decode_module.decode(bytes(altered))
    except Rejected as rejected:
        assert rejected.rejection.reason in REASONS
    else:
        assert pixels.ndim == 2
        assert pixels.dtype == np.float32


def test_every_reason_given_is_documented_and_every_documented_one_given():
    used = set()
    for module in (decode_module, listing_module, images):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "Rejection",
                "Rejected",
            ):
                used |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    assert used | {"embedding"} == set(REASONS)  # the encoder's stage gives that one
    with pytest.raises(ValueError, match="is not one of"):
        Rejection("nonsense", "")


def test_decoded_has_either_pixels_or_a_rejection():
    with pytest.raises(ValueError, match="either"):
        Decoded("a", 0, 0, "", "", None, None)
    with pytest.raises(ValueError, match="either"):
        Decoded("a", 0, 0, "", "", np.zeros((2, 2), np.float32), TOKEN)


def test_workers_start_without_torch_or_nibabel():
    heavy = "{'torch', 'nibabel'} & set(sys.modules)"
    code = f"import sys, deepssim_scan.images; print(sorted({heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == b"[]\n"
