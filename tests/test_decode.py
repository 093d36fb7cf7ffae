"""PNG, JPEG, TIFF and GIF, and what holds for every format.

Each test is named after its row in the table of bad inputs, where it has one.
"""

import ast
import gzip
import io
import logging
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import (
    ALPHA,
    DEEP,
    FORMATS,
    NOISE,
    RGB,
    STACK,
    WEIGHTS,
    chunk,
    nifti,
    npy,
    npz,
    png,
    saved,
    saved_all,
    tiff,
)
from PIL import Image, ImageFile, TiffImagePlugin

from deepssim_scan.errors import InputError
from deepssim_scan.ingest import decode as package
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode import decode
from deepssim_scan.ingest.decode import pillow as pillow_module
from deepssim_scan.ingest.decode.values import MAX_FRAMES
from deepssim_scan.ingest.rejection import REASONS, Rejected, Rejection


def one(data, options=ReadOptions()):
    """Decode a file of one plane."""
    (frame,) = decode(data, options)
    assert frame.name == ""
    assert frame.pixels.dtype == np.float32
    return frame


def reason(data, options=ReadOptions()):
    """Decode until it is rejected; check what holds for every rejection."""
    with pytest.raises(Rejected) as caught:
        list(decode(data, options))
    assert caught.value.__context__ is None
    assert "\n" not in caught.value.rejection.detail
    assert str(caught.value) == f"{caught.value.rejection.reason}: {caught.value.rejection.detail}"
    return caught.value.rejection.reason


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9, -13])
def test_row_01_truncated(form, keep):
    data = FORMATS[form]
    part = data[:keep] if keep < 0 else data[: int(len(data) * keep)]
    assert one(data).pixels.shape == NOISE.shape
    assert reason(part) == "damaged"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_row_01_truncated_compressed_tiff(compression):
    data = saved(Image.fromarray(NOISE), "TIFF", compression=compression)
    assert one(data).pixels.shape == NOISE.shape
    assert reason(data[: len(data) // 2]) == "damaged"


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("PNG", {}),
        ("PNG", {"default_image": True}),
        ("MPO", {}),
    ],
)
def test_row_01_a_prefix_gives_all_frames_or_none(form, options):
    data = saved_all(STACK, form, **options)
    whole = [frame.pixels for frame in decode(data)]
    assert len(whole) == 3
    for end in range(len(data)):
        try:
            part = [frame.pixels for frame in decode(data[:end])]
        except Rejected:
            continue
        # Only what ends the file may be missing: a checksum of nothing, an unused tag.
        assert end >= len(data) - 16
        np.testing.assert_array_equal(part, whole)


