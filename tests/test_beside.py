"""Images that a file holds beside its frames, put there by Pillow, by pydicom and by hand."""

import base64
import gzip
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import nifti, npy, saved, saved_all
from nibabel.nifti1 import Nifti1Extension, Nifti1Image
from PIL import Image, PngImagePlugin, TiffImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from test_dicom import made, written

from deepssim_scan.ingest.decode import beside_frames, decode

MANY = np.random.default_rng(3).integers(0, 256, (3, 24, 20)).astype(np.uint8)
GREY = Image.fromarray(MANY[0])
COLOUR = Image.fromarray(np.moveaxis(MANY, 0, -1).copy())
OTHER = saved(Image.fromarray(MANY[1]), "JPEG")
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def told(data):
    """Decode a file, as before a release; say what is found beside its frames."""
    return beside_frames(data, len(list(decode(data))))


def icon():
    inner = made(MANY[1])
    del inner.file_meta
    return Sequence([inner])


def hiding(dataset, kind):
    """Put a further image into a data set."""
    if kind == "icon":
        dataset.IconImageSequence = icon()
    elif kind == "private":
        middle = Dataset()
        middle.add_new(0x00290010, "LO", "A MAKER")
        middle.add_new(0x00291001, "SQ", icon())
        dataset.add_new(0x00290010, "LO", "A MAKER")
        dataset.add_new(0x00291001, "SQ", Sequence([middle]))
    elif kind == "preview":
        dataset.add_new(0x00290010, "LO", "A MAKER")
        dataset.add_new(0x00291002, "OB", OTHER + bytes(len(OTHER) % 2))
    else:
        bits, position = (1, 0) if kind == "overlay" else (16, 15)
        for number, value in ((0x10, 24), (0x11, 20), (0x100, bits), (0x102, position)):
            dataset.add_new(0x60000000 + number, "US", value)
        if kind == "overlay":
            dataset.add_new(0x60003000, "OW", bytes(60))
    return dataset


def clean():
    yield from (saved(GREY, form) for form in ("PNG", "JPEG", "TIFF", "GIF"))
    yield saved(COLOUR, "JPEG", progressive=True, restart_marker_blocks=1, comment=b"text")
    yield saved(COLOUR, "JPEG", exif=EXIF, icc_profile=bytes(100_000))
    yield saved(COLOUR, "PNG", exif=EXIF)
    yield saved_all(MANY, "MPO")
    yield from (saved_all(MANY, form) for form in ("PNG", "GIF", "TIFF"))
    yield saved(COLOUR, "TIFF", compression="jpeg")
    yield from (npy(MANY[0]), nifti(MANY))
    yield from (written(made(MANY, syntax)) for syntax in SYNTAXES)


@pytest.mark.parametrize("data", list(clean()))
def test_a_file_that_holds_its_frames_alone(data):
    assert told(data) == ""


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "MPO"])
def test_row_63_what_follows_the_end_is_found(form):
    data = saved_all(MANY, form) if form == "MPO" else saved(COLOUR, form)
    assert told(data + bytes(500)) == ""
    for more in (OTHER, saved(GREY, "PNG"), bytes(9) + b"PK\3\4", b"\0\xff"):
        assert told(data + more) == "bytes after its end"


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.integers(1, 70),
    quality=st.integers(1, 100),
    progressive=st.booleans(),
    more=st.binary(max_size=5),
)
def test_a_jpeg_ends_where_its_writer_stopped(seed, side, quality, progressive, more):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, 9, 3)).astype(np.uint8)
    data = saved(Image.fromarray(pixels), "JPEG", quality=quality, progressive=progressive)
    assert bool(beside_frames(data + more, 1)) == any(more)


def test_row_63_thumbnails_and_previews_are_found():
    within = "an image in its metadata"
    assert told(saved(GREY, "JPEG", exif=EXIF + OTHER)) == within
    assert told(saved(GREY, "JPEG", comment=saved(GREY, "GIF"))) == within
    assert told(saved(GREY, "PNG", exif=EXIF + OTHER)) == within
    for tag in (34377, 37724):  # of Photoshop
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[tag], tags.tagtype[tag] = b"8BIM\4\x0c\0\0" + OTHER, 7
        assert told(saved(GREY, "TIFF", tiffinfo=tags)) == within
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[330], tags.tagtype[330] = 8, 4
    assert told(saved(GREY, "TIFF", tiffinfo=tags)) == "directories below its pages"


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_row_63_a_thumbnail_without_a_format_of_its_own_is_found(form):
    """As TIFF has it in EXIF: samples, and a second directory that says where they are."""
    entries = [(256, 20), (257, 24), (259, 1), (273, 80), (279, 480)]
    second = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    second = struct.pack("<H", len(entries)) + second + bytes(4)
    assert told(saved(GREY, form, exif=EXIF)) == ""
    exif = EXIF[:-4] + struct.pack("<I", 14) + second + MANY[1].tobytes()
    assert told(saved(GREY, form, exif=exif)) == "an image in its metadata"