def test_row_01_png_with_fewer_rows_than_its_header_says():
    for size in ((91, 70), (180, 70)):
        with Image.open(io.BytesIO(png(NOISE, 8, 0, size=size))) as image:
            image.load()  # Pillow alone leaves them black
        assert reason(png(NOISE, 8, 0, size=size)) == "damaged"
    np.testing.assert_array_equal(one(png(NOISE, 8, 0)).pixels, NOISE)


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_row_01_interlaced_png_is_counted_pass_by_pass(bits):
    # Figure 4 of the PNG specification: the pass in which each pixel of a square of 8 is sent.
    square = [[1, 6, 4, 6, 2, 6, 4, 6], [7] * 8, [5, 6] * 4, [7] * 8]
    square += [[3, 6, 4, 6, 3, 6, 4, 6], [7] * 8, [5, 6] * 4, [7] * 8]
    for height in range(1, 12):
        for width in range(1, 12):
            passes = np.array([[square[y % 8][x % 8] for x in range(width)] for y in range(height)])
            sent = [np.count_nonzero(passes == step, 1) for step in range(1, 8)]
            rows = b"".join(
                bytes(1 + -(-int(pixels) * bits // 8)) for row in sent for pixels in row if pixels
            )
            data = png(np.zeros((1, 0), np.uint8), bits, 0, size=(height, width), interlaced=1)
            empty = chunk(b"IDAT", zlib.compress(b"\0"))
            assert empty in data
            whole = data.replace(empty, chunk(b"IDAT", zlib.compress(rows)))
            short = data.replace(empty, chunk(b"IDAT", zlib.compress(rows[:-1])))
            assert one(whole).pixels.shape == (height, width)
            assert reason(short) == "damaged"


def strips(samples, kept, compression):
    """Write a TIFF of strips of 10 rows, of which the first few are there.

    samples (H, W) are grey, those of (3, H, W) colour, a plane after the other.
    """
    planes, bits = np.atleast_3d(samples.T).T, struct.pack("<3H", 8, 8, 8)
    (count, height, width), rows = planes.shape, range(0, samples.shape[-2], 10)
    raw = [plane[row : row + 10].tobytes() for plane in planes for row in rows][:kept]
    parts = [zlib.compress(part) if compression == 8 else part for part in raw]
    offsets = [8 + sum(map(len, parts[:number])) for number in range(kept)]
    lists = struct.pack(f"<{2 * kept}I", *offsets, *map(len, parts))
    at = 8 + sum(map(len, parts))
    values = {273: (4, kept, at), 279: (4, kept, at + 4 * kept)}
    if kept == 1:
        values = {273: (4, 1, offsets[0]), 279: (4, 1, len(parts[0]))}
    plain = {256: width, 257: height, 258: 8, 259: compression, 262: 1 if count == 1 else 2}
    plain |= {277: count, 278: 10, 284: 1 if count == 1 else 2}
    values |= {tag: (3, 1, value) for tag, value in plain.items()}
    if count == 3:
        values[258], lists = (3, 3, at + len(lists)), lists + bits
    entries = b"".join(struct.pack("<HHII", tag, *values[tag]) for tag in sorted(values))
    ifd = struct.pack("<H", len(values)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", at + len(lists)) + b"".join(parts) + lists + ifd


@pytest.mark.parametrize("compression", [1, 8])
def test_row_01_tiff_without_all_of_its_strips(compression, capfd):
    np.testing.assert_array_equal(one(strips(NOISE, 9, compression)).pixels, NOISE)
    for kept in (8, 1):
        assert reason(strips(NOISE, kept, compression)) == "damaged"


@pytest.mark.parametrize("compression", [1, 8])
def test_row_09_colour_in_planes_is_whole_or_damaged(compression, capfd):
    """Libtiff gives all planes of compressed ones as one piece."""
    frame = one(strips(np.moveaxis(RGB, 2, 0), 6, compression))
    np.testing.assert_allclose(frame.pixels, RGB @ WEIGHTS, rtol=1e-6)
    for kept in (5, 2, 1):
        assert reason(strips(np.moveaxis(RGB, 2, 0), kept, compression)) == "damaged"


@pytest.mark.parametrize("form", FORMATS)
def test_row_02_another_library_allows_half_images(monkeypatch, form):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    limit = Image.MAX_IMAGE_PIXELS
    assert reason(FORMATS[form][: len(FORMATS[form]) // 2]) == "damaged"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert limit == Image.MAX_IMAGE_PIXELS


def test_between_two_frames_other_code_finds_everything_as_it_was(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    logger = logging.getLogger("PIL")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    before = Image.MAX_IMAGE_PIXELS, warnings.filters[:]
    said = logger.disabled, logger.handlers, logger.propagate
    for _ in decode(saved_all(STACK, "TIFF"), ReadOptions(max_pixels=600)):
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
        assert before == (Image.MAX_IMAGE_PIXELS, warnings.filters)
        assert said == (logger.disabled, logger.handlers, logger.propagate)


def test_no_logger_of_a_decoder_is_heard_while_a_frame_is_decoded(monkeypatch, capfd, caplog):
    loggers = [logging.getLogger(f"PIL{name}") for name in ("", ".PngImagePlugin")]
    heard = logging.StreamHandler()

    def told(*_):
        for logger in loggers:
            logger.critical("a patient")

    monkeypatch.setattr(loggers[0], "handlers", [heard])
    told()
    assert (len(caplog.records), capfd.readouterr().err.count("a patient")) == (2, 2)
    caplog.clear()
    monkeypatch.setattr(pillow_module, "_check_strips", told)
    assert len([*decode(FORMATS["PNG"])]) == 1
    assert (caplog.records, capfd.readouterr().err) == ([], "")


def test_row_03_png_with_a_wrong_checksum():
    data = bytearray(FORMATS["PNG"])
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    data[start + 4 + length] ^= 1
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow alone does not see it
    assert reason(bytes(data)) == "damaged"


def test_row_04_bomb_of_100_megapixels_and_the_limit():
    black = np.zeros((10_000, 1250), np.uint8)
    assert reason(png(black, 1, 0, size=(10_000, 10_000))) == "too-large"
    exact, less = ReadOptions(max_pixels=NOISE.size), ReadOptions(max_pixels=NOISE.size - 1)
    gif = saved(Image.fromarray(NOISE), "GIF")
    for data in (*FORMATS.values(), gif, npy(NOISE), npz(NOISE), nifti(NOISE)):
        assert one(data, exact).pixels.size == NOISE.size
        assert reason(data, less) == "too-large"
    volume = np.stack([NOISE, NOISE])
    for data in (npy(volume), npz(volume), nifti(volume.T)):
        assert len(list(decode(data, exact))) == 2
        assert reason(data, less) == "too-large"


def test_row_04_the_limit_holds_for_every_frame_of_a_file():
    pages = [STACK[0], STACK[1], np.tile(STACK[2], (2, 1))]
    for form in ("TIFF", "MPO"):
        data = saved_all(pages, form)
        assert len(list(decode(data, ReadOptions(max_pixels=1200)))) == 3
        assert reason(data, ReadOptions(max_pixels=1199)) == "too-large"


def test_row_05_huge_empty_and_foreign():
    single = np.zeros((1, 1), np.uint8)
    assert reason(png(single, 8, 0, size=(20_000, 20_000))) == "too-large"
    assert reason(png(single, 8, 0, size=(0, 0))) == "damaged"
    assert reason(b"") == "empty-file"
    assert reason(b"<html>" + b" " * 999) == "unknown-format"
    assert reason(b"\x89") == "unknown-format"


@pytest.mark.parametrize("form", ["EPS", "BMP", "WEBP", "PPM", "ICO"])
def test_row_06_another_format(form):
    assert reason(saved(Image.fromarray(NOISE), form)) == "unknown-format"


def test_the_format_is_told_by_content():
    for data, mode in (
        (FORMATS["PNG"], "L"),
        (FORMATS["TIFF"], "L"),
        (saved(Image.fromarray(NOISE), "GIF"), "L"),
        (npy(NOISE), "npy:uint8"),
        (npz(NOISE), "npz:uint8"),
        (nifti(NOISE.T), "nifti:uint8"),
        (gzip.compress(nifti(NOISE.T)), "nifti:uint8"),
    ):
        frame = one(data)
        assert (frame.mode, frame.subject) == (mode, "")
        np.testing.assert_array_equal(frame.pixels, NOISE)


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
def test_row_07_sixteen_bit_grey_keeps_its_range(data):
    np.testing.assert_array_equal(one(data).pixels, DEEP)


def test_row_07_two_that_differ_above_255_stay_two():
    for array in (DEEP | 0x4000, DEEP | 0x8000):
        for form in ("PNG", "TIFF"):
            np.testing.assert_array_equal(one(saved(Image.fromarray(array), form)).pixels, array)


@pytest.mark.parametrize("dtype", ["i1", "<u4", "<i2", ">i2", ">i4", "<i4"])
def test_row_07_tiff_signs(dtype):
    dtype = np.dtype(dtype)
    info = np.iinfo(dtype)
    samples = np.linspace(float(info.min), float(info.max) * 0.99, 63).reshape(9, 7).astype(dtype)
    frame = one(tiff(samples, 2 if dtype.kind == "i" else 1))
    np.testing.assert_array_equal(frame.pixels, samples.astype(np.float32))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])
def test_row_07_a_deflated_tiff_has_the_samples_of_its_byte_order(kind, order):
    """Pillow swaps the bytes of big-endian ones twice, but for 16-bit ones without a sign."""
    samples = (DEEP // 3).astype(order + kind)
    frame = one(tiff(samples, "uif".index(kind[0]) + 1, deflated=True))
    np.testing.assert_array_equal(frame.pixels, DEEP // 3)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_row_07_white_is_zero_is_inverted_at_8_and_at_16_bits(dtype):
    samples = DEEP.astype(dtype)
    white = np.iinfo(dtype).max
    np.testing.assert_array_equal(one(tiff(samples, photometric=0)).pixels, white - samples)


def test_row_09_colour_is_luminance():
    frame = one(saved(Image.fromarray(RGB), "PNG"))
    assert frame.mode == "RGB"
    np.testing.assert_allclose(frame.pixels, RGB @ WEIGHTS, rtol=1e-6)


def test_row_09_grey_saved_as_colour_is_the_same_image():
    image = Image.fromarray(NOISE)
    for mode in ("RGB", "RGBA", "LA", "P"):
        frame = one(saved(image.convert(mode), "PNG"))
        assert frame.mode == mode
        np.testing.assert_array_equal(frame.pixels, NOISE)


def test_row_09_alpha_is_composited_over_black():
    rgba = np.dstack([RGB, ALPHA])
    for form in ("PNG", "TIFF"):
        frame = one(saved(Image.fromarray(rgba), form))
        assert frame.mode == "RGBA"
        np.testing.assert_allclose(frame.pixels, RGB @ WEIGHTS * ALPHA / 255, rtol=1e-6)
    la = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(ALPHA)])
    np.testing.assert_allclose(one(saved(la, "PNG")).pixels, RGB[..., 0] * (ALPHA / 255), rtol=1e-6)


@pytest.mark.parametrize("samples", [NOISE, DEEP])
def test_row_09_a_transparent_grey_is_black(samples):
    key = int(samples[2, 2])
    data = png(
        samples.astype(f">u{samples.itemsize}"),
        samples.itemsize * 8,
        0,
        before=chunk(b"tRNS", struct.pack(">H", key)),
    )
    np.testing.assert_array_equal(one(data).pixels, np.where(samples == key, 0, samples))


def test_row_09_palette_with_transparency_cmyk_and_one_bit():
    palette = Image.fromarray(RGB).quantize(16)
    opaque = (np.asarray(palette) != 3) * (np.asarray(palette.convert("RGB")) @ WEIGHTS)
    for form in ("PNG", "GIF"):
        frame = one(saved(palette, form, transparency=3))
        assert frame.mode == {"PNG": "P", "GIF": "RGBA"}[form]
        np.testing.assert_allclose(frame.pixels, opaque, rtol=1e-6)
    frame = one(saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"))
    assert frame.mode == "CMYK"
    np.testing.assert_allclose(frame.pixels, RGB @ WEIGHTS, rtol=1e-6)
    for form in ("PNG", "TIFF"):
        frame = one(saved(Image.fromarray(ALPHA > 99), form))
        assert frame.mode == "1"
        np.testing.assert_array_equal(frame.pixels, (ALPHA > 99) * 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_row_09_a_channel_of_a_tiff_that_no_one_would_see_is_refused(mode):
    """Pillow leaves out a channel that is not said to be alpha."""
    data = saved(Image.fromarray(ALPHA).convert(mode), "TIFF")
    alpha, other = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 0))
    assert data.count(alpha) == 1
    assert one(data).mode == mode
    assert reason(data.replace(alpha, other)) == "unsupported"


def test_row_09_deep_colour_that_would_lose_bits_is_refused():
    deep = np.random.default_rng(1).integers(0, 65536, (5, 6, 4)).astype(">u2")
    for channels, colour in ((3, 2), (2, 4), (4, 6)):
        assert reason(png(np.ascontiguousarray(deep[..., :channels]), 16, colour)) == "unsupported"
    assert reason(saved(Image.fromarray(RGB).convert("LAB"), "TIFF")) == "unsupported"
    packed = np.zeros((12, 10), np.uint8)
    two_bit = png(packed, 2, 0, size=(12, 40), before=chunk(b"tRNS", b"\0\1"))
    assert reason(two_bit) == "unsupported"


OPS = [lambda a: a, np.fliplr, lambda a: a[::-1, ::-1], np.flipud, np.transpose]
OPS += [lambda a: np.rot90(a, -1), lambda a: a[::-1, ::-1].T, np.rot90]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("samples", [NOISE, DEEP])
def test_orientation_is_applied_alike_in_every_format(orientation, samples):
    exif = Image.Exif()
    exif[274] = orientation
    for form in ("PNG", "TIFF"):
        frame = one(saved(Image.fromarray(samples), form, exif=exif))
        np.testing.assert_array_equal(frame.pixels, OPS[orientation - 1](samples))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "MPO"])
def test_orientation_is_applied_to_every_frame(form):
    exif = Image.Exif()
    exif[274] = 6
    data = saved_all(STACK, form, exif=exif)
    turned = list(decode(data))
    upright = list(decode(saved_all(STACK, form)))
    assert len(turned) == 3
    # An MPO's other images carry their own tags, of which Pillow writes none.
    count = 1 if form == "MPO" else 3
    for one_turned, plain in zip(turned[:count], upright[:count], strict=True):
        np.testing.assert_array_equal(one_turned.pixels, np.rot90(plain.pixels, -1))


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "MPO"])
def test_row_10_one_frame_a_page(form):
    frames = list(decode(saved_all(STACK, form)))
    assert [frame.name for frame in frames] == ["frame=0", "frame=1", "frame=2"]
    if form == "MPO":  # lossy; the oracle is each page as a JPEG of its own
        pages = [one(saved(Image.fromarray(page), "JPEG")).pixels for page in STACK]
    else:
        pages = STACK
    np.testing.assert_array_equal([frame.pixels for frame in frames], pages)


def test_row_10_frames_of_several_sizes_and_kinds():
    pages = [Image.fromarray(NOISE), Image.fromarray(DEEP), Image.fromarray(RGB)]
    frames = list(decode(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])))
    assert [frame.mode for frame in frames] == ["L", "I;16", "RGB"]
    for frame, samples in zip(frames, (NOISE, DEEP, RGB @ WEIGHTS), strict=True):
        np.testing.assert_allclose(frame.pixels, samples, rtol=1e-6)


def test_row_10_an_apng_of_deep_grey_and_its_default_image():
    deep = np.random.default_rng(2).integers(0, 65536, (3, 9, 7)).astype(np.uint16)
    for options in ({}, {"default_image": True}):
        frames = list(decode(saved_all(deep, "PNG", **options)))
        np.testing.assert_array_equal([frame.pixels for frame in frames], deep)


@pytest.mark.parametrize("form", ["GIF", "PNG"])
def test_row_10_frames_that_change_a_part_are_composed(form):
    pages = [STACK[0], STACK[0].copy(), STACK[0].copy()]
    pages[1][5:9, 3:7] = 200
    pages[2][20:, :4] = 7
    data = saved_all(pages, form)
    assert len(data) < 2.5 * len(saved(Image.fromarray(pages[0]), form))  # the rest is not there
    np.testing.assert_array_equal([frame.pixels for frame in decode(data)], pages)