@pytest.mark.parametrize("other", ["JPEG", "PNG", "GIF"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt, compressed"])
def test_row_63_a_thumbnail_that_is_text_is_found(kind, other):
    def with_text(words):
        info = PngImagePlugin.PngInfo()
        if kind.startswith("i"):
            info.add_itxt("XML:com.adobe.xmp", words, zip=kind.endswith("compressed"))
        else:
            info.add_text("preview", words, zip=kind == "zTXt")
        return saved(GREY, "PNG", pnginfo=info)

    def as_xmp(content):
        text = base64.b64encode(content).decode()
        return f"<x:xmpmeta><xmpGImg:image>{text}</xmpGImg:image></x:xmpmeta>"

    harmless, thumbnail = as_xmp(MANY.tobytes()), as_xmp(saved(GREY, other))
    assert told(with_text(harmless)) == ""
    assert told(with_text(thumbnail)) == "an image in its metadata"
    assert told(saved(GREY, "JPEG", xmp=harmless.encode())) == ""
    assert told(saved(GREY, "JPEG", xmp=thumbnail.encode())) == "an image in its metadata"


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "kind", ["icon", "private", "preview", "overlay", "overlay in the samples"]
)
def test_row_63_images_beside_the_samples_of_a_dicom_file_are_found(syntax, kind):
    samples = MANY[0].astype(np.uint16)
    plain = made(samples, syntax, BitsStored=12, HighBit=11)
    assert told(written(plain)) == ""
    hidden = written(hiding(plain, kind))
    expected = "overlays" if kind.startswith("overlay") else "an icon or another image"
    assert told(hidden) == expected


def test_row_63_a_compressed_dicom_file_with_an_icon():
    from pydicom.encaps import encapsulate

    plain = made(MANY[0], JPEGBaseline8Bit, encapsulate([OTHER]))
    assert told(written(plain)) == ""
    assert told(written(hiding(plain, "icon"))) == "an icon or another image"


def test_row_63_a_second_dicom_file_after_the_first():
    first, second = written(made(MANY[0])), written(made(MANY[1]))
    assert beside_frames(first + second[132:], 1) != ""
    assert beside_frames(first + second, 1) != ""


def test_row_63_a_dicom_file_that_is_a_tiff_as_well():
    data = b"II*\0".ljust(128, b"\0") + written(made(MANY[0]))[128:]
    assert told(data) == "another format in its preamble"


def test_a_file_that_cannot_be_looked_through_is_told():
    whole = saved(GREY, "JPEG")
    assert beside_frames(whole[:-2], 1) == "what cannot be looked through"
    assert beside_frames(whole, 2) == "what cannot be looked through"


def test_no_tag_is_told(capfd, caplog):
    dataset = made(MANY[0])
    dataset.PatientName = "QUORTLE^ZYXWV"
    dataset.add_new(0x00290010, "LO", "QUORTLE")
    data = bytearray(written(dataset))
    data[data.index(b"QUORTLE^") - 4 : data.index(b"QUORTLE^") - 2] = b"ZZ"  # an unknown VR
    found = beside_frames(bytes(data), 1)
    assert "QUORTLE" not in found + "".join(capfd.readouterr()) + caplog.text


def test_the_frames_of_a_file_with_more_are_what_they_were():
    data = saved(GREY, "PNG")
    (frame,) = decode(data + OTHER)
    np.testing.assert_array_equal(frame.pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_an_image_outside_of_the_pages_of_a_tiff_is_found():
    for options in ({}, {"compression": "jpeg"}, {"compression": "tiff_lzw"}):
        for image in (GREY, COLOUR):
            data = saved(image, "TIFF", **options)
            assert told(data) == ""
            assert told(data + OTHER) == "an image outside of its pages"
            assert told(data + saved(GREY, "PNG")) == "an image outside of its pages"


@pytest.mark.parametrize("zipped", [False, True])
def test_an_image_before_the_samples_of_a_nifti_is_found(zipped):
    def with_extension(content):
        made = Nifti1Image(MANY[0], np.eye(4))
        made.header.extensions.append(Nifti1Extension("comment", content))
        return gzip.compress(made.to_bytes()) if zipped else made.to_bytes()

    assert told(with_extension(b"by a scanner")) == ""
    for other in (OTHER, saved(GREY, "PNG"), b"\xe0\x7f\x10\0OW"):
        assert told(with_extension(b"by" + other)) == "an image in its metadata"