def test_row_10_orientation_does_not_disturb_the_frames_drawn_over_it():
    pages = [STACK[0], STACK[0].copy()]
    pages[1][5:9, 3:7] = 200
    exif = Image.Exif()
    exif[274] = 6
    frames = list(decode(saved_all(pages, "PNG", exif=exif)))
    np.testing.assert_array_equal([np.rot90(frame.pixels) for frame in frames], pages)


def test_row_10_what_the_file_holds_and_what_can_be_read_must_agree():
    apng = saved_all(STACK, "PNG")
    count = apng.index(b"acTL") + 4
    for declared in (1, 2, 4):
        body = struct.pack(">II", declared, 0)
        wrong = apng[: count - 8] + chunk(b"acTL", body) + apng[count + 12 :]
        assert reason(wrong) == "damaged"
    without = apng[: count - 8] + apng[count + 12 :]
    assert reason(without) == "damaged"
    gif = saved_all(STACK, "GIF")
    assert gif.endswith(b";")
    assert reason(gif[:-1]) == "damaged"
    assert reason(gif[:-1] + b"?") == "damaged"
    order = saved_all(STACK, "TIFF")
    first = struct.unpack_from("<I", order, 4)[0]
    entries = struct.unpack_from("<H", order, first)[0]
    loop = bytearray(order)
    struct.pack_into("<I", loop, first + 2 + 12 * entries, first)
    assert reason(bytes(loop)) == "damaged"


def test_row_10_a_malformed_mpo_is_not_its_first_image():
    data = bytearray(saved_all(STACK, "MPO"))
    entries = data.index(b"MPF\0") + 4
    data[entries : entries + 4] = b"XX*\0"
    with pytest.warns(UserWarning, match="malformed MPO"), Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"  # Pillow alone goes on with the first
    assert reason(bytes(data)) == "damaged"


@pytest.mark.parametrize(("subfile", "taken"), [(0, True), (1, False)])
def test_row_10_a_raw_photograph_is_not_its_thumbnail(subfile, taken):
    """SubIFDs below a full image are its smaller versions; below a thumbnail, the image itself."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254], tags[330] = subfile, 8
    tags.tagtype[330] = 4
    data = saved(Image.fromarray(NOISE), "TIFF", tiffinfo=tags)
    if taken:
        np.testing.assert_array_equal(one(data).pixels, NOISE)
    else:
        assert reason(data) == "unsupported"


@pytest.mark.parametrize("seed", range(8))
def test_row_10_a_grey_gif_keeps_its_levels_whatever_palettes_its_frames_have(seed):
    """Pillow writes a palette of its own for a frame that lacks a level, and reads indices."""
    stack = np.random.default_rng(seed).integers(0, 256, (3, 20, 24), np.uint8)
    frames = list(decode(saved_all(stack, "GIF")))
    np.testing.assert_array_equal([frame.pixels for frame in frames], stack)


@pytest.mark.parametrize(("images", "taken"), [(1, True), (2, False), (300, False)])
def test_row_10_an_imagej_stack_is_not_its_first_image(images, taken):
    """ImageJ writes stacks over 4 GB with one directory, and the other images after it."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = f"ImageJ=1.54f\nimages={images}\nslices={images}\n"
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "TIFF", tiffinfo=tags)
    if taken:
        assert len(list(decode(stream.getvalue()))) == 1
    else:
        with pytest.raises(Rejected, match=f"an ImageJ stack of {images} images"):
            list(decode(stream.getvalue()))


@pytest.mark.parametrize(
    ("shape", "taken"),
    [("90, 70", True), ("1, 90, 70", True), ("5, 90, 70", False), ("1, 5, 90, 70", False)],
)
def test_row_10_a_tifffile_stack_is_not_its_first_image(shape, taken):
    """With `truncate=True` it writes one directory for all images."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = f'{{"shape": [{shape}], "truncated": true}}'
    data = saved(Image.fromarray(NOISE), "TIFF", tiffinfo=tags)
    if taken:
        np.testing.assert_array_equal(one(data).pixels, NOISE)
    else:
        with pytest.raises(Rejected, match=f"a tifffile stack of shape {shape}"):
            list(decode(data))


@pytest.mark.parametrize(("planes", "taken"), [(1, True), (16, False)])
def test_row_10_a_volume_in_one_tiff_image_is_not_one_of_its_planes(planes, taken):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[32997], tags.tagtype[32997] = planes, 4
    data = saved(Image.fromarray(NOISE), "TIFF", tiffinfo=tags)
    if taken:
        np.testing.assert_array_equal(one(data).pixels, NOISE)
    else:
        with pytest.raises(Rejected, match=f"unsupported: a volume of {planes} planes"):
            list(decode(data))


@pytest.mark.parametrize("planes", [1, 3])
def test_row_62_a_metamorph_stack_is_rejected(planes):
    """Its planes follow one another in the strips of one directory; readers show the first."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[33629] = (TiffImagePlugin.IFDRational(1, 1),) * 3 * planes
    tags.tagtype[33629] = 5
    data = saved(Image.fromarray(NOISE), "TIFF", tiffinfo=tags)
    with pytest.raises(Rejected, match="a MetaMorph stack") as caught:
        list(decode(data))
    assert caught.value.rejection.reason == "unsupported"


def test_row_10_more_frames_than_the_limit(monkeypatch):
    many = np.zeros((MAX_FRAMES + 1, 1, 1), np.uint8)
    assert reason(npy(np.zeros((MAX_FRAMES + 1, 2, 2), np.uint8))) == "too-large"
    assert reason(nifti(np.zeros((2, 2, MAX_FRAMES + 1), np.uint8))) == "too-large"
    assert len(list(decode(nifti(np.zeros((2, 2, MAX_FRAMES), np.uint8))))) == MAX_FRAMES
    named = {f"a{number}": np.zeros((1, 1), np.uint8) for number in range(MAX_FRAMES + 1)}
    assert reason(npz(**named, compressed=False)) == "too-large"
    gif = saved(Image.fromarray(many[0]), "GIF")
    block = gif[gif.index(b",") : -1]
    assert reason(gif[:-1] + MAX_FRAMES * block + b";") == "too-large"
    assert len(list(decode(gif[:-1] + 9 * block + b";"))) == 10
    monkeypatch.setattr(pillow_module, "MAX_FRAMES", 2)
    for form in ("TIFF", "GIF", "PNG", "MPO"):
        assert reason(saved_all(STACK, form)) == "too-large"
        assert len(list(decode(saved_all(STACK[:2], form)))) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"axis": 3},
        {"axis": -1},
        {"axis": True},
        {"axis": "1"},
        {"slices": ""},
        {"slices": "5"},
        {"slices": "-1:5"},
        {"slices": "5:5"},
        {"slices": "0.5:0.2"},
        {"slices": "0.0:1.5"},
        {"slices": "1:2:3"},
        {"slices": "a:b"},
        {"slices": "1e1:20"},
        {"slices": "\u0661:9"},
        {"window": "40"},
        {"window": "40,0"},
        {"window": "40,-1"},
        {"window": "nan,4"},
        {"window": "4,inf"},
        {"window": "1,2,3"},
        {"window": "File"},
        {"max_pixels": 0},
        {"max_pixels": 1.5},
        {"max_pixels": True},
    ],
)
def test_read_options_check_themselves(options):
    (name,) = options
    with pytest.raises(InputError, match=name):
        ReadOptions(**options)


def test_read_options_hide_their_key():
    assert "canary" not in repr(ReadOptions(subject_key=b"canary of many bytes"))


def test_running_out_of_memory_is_too_large(monkeypatch):
    def greedy(*_):
        raise MemoryError

    monkeypatch.setattr(pillow_module, "_pixels", greedy)
    assert reason(FORMATS["PNG"]) == "too-large"


def test_an_unexpected_error_is_damaged_and_an_interrupt_passes(monkeypatch):
    for error in (RecursionError("deep\nsecret"), KeyboardInterrupt()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(pillow_module, "_pixels", fail)
        if isinstance(error, Exception):
            with pytest.raises(Rejected) as caught:
                list(decode(FORMATS["PNG"]))
            assert caught.value.rejection == Rejection("damaged", "RecursionError: deep")
        else:
            with pytest.raises(KeyboardInterrupt):
                list(decode(FORMATS["PNG"]))


def test_frames_come_one_at_a_time():
    volume = np.zeros((200, 500, 500), np.uint8)
    data = npy(volume)
    del volume
    tracemalloc.start()
    try:
        assert sum(frame.pixels.size for frame in decode(data)) == 200 * 500 * 500
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # all of them are 200 MB
    finally:
        tracemalloc.stop()


SEEDS = [
    *FORMATS.values(),
    *(saved_all(STACK, form) for form in ("TIFF", "GIF", "PNG", "MPO")),
    saved_all(STACK, "TIFF", compression="tiff_lzw"),
    npy(NOISE),
    npy(STACK),
    npz(STACK, one=NOISE),
    nifti(NOISE),
    nifti(STACK),
    gzip.compress(nifti(STACK)),
]


def altered(data, draw):
    """Change up to four bytes, half of the time in the first 60, where they do most."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([60, len(changed)]))
        changed[draw(st.integers(0, end - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.sampled_from([len(changed), draw(st.integers(0, 4000))]))])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(SEEDS), st.data())
def test_altered_bytes_raise_nothing_but_rejected_and_take_little_memory(data, draw):
    tracemalloc.start()
    try:
        frames = list(decode(altered(data, draw.draw), ReadOptions(max_pixels=100_000)))
    except Rejected as rejected:
        assert rejected.rejection.reason in REASONS
    else:
        assert frames
        for frame in frames:
            assert frame.pixels.ndim == 2
            assert frame.pixels.dtype == np.float32
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000


def test_headers_that_lie_allocate_nothing(tmp_path):
    """In a process that may take 300 MB more than it has: Pillow's memory is not traced."""
    black = np.zeros((1, 1), np.uint8)
    lies = [png(black, 8, 0, size=(60_000, 60_000))]
    for offset, value in ((40, (3, 30_000, 30_000, 2)), (40, (3, 1000, 1000, 2000))):
        lie = bytearray(nifti(STACK))
        lie[offset : offset + 8] = struct.pack("<hhhh", *value)
        lies += [bytes(lie), gzip.compress(bytes(lie))]
    header = b"{'descr': '<u1', 'fortran_order': False, 'shape': (1000, 1000, 2000), }"
    lies.append(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    gif = bytearray(saved(Image.fromarray(NOISE), "GIF"))
    gif[6:10] = b"\xff" * 4
    lies.append(bytes(gif))
    width = struct.pack("<HHIH", 256, 3, 1, 7)
    wide = tiff(DEEP.astype("<u2"))
    assert width in wide
    lies.append(wide.replace(width, struct.pack("<HHIH", 256, 3, 1, 60_000)))
    for number, lie in enumerate(lies):
        (tmp_path / f"{number:02}").write_bytes(lie)
    code = f"""
import pathlib, resource, nibabel, numpy
from deepssim_scan.ingest.decode import decode
from deepssim_scan.ingest.rejection import Rejected
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 300_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
    try:
        print(len(list(decode(path.read_bytes()))))
    except Rejected as error:
        print(error.rejection.reason, "memory" in error.rejection.detail)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answers = run.stdout.splitlines()
    assert len(answers) == len(lies)
    assert set(answers) <= {"too-large False", "bad-array False", "damaged False"}


def test_every_reason_given_here_is_documented():
    used = set()
    for path in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if name in ("Rejection", "Rejected") and isinstance(node.args[0], ast.Constant):
                used.add(node.args[0].value)
    assert used <= set(REASONS)
    assert used >= {"bad-array", "damaged", "executable", "no-decoder", "no-pixels", "unsupported"}
    with pytest.raises(ValueError, match="is not one of"):
        Rejection("nonsense", "")


def test_decoding_starts_without_what_few_files_need():
    heavy = "{'torch', 'nibabel', 'pydicom'} & set(sys.modules)"
    code = f"import sys, deepssim_scan.ingest.decode; print(sorted({heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == b"[]\n"
