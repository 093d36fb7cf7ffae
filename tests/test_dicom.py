"""DICOM, against pydicom's own pixel_array on its own files, and against values by hand.

Each test is named after its row in the table of bad inputs, where it has one.
"""

import hashlib
import hmac
import io
import logging
import struct
import traceback
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import RGB, WEIGHTS, saved
from pictures import drawn
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode import decode, dicom_tags
from deepssim_scan.ingest.decode.values import MAX_FRAMES
from deepssim_scan.ingest.rejection import REASONS, Rejected
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query

CANARY = "CANARY^SECRET"
FILES = {
    path.name: path
    for path in sorted((Path(pydicom.__file__).parent / "data").rglob("*"))
    if path.is_file() and path.read_bytes()[128:132] == b"DICM"
}
CT = np.random.default_rng(3).integers(-1000, 1000, (8, 6)).astype(np.int16)
MANY = np.random.default_rng(4).integers(0, 4096, (3, 8, 6)).astype(np.uint16)


def one(data, **options):
    (frame,) = decode(data, ReadOptions(**options))
    assert frame.name == ""
    assert frame.pixels.dtype == np.float32
    return frame.pixels


def several(data, **options):
    frames = list(decode(data, ReadOptions(**options)))
    assert [frame.name for frame in frames] == [f"frame={n}" for n in range(len(frames))]
    return [frame.pixels for frame in frames]


def reason(data, **options):
    """Decode until it is rejected; check what holds for every rejection of DICOM."""
    with pytest.raises(Rejected) as caught:
        list(decode(data, ReadOptions(**options)))
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return caught.value.rejection.reason


def item(**tags):
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def made(samples, syntax=ExplicitVRLittleEndian, encoded=None, **tags):
    """Build a dataset of samples ([frames,] H, W) or, with SamplesPerPixel=3, (H, W, 3)."""
    height, width = samples.shape[:2] if tags.get("SamplesPerPixel") == 3 else samples.shape[-2:]
    dataset = item(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        SOPInstanceUID="1.2.3",
        Rows=height,
        Columns=width,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=8 * samples.itemsize,
        BitsStored=8 * samples.itemsize,
        HighBit=8 * samples.itemsize - 1,
        PixelRepresentation=int(samples.dtype.kind == "i"),
    )
    if samples.ndim == 3 and tags.get("SamplesPerPixel") != 3:
        dataset.NumberOfFrames = len(samples)
    for name, value in tags.items():
        setattr(dataset, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = (raw + b"\0" * (len(raw) % 2)) if encoded is None else encoded
    dataset["PixelData"].VR = "OB" if encoded is not None or samples.itemsize == 1 else "OW"
    dataset["PixelData"].is_undefined_length = encoded is not None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def written(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom(samples, syntax=ExplicitVRLittleEndian, encoded=None, **tags):
    return written(made(samples, syntax, encoded, **tags))


def shown(path):
    """What a file's frames are, from pydicom's pixel_array and the tags: the oracle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax and "pylibjpeg" in get_decoder(syntax).available_plugins:
            dataset.pixel_array_options(decoding_plugin="pylibjpeg")
        samples = dataset.pixel_array
        count = int(dataset.get("NumberOfFrames", 1) or 1)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        samples = apply_color_lut(samples, dataset)
    stack = samples if count > 1 else samples[None]
    if stack.ndim == 4:
        return stack @ WEIGHTS
    assert "ModalityLUTSequence" not in dataset
    slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    values = stack.astype(np.float64) * float(slope) + float(intercept)
    values = -values if dataset.PhotometricInterpretation == "MONOCHROME1" else values
    if "PixelPaddingValue" in dataset:
        for frame, padded in zip(values, stack == dataset.PixelPaddingValue, strict=True):
            frame[padded] = frame[~padded].min()
    return values


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"JPEG-lossy.dcm"}))
def test_every_file_that_pydicom_ships_gives_its_frames_or_a_rejection(name, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "pydicom")
    try:
        frames = list(decode(FILES[name].read_bytes()))
    except Rejected as rejected:
        assert rejected.rejection.reason in ("no-pixels", "damaged")
        assert not caplog.records
        caplog.set_level(logging.CRITICAL, "pydicom")
        with pytest.raises((AttributeError, ValueError, RuntimeError)):
            shown(FILES[name])
        return
    assert not caplog.records
    expected = shown(FILES[name])
    assert len(frames) == len(expected)
    for frame, values in zip(frames, expected, strict=True):
        np.testing.assert_allclose(frame.pixels, values, rtol=1e-6, atol=1e-4)


def test_the_files_that_pydicom_ships_are_there_and_of_many_syntaxes():
    syntaxes = set()
    for path in FILES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        syntaxes.add(meta.get("TransferSyntaxUID"))
    assert len(FILES) > 120
    assert len(syntaxes - {None}) >= 10


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_native_samples(syntax):
    np.testing.assert_array_equal(one(dicom(CT, syntax)), CT)
    np.testing.assert_array_equal(several(dicom(MANY, syntax)), MANY)
    bytes_ = MANY.astype(np.uint8)
    np.testing.assert_array_equal(several(dicom(bytes_, syntax)), bytes_)


def test_unused_upper_bits_do_not_count():
    dirty = MANY[0] | 0xA000
    data = dicom(dirty, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(one(data), MANY[0])
    assert reason(dicom(MANY[0], BitsStored=12, HighBit=15)) == "unsupported"


def test_a_bit_a_pixel_and_floats():
    bits = (MANY > 2000).astype(np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    data = made(bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    data.PixelData = packed
    np.testing.assert_array_equal(several(written(data)), bits)
    values = CT.astype(np.float32) / 7
    floats = made(values)
    floats.FloatPixelData = floats.PixelData
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(floats, name)
    np.testing.assert_array_equal(one(written(floats)), values)


def test_rescale_in_float():
    data = dicom(CT, RescaleSlope="0.25", RescaleIntercept="-1024.5")
    np.testing.assert_array_equal(one(data), CT * 0.25 - 1024.5)
    for slope, intercept in (("0", "1"), ("NaN", "0"), ("1", "inf")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = dicom(CT, RescaleSlope=slope, RescaleIntercept=intercept)
        assert reason(data) == "damaged"


def test_monochrome1_is_dark_where_the_value_is_high():
    data = dicom(CT, PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=5)
    np.testing.assert_array_equal(one(data), -(CT * 2.0 + 5))
    windowed = one(data, window="0,100")
    np.testing.assert_array_equal(windowed, -np.clip(CT * 2.0 + 5, -50, 50))


def lut(first, table, depth=16):
    return item(
        LUTDescriptor=[len(table) % 65536, first, depth],
        LUTData=[int(value) for value in table],
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("words", [False, True])
def test_the_modality_look_up_table(syntax, words):
    table = np.random.default_rng(5).integers(0, 65536, 300)
    entry = lut(-100, table)
    entry["LUTDescriptor"].VR = "SS"
    if words:
        entry.LUTData = table.astype("<u2").tobytes()
    entry["LUTData"].VR = "OW" if words else "US"
    data = dicom(CT, syntax, ModalityLUTSequence=[entry], RescaleSlope=3, RescaleIntercept=3)
    np.testing.assert_array_equal(one(data), table[np.clip(CT + 100, 0, 299)])


def test_a_look_up_table_of_all_values_and_one_that_is_too_short():
    table = np.arange(65536)[::-1]
    entry = lut(0, table)
    entry.LUTData = table.astype("<u2").tobytes()
    entry["LUTDescriptor"].VR, entry["LUTData"].VR = "US", "OW"
    np.testing.assert_array_equal(one(dicom(MANY[0], ModalityLUTSequence=[entry])), 65535 - MANY[0])
    entry.LUTData = entry.LUTData[:-2]
    assert reason(dicom(MANY[0], ModalityLUTSequence=[entry])) == "damaged"


WINDOW = {"WindowCenter": ["100", "7"], "WindowWidth": ["300", "9"], "RescaleSlope": 2}


def window(values, centre, width, function):
    """PS3.3 C.11.2.1.2.1 and C.11.2.1.3, as written there, with an output of 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        low, high = values <= centre - width / 2, values > centre + width / 2
        inside = (values - centre) / width + 0.5
    else:
        low = values <= centre - 0.5 - (width - 1) / 2
        high = values > centre - 0.5 + (width - 1) / 2
        inside = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.where(low, 0, np.where(high, 1, inside))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_files_own_first_window_only_when_asked(function):
    tags = WINDOW | {"RescaleIntercept": -7} | ({"VOILUTFunction": function} if function else {})
    data = dicom(CT, **tags)
    rescaled = CT * 2.0 - 7
    np.testing.assert_array_equal(one(data), rescaled)
    expected = window(rescaled, 100, 300, function)
    assert 0 < np.count_nonzero((expected > 0.01) & (expected < 0.99)) < expected.size
    pixels = one(data, window="file")
    # Up to the unit: the window's ends stay where they are, and are not brought to 0 and 1.
    width = 299 if function in (None, "LINEAR") else 300
    centre = 99.5 if function in (None, "LINEAR") else 100
    np.testing.assert_allclose((pixels - centre) / width + 0.5, expected, atol=1e-6)


def test_a_window_in_numbers_and_a_file_without_one():
    data = dicom(CT, RescaleSlope=2, RescaleIntercept=-7)
    np.testing.assert_array_equal(one(data, window="40,400"), np.clip(CT * 2.0 - 7, -160, 240))
    np.testing.assert_array_equal(one(data, window="file"), CT * 2.0 - 7)
    for centre, width in (("5", "0"), ("5", "-3"), ("5", "0.5")):
        assert reason(dicom(CT, WindowCenter=centre, WindowWidth=width), window="file") == "damaged"


def test_a_voi_table_stands_in_for_a_window():
    table = np.random.default_rng(6).integers(0, 4096, 256)
    entry = lut(10, table, 12)
    entry["LUTDescriptor"].VR = entry["LUTData"].VR = "US"
    data = dicom(MANY[0], VOILUTSequence=[entry])
    np.testing.assert_array_equal(one(data), MANY[0])
    expected = table[np.clip(MANY[0].astype(int) - 10, 0, 255)]
    np.testing.assert_array_equal(one(data, window="file"), expected)
    both = dicom(MANY[0], VOILUTSequence=[entry], WindowCenter="2000", WindowWidth="1001")
    np.testing.assert_array_equal(one(both, window="file"), np.clip(MANY[0], 1499.5, 2499.5))


def test_row_53_every_frame_has_its_own_rescale_and_window():
    def group(number):
        return item(
            PixelValueTransformationSequence=[
                item(RescaleSlope=number + 1, RescaleIntercept=-number, RescaleType="US")
            ],
            FrameVOILUTSequence=[item(WindowCenter=1000 + number, WindowWidth=501)],
        )

    data = dicom(
        MANY,
        PerFrameFunctionalGroupsSequence=[group(0), group(1), item()],
        SharedFunctionalGroupsSequence=[group(9)],
        RescaleSlope=77,
        RescaleIntercept=0,
    )
    pixels, windowed = several(data), several(data, window="file")
    for place, number in enumerate((0, 1, 9)):
        expected = MANY[place] * (number + 1.0) - number
        np.testing.assert_array_equal(pixels[place], expected)
        clipped = np.clip(expected, 749.5 + number, 1249.5 + number)
        np.testing.assert_array_equal(windowed[place], clipped)


HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
PADDED = np.random.default_rng(9).integers(0, 3000, (8, 6)).astype(np.int16)
PADDED[0] = -2000
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def padded(samples, syntax=ExplicitVRLittleEndian, vr="SS", **tags):
    """Write padding values as the given VR says, whatever the samples are."""
    dataset = made(samples, syntax, **(HU | tags))
    for name in tags:
        if name.startswith("PixelPadding"):
            dataset[name].VR = vr
    return written(dataset)


def filled(samples, is_padding):
    """The rule, by hand: padding gets the least of the other values, in Hounsfield units."""
    values = samples.astype(float) - 1024
    values[is_padding] = values[~is_padding].min()
    return values


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("vr", "written_as"), [("SS", -2000), ("US", 63536)])
def test_row_39_padding_is_background_whatever_sign_it_was_written_with(syntax, vr, written_as):
    data = padded(PADDED, syntax, vr, PixelPaddingValue=written_as)
    expected = filled(PADDED, PADDED == -2000)
    assert expected.min() >= -1024
    np.testing.assert_array_equal(one(data), expected)


@pytest.mark.parametrize("value", [0, 65535, 3000])
def test_row_39_unsigned_padding_may_be_the_brightest(value):
    samples = PADDED.astype(np.uint16)
    samples[0] = value
    data = padded(samples, vr="US", PixelPaddingValue=value)
    np.testing.assert_array_equal(one(data), filled(samples, samples == value))


@pytest.mark.parametrize("ends", [(-2000, -1500), (-1500, -2000)])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_row_39_a_range_of_padding_in_either_order_holds_its_ends(syntax, ends):
    samples = PADDED.copy()
    samples[1] = [-2000, -1999, -1501, -1500, -1499, -2001]
    data = padded(samples, syntax, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    expected = filled(samples, (samples >= -2000) & (samples <= -1500))
    assert expected.min() == -2001 - 1024
    np.testing.assert_array_equal(one(data), expected)


def test_row_39_padding_is_that_of_the_stored_samples_and_filled_last():
    tags = {"PixelPaddingValue": -2000, "RescaleSlope": 2, "RescaleIntercept": 5}
    values = np.where(PADDED == -2000, np.nan, PADDED * 2.0 + 5)
    for window, shown_values in (("800,400", np.clip(values, 600, 1000)), (None, values)):
        expected = np.where(np.isnan(values), np.nanmin(shown_values), shown_values)
        np.testing.assert_array_equal(one(padded(PADDED, **tags), window=window), expected)
        inverted = padded(PADDED, PhotometricInterpretation="MONOCHROME1", **tags)
        expected = np.where(np.isnan(values), -np.nanmax(shown_values), -shown_values)
        np.testing.assert_array_equal(one(inverted, window=window), expected)


def test_row_39_padding_before_a_modality_table():
    samples = PADDED.copy()
    table = np.random.default_rng(5).integers(100, 65536, 3000)
    table[0] = 7  # of everything below 0, and so of padding
    entry = lut(0, table)
    entry["LUTDescriptor"].VR = entry["LUTData"].VR = "US"
    samples[1, 0] = 0
    data = padded(samples, PixelPaddingValue=-2000, ModalityLUTSequence=[entry])
    expected = table[np.clip(samples, 0, 2999)]
    expected[0] = expected[1:].min()
    np.testing.assert_array_equal(one(data), expected)


def test_row_39_every_frame_has_its_own_background():
    samples = MANY.copy()
    samples[:, :2] = 5000
    samples[2] = 5000
    frames = several(padded(samples, vr="US", PixelPaddingValue=5000))
    for frame, stored in zip(frames[:2], samples, strict=False):
        np.testing.assert_array_equal(frame, filled(stored, stored == 5000))
    assert len(np.unique(frames[2])) == 1  # all padding: constant


def test_row_39_padding_in_floats_and_none_in_colour():
    values = CT.astype(np.float32) / 7
    values[0] = -9999.5
    floats = made(values)
    floats.FloatPixelData = floats.PixelData
    floats.FloatPixelPaddingValue = -9999.5
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(floats, name)
    values[0] = values[1:].min()
    np.testing.assert_array_equal(one(written(floats)), values)
    colour = made(RGB, **COLOUR, PixelPaddingValue=int(RGB[0, 0, 0]))
    colour["PixelPaddingValue"].VR = "US"
    np.testing.assert_allclose(one(written(colour)), RGB @ WEIGHTS, rtol=1e-6)


def test_row_39_a_padding_value_that_is_none_changes_nothing_and_a_broken_one_is_rejected():
    empty, double = made(CT, PixelPaddingValue=None), made(CT, PixelPaddingValue=[1, 2])
    empty["PixelPaddingValue"].VR = double["PixelPaddingValue"].VR = "SS"
    np.testing.assert_array_equal(one(written(empty)), CT)
    assert reason(written(double)) == "damaged"
    limit = padded(CT, PixelPaddingRangeLimit=5)
    np.testing.assert_array_equal(one(limit), CT.astype(float) - 1024)


def test_row_39_copies_without_the_padding_are_found(tmp_path):
    """CT slices padded round the field of view, and copies of them with air there: all flagged."""
    side, here = 96, RunContext("cpu", workers=0)
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    outside = rows**2 + columns**2 > (side / 2) ** 2
    for folder in ("training", "synthetic"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        samples = drawn(number, side).astype(np.int16) * 6
        samples[outside] = 0  # air, once rescaled
        np.save(tmp_path / f"synthetic/{number}.npy", samples - 1024)
        samples[outside] = -2000
        data = padded(samples, PixelPaddingValue=-2000)
        (tmp_path / f"training/{number}.dcm").write_bytes(data)
    build_index(tmp_path / "training", tmp_path / "index", run=here)
    found = query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "report", run=here)
    assert found.flagged == 6


@pytest.mark.parametrize(("window", "codes"), [(None, ["depth_differs"]), ("40,400", [])])
def test_row_40_a_window_on_one_side_is_told_and_undone_by_the_same_window(window, codes, tmp_path):
    """CT slices, and their copies as 8-bit files of a soft-tissue window."""
    side, here = 96, RunContext("cpu", workers=0)
    for folder in ("training", "synthetic"):
        (tmp_path / folder).mkdir()
    for number in range(12):
        samples = drawn(number, side).astype(np.int16) * 6
        (tmp_path / f"training/{number}.dcm").write_bytes(written(made(samples, **HU)))
        shown = ((samples - 1024.0 + 160) / 400).clip(0, 1) * 255
        Image.fromarray(shown.round().astype(np.uint8)).save(tmp_path / f"synthetic/{number}.png")
    config = IndexConfig(ingest=IngestConfig(read_options=ReadOptions(window=window)))
    build_index(tmp_path / "training", tmp_path / "index", config, here)
    found = query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "report", run=here)
    assert [each["code"] for each in found.summary["mismatches"]] == codes
    if window is None:
        assert "dicom:MONOCHROME2:int16" in found.summary["mismatches"][0]["text"]
        assert "--window" in found.summary["mismatches"][0]["advice"]
    else:
        assert found.flagged == 12


COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}


def test_row_09_colour_is_luminance():
    np.testing.assert_allclose(one(dicom(RGB, **COLOUR)), RGB @ WEIGHTS, rtol=1e-6)
    planar = made(RGB, **COLOUR)
    planar.PlanarConfiguration = 1
    planar.PixelData = np.ascontiguousarray(np.moveaxis(RGB, -1, 0)).tobytes()
    np.testing.assert_allclose(one(written(planar)), RGB @ WEIGHTS, rtol=1e-6)
    deepest = RGB.astype(np.uint32) * 16_843_009
    found = one(dicom(deepest, **COLOUR, BitsAllocated=32, BitsStored=32, HighBit=31))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, deepest.astype(np.float64) @ WEIGHTS, rtol=1e-6)
    deep = RGB.astype(np.uint16) * 257
    np.testing.assert_allclose(one(dicom(deep, **COLOUR)), deep @ WEIGHTS, rtol=1e-6)
    grey = np.repeat(MANY[0][..., None], 3, axis=-1)
    np.testing.assert_array_equal(one(dicom(grey, **COLOUR)), MANY[0])


def test_row_09_ybr_becomes_rgb_first():
    # PS3.3 C.7.6.3.1.2, the forward equations.
    forward = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    ybr = np.rint(RGB @ np.array(forward).T + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    data = dicom(ybr, **(COLOUR | {"PhotometricInterpretation": "YBR_FULL"}))
    np.testing.assert_allclose(one(data), RGB @ WEIGHTS, atol=2)


@pytest.mark.parametrize("depth", [8, 16])
def test_row_09_a_palette_is_looked_up_and_its_ends_hold(depth):
    colours = np.random.default_rng(7).integers(0, 1 << depth, (200, 3))
    indices = np.random.default_rng(8).integers(0, 65536, (8, 6)).astype(np.uint16)
    indices[:4] %= 300
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [200, 20, depth]
        table = colours[:, number].astype(f"<u{depth // 8}").tobytes()
        tags[f"{name}PaletteColorLookupTableData"] = table
    data = made(indices, **tags)
    for name in ("Red", "Green", "Blue"):
        data[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    expected = colours[np.clip(indices.astype(int) - 20, 0, 199)] @ WEIGHTS
    np.testing.assert_allclose(one(written(data)), expected, rtol=1e-6)


def test_row_54_a_segmented_palette_is_expanded():
    """PS3.3 C.7.9.2: discrete, then linear segments; the last is indirect and repeats both."""
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    tables = []
    for number, name in enumerate(("Red", "Green", "Blue")):
        start, end = 100 * number, 3000 + 100 * number
        segments = [0, 2, 7, start, 1, 10, end, 2, 2, 0, 0]  # the offset, 0, is of two words
        half = [7, start, *(start + (end - start) * step / 10 for step in range(1, 11))]
        # The line of the copy starts at its own predecessor, which is the same.
        tables.append([*half, *half])
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [24, 0, 16]
        data = np.array(segments, "<u2").tobytes()
        tags[f"Segmented{name}PaletteColorLookupTableData"] = data
    indices = np.arange(48).astype(np.uint8).reshape(8, 6)
    dataset = made(indices, **tags)
    for name in ("Red", "Green", "Blue"):
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    colours = np.array(tables).T[np.clip(indices, 0, 23)]
    np.testing.assert_allclose(one(written(dataset)), colours @ WEIGHTS, rtol=1e-6)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_row_55_overlays_are_left_out(syntax):
    plain = made(MANY[0], syntax, BitsStored=12, HighBit=11)
    beside = made(MANY[0], syntax, BitsStored=12, HighBit=11)
    within = made(MANY[0] | 0x8000, syntax, BitsStored=12, HighBit=11)
    for dataset, bits, position in ((beside, 1, 0), (within, 16, 15)):
        for number, value in ((0x10, 8), (0x11, 6), (0x100, bits), (0x102, position)):
            dataset.add_new(0x60000000 + number, "US", value)
        dataset.add_new(0x60000040, "CS", "G")
        dataset.add_new(0x60000050, "SS", [1, 1])
    beside.add_new(0x60003000, "OW", b"\xff" * 6)
    for dataset in (plain, beside, within):
        np.testing.assert_array_equal(one(written(dataset)), MANY[0])


@pytest.mark.parametrize("syntax", [*SYNTAXES, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("dirt", [0, 0x5000, 0xF000])
def test_row_56_signed_samples_of_12_bits_keep_their_sign(syntax, dirt):
    bits = MANY[0] | dirt
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": -5}
    expected = np.where(MANY[0] < 2048, MANY[0], MANY[0] - 4096.0) - 5
    assert expected.min() < -1000
    np.testing.assert_array_equal(one(dicom(bits, syntax, **tags)), expected)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_row_57_private_tags_are_passed_over(syntax, capfd, caplog):
    """Those of a maker who nests sequences, with an image and a name in the innermost."""
    dataset, inner, middle = made(CT, syntax), made(MANY[0]), Dataset()
    del inner.file_meta
    inner.PatientName = CANARY
    middle.add_new(0x00290010, "LO", "A MAKER")
    middle.add_new(0x00291010, "SQ", [inner])
    for group in (0x0009, 0x0029, 0x7FE1):
        dataset.add_new((group << 16) + 0x10, "LO", "A MAKER")
        dataset.add_new((group << 16) + 0x1001, "SQ", [middle, middle])
        dataset.add_new((group << 16) + 0x1002, "UN", CANARY.encode() + b" ")
        dataset[(group << 16) + 0x1001].is_undefined_length = True
    text, frames = told(written(dataset), capfd, caplog)
    np.testing.assert_array_equal([frame.pixels for frame in frames], [CT])
    assert CANARY not in text


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_row_58_big_endian_samples_of_every_size(dtype):
    samples = np.random.default_rng(2).integers(0, 1 << 24, (3, 8, 6)).astype(dtype)
    tags = {"RescaleSlope": "2", "RescaleIntercept": "1"}
    data = dicom(samples, ExplicitVRBigEndian, **tags)
    expected = (samples.astype(np.float64) * 2 + 1).astype(np.float32)
    np.testing.assert_array_equal(several(data), expected)


def parts(syntax, **tags):
    """The preamble, the meta group and the data set of a file."""
    data = dicom(CT, syntax, **tags)
    start = 144 + struct.unpack_from("<L", data, 140)[0]
    return data[:132], data[132:start], data[start:]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("first", ["ImageType", "SpecificCharacterSet", "SOPClassUID"])
def test_row_59_a_data_set_that_nothing_precedes(syntax, first, capfd, caplog):
    tags = {} if first == "SOPClassUID" else {first: "ORIGINAL" if "Type" in first else "ISO_IR 6"}
    preamble, meta, body = parts(syntax, PatientName=CANARY, **tags)
    head, tail = meta.split(struct.pack("<HH", 2, 0x10))  # the transfer syntax
    without = head[:8] + struct.pack("<L", len(head) - 12) + head[12:]
    rest = tail[4 + struct.unpack_from("<H", tail, 2)[0] :]
    without = without[:8] + struct.pack("<L", len(head + rest) - 12) + without[12:] + rest
    for data in (body, meta + body, preamble + without + body):
        text, frames = told(data, capfd, caplog)
        np.testing.assert_array_equal([frame.pixels for frame in frames], [CT])
        cut, frames = told(data[:-4], capfd, caplog)
        assert "fewer samples" in cut
        assert CANARY not in text + cut
        assert not frames


def test_row_59_where_the_first_element_does_not_tell():
    preamble, meta, body = parts(ExplicitVRLittleEndian)
    assert reason(body[8:]) == "unknown-format"
    assert reason(b"\x08\0\x16\0" + bytes([9, 9, 9, 9]) + body[8:]) == "unknown-format"
    start = meta.index(struct.pack("<HH", 2, 0x10))
    length = struct.unpack_from("<H", meta, start + 6)[0]
    without = meta[:start] + meta[start + 8 + length :]
    without = without[:8] + struct.pack("<L", len(without) - 12) + without[12:]
    unknown = element(0x00090010, b"LO", b"A MAKER ") + body
    with pytest.raises(Rejected, match="no transfer syntax"):
        list(decode(preamble + without + unknown))


def test_row_59_compressed_samples_are_not_taken_for_others():
    """Without its transfer syntax, a compressed file that is as long as it would be without."""
    noise = np.random.default_rng(1).integers(0, 256, (8, 6)).astype(np.uint8)
    data = dicom(noise, JPEGBaseline8Bit, encapsulate([jpeg(noise)]))
    body = data[144 + struct.unpack_from("<L", data, 140)[0] :]
    with pytest.raises(Rejected, match="without compression"):
        list(decode(body))


def scans(pixels, end):
    """A JPEG of which the header of the scan names coefficients 0 to `end`; 63 is right."""
    data = jpeg(pixels)
    at = data.index(b"\xff\xda") + 5 + 2 * 1
    assert data[at : at + 3] == b"\0\x3f\0"
    return data[:at] + bytes((0, end, 0)) + data[at + 3 :]


def test_row_60_a_scan_without_coefficients_holds_all():
    found = []
    for end, fragments in ((63, 1), (63, 2), (63, 9), (0, 1)):
        encoded = encapsulate([scans(frame, end) for frame in GREY], fragments_per_frame=fragments)
        found.append(several(dicom(GREY, JPEGBaseline8Bit, encoded)))
    np.testing.assert_array_equal(found, [found[0]] * 4)
    lossy, fixed = (one(FILES[name].read_bytes()) for name in ("JPEG-lossy.dcm", "JPGExtended.dcm"))
    np.testing.assert_array_equal(lossy, fixed)  # of 12 bits; pydicom ships both
    assert lossy.max() == 264


def test_row_60_no_other_decoder_stands_in_where_the_first_finds_damage():
    damaged = scans(GREY[0], 5)
    assert Image.open(io.BytesIO(damaged)).getpixel((0, 0)) >= 0  # Pillow shows it
    assert reason(dicom(GREY[0], JPEGBaseline8Bit, encapsulate([damaged]))) == "damaged"


def test_row_10_native_frames_that_are_not_declared():
    assert len(several(dicom(MANY))) == 3
    for count in (1, 2, 4):
        assert reason(dicom(MANY, NumberOfFrames=count)) == "damaged"
    odd = MANY[:, :1, :1].astype(np.uint8)  # 3 bytes, and one that makes them even
    assert len(several(dicom(odd))) == 3
    padded = made(MANY)
    padded.PixelData += bytes(80)
    assert len(several(written(padded))) == 3
    padded.PixelData += bytes(16)  # as long as a frame
    assert reason(written(padded)) == "damaged"


def jpeg(pixels):
    return saved(Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=95)


def j2k(pixels):
    return saved(Image.fromarray(pixels.astype(np.uint8)), "JPEG2000", no_jp2=True)


GREY = MANY.astype(np.uint8)


def test_row_10_compressed_frames_and_how_they_are_cut():
    parts = [j2k(frame) for frame in GREY]
    for offsets in (True, False):
        encoded = encapsulate(parts, has_bot=offsets)
        np.testing.assert_array_equal(several(dicom(GREY, JPEG2000Lossless, encoded)), GREY)
        for count in (1, 2, 4):
            data = dicom(GREY, JPEG2000Lossless, encoded, NumberOfFrames=count)
            assert reason(data) == "damaged"
    fragmented = encapsulate(parts, fragments_per_frame=3)
    np.testing.assert_array_equal(several(dicom(GREY, JPEG2000Lossless, fragmented)), GREY)
    encoded, table, lengths = encapsulate_extended(parts)
    tags = {"ExtendedOffsetTable": table, "ExtendedOffsetTableLengths": lengths}
    data = dicom(GREY, JPEG2000Lossless, encoded, **tags)
    np.testing.assert_array_equal(several(data), GREY)


def test_row_10_several_images_in_the_fragments_of_one_frame():
    for syntax, code in ((JPEG2000Lossless, j2k), (JPEGBaseline8Bit, jpeg)):
        whole = encapsulate([code(frame) for frame in GREY], has_bot=False)
        assert len(list(generate_frames(whole, number_of_frames=1))) == 1  # pydicom joins them
        assert reason(dicom(GREY[0], syntax, whole)) == "damaged"


def test_row_04_compressed_data_of_another_size_is_not_decoded():
    large = np.zeros((3000, 3000), np.uint8)
    for syntax, code in ((JPEG2000Lossless, j2k), (JPEGBaseline8Bit, jpeg)):
        good = dicom(GREY[0], syntax, encapsulate([code(GREY[0])]))
        assert one(good).shape == (8, 6)
        data = dicom(large, syntax, encapsulate([code(large)]), Rows=8, Columns=6)
        tracemalloc.start()
        try:
            assert reason(data) == "damaged"
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()


def test_row_01_a_compressed_frame_cut_short_in_a_whole_file():
    big = np.random.default_rng(9).integers(0, 256, (64, 64)).astype(np.uint8)
    for syntax, code in ((JPEG2000Lossless, j2k), (JPEGBaseline8Bit, jpeg)):
        whole = code(big)
        assert one(dicom(big, syntax, encapsulate([whole]))).shape == (64, 64)
        for keep in (len(whole) // 2, len(whole) - 40):
            assert reason(dicom(big, syntax, encapsulate([whole[:keep]]))) == "damaged"


def test_row_28_a_box_without_length_does_not_keep_the_decoder():
    """The walk of pydicom through the boxes of such a JPEG 2000 image would not end."""
    image = Image.fromarray(GREY[0])
    boxed = saved(image, "JPEG2000")
    assert boxed.startswith(b"\0\0\0\x0cjP  ")
    assert one(dicom(GREY[0], JPEG2000Lossless, encapsulate([boxed]))).shape == GREY[0].shape
    at = boxed.index(b"jp2h") - 4
    for kind in (b"jp2h", b"free"):
        endless = boxed[:at] + b"\0\0\0\0" + kind + boxed[at + 8 :]
        assert reason(dicom(GREY[0], JPEG2000Lossless, encapsulate([endless]))) == "damaged"
    extended = boxed[:at] + b"\0\0\0\x01" + boxed[at + 4 :]
    assert reason(dicom(GREY[0], JPEG2000Lossless, encapsulate([extended]))) == "damaged"


def test_row_01_a_file_that_ends_within_an_element():
    compressed = dicom(GREY[0], JPEG2000Lossless, encapsulate([j2k(GREY[0])]))
    assert reason(compressed[:-20]) == "damaged"
    padded = made(CT)
    padded.DataSetTrailingPadding = bytes(100)
    data = written(padded)
    np.testing.assert_array_equal(one(data), CT)
    assert reason(data[:-50]) == "damaged"


def rle(plane):
    """PS3.5 Annex G: one segment of literal runs."""
    data = plane.tobytes()
    runs = [data[at : at + 128] for at in range(0, len(data), 128)]
    segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return struct.pack("<16L", 1, 64, *[0] * 14) + segment + b"\x80" * (len(segment) % 2)


def test_row_15_rle_frames_fragments_and_bombs():
    parts = [rle(frame) for frame in GREY]
    np.testing.assert_array_equal(several(dicom(GREY, RLELossless, encapsulate(parts))), GREY)
    joined = encapsulate(parts, has_bot=False)
    assert reason(dicom(GREY[0], RLELossless, joined)) == "damaged"
    bomb = parts[0] + b"\x81\0" * 1_000_000  # 128 MB
    tracemalloc.start()
    try:
        assert reason(dicom(GREY[0], RLELossless, encapsulate([bomb]))) == "damaged"
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "image_dfl.dcm", "rtdose.dcm"]
)
def test_row_01_truncated(name):
    data = FILES[name].read_bytes()
    whole = [frame.pixels for frame in decode(data)]
    ends = {*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 40, len(data))}
    for end in sorted(ends):
        try:
            part = [frame.pixels for frame in decode(data[:end])]
        except Rejected as rejected:
            assert rejected.rejection.reason in (
                "damaged",
                "empty-file",
                "no-pixels",
                "unknown-format",
            )
        else:  # what follows the samples may go at a boundary of two elements
            assert end > 0.9 * len(data)
            np.testing.assert_array_equal(part, whole)


def test_row_04_too_large_is_told_before_anything_is_decoded():
    wide = dicom(CT, Rows=65535, Columns=65535)
    many = dicom(CT, NumberOfFrames=2_000_000_000)
    few = dicom(np.zeros((MAX_FRAMES + 1, 1, 2), np.uint8))
    tracemalloc.start()
    try:
        for data in (wide, many, few):
            assert reason(data) == "too-large"
        assert reason(dicom(CT), max_pixels=CT.size - 1) == "too-large"
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert one(dicom(CT), max_pixels=CT.size).shape == CT.shape


def test_row_15_a_deflate_bomb_is_not_inflated(monkeypatch):
    data = dicom(CT, DeflatedExplicitVRLittleEndian)
    offset = 144 + struct.unpack_from("<L", data, 140)[0]  # the end of the file meta information
    body = zlib.decompress(data[offset:], -15)
    press = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = press.compress(body + bytes(80_000_000)) + press.flush()
    bomb = data[:offset] + packed
    monkeypatch.setattr(dicom_tags, "MAX_INFLATED", 5_000_000)
    tracemalloc.start()
    try:
        assert reason(bomb) == "too-large"
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(one(data), CT)
    assert reason(data[: (offset + len(data)) // 2]) == "damaged"


@pytest.mark.parametrize(
    "start", [b"MZ\x90", b"\x7fELF\2", b"#!/bin/sh", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"]
)
def test_row_15_an_executable_preamble(start):
    data = dicom(CT)
    assert one(b"harmless" + data[8:]).shape == CT.shape
    assert reason(start + data[len(start) :]) == "executable"


def test_a_tiff_that_is_dicom_as_well_is_dicom():
    data = dicom(CT)
    for magic in (b"II*\0", b"MM\0*", b"\x93NUMPY", b"PK\3\4", b"GIF89a"):
        np.testing.assert_array_equal(one(magic + data[len(magic) :]), CT)


def test_row_15_no_pixel_data_and_row_16_dicomdir():
    without = made(CT)
    del without.PixelData
    assert reason(written(without)) == "no-pixels"
    both = made(CT)
    both.FloatPixelData = bytes(4 * CT.size)
    assert reason(written(both)) == "no-pixels"
    assert reason(FILES["DICOMDIR"].read_bytes()) == "no-pixels"
    nested = made(CT)
    icon = made(CT)
    del icon.file_meta, nested.PixelData
    nested.IconImageSequence = [icon]
    assert reason(written(nested)) == "no-pixels"


def test_row_15_a_syntax_that_nothing_decodes(monkeypatch):
    encoded = encapsulate([b"\0\0"])
    head, tail = dicom(CT, HTJ2KLossless, encoded).split(HTJ2KLossless.encode())
    for syntax, name in ((MPEG2MPML, "MPEG2"), ("1.2.3.4.5.777", "an unknown")):
        renamed = head + syntax.ljust(len(HTJ2KLossless), "\0").encode() + tail
        with pytest.raises(Rejected, match=name) as caught:
            list(decode(renamed))
        assert caught.value.rejection.reason == "no-decoder"
        assert "777" not in str(caught.value)
        assert "'dicom'" in str(caught.value)
    decoder = get_decoder(JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(Rejected, match="JPEG Lossless") as caught:
        list(decode(dicom(CT, JPEGLosslessSV1, encoded)))
    assert caught.value.rejection.reason == "no-decoder"
    assert "the extra 'dicom'" in str(caught.value)


def test_row_14_the_subject_is_a_keyed_hash():
    key = b"a secret of bytes"
    data = dicom(CT, PatientID="PAT-7")
    expected = hmac.new(key, b"PAT-7", hashlib.sha256).hexdigest()
    (frame,) = decode(data, ReadOptions(subject_key=key))
    assert frame.subject == expected
    assert next(decode(data)).subject == ""
    for other in ({}, {"PatientID": ""}, {"PatientID": "  "}):
        assert next(decode(dicom(CT, **other), ReadOptions(subject_key=key))).subject == ""
    frames = list(decode(dicom(MANY, PatientID="PAT-7 "), ReadOptions(subject_key=key)))
    assert [frame.subject for frame in frames] == [expected] * 3
    (frame,) = decode(data, ReadOptions(subject_key=b"another secret of bytes"))
    assert frame.subject not in ("", expected)


def element(tag, vr, value):
    """Write one element of explicit VR, whatever its VR may hold."""
    group, number = tag >> 16, tag & 0xFFFF
    long = vr in (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")
    size = b"\0\0" + struct.pack("<L", len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr + size + value


TEXT_VRS = ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN"]
TEXT_VRS += ["SH", "ST", "TM", "UC", "UI", "UR", "UT"]
WRONG_VRS = [b"ZZ", b"UN", b"US", b"FD", b"SQ", b"OB", b"AT", b"  "]


def with_canaries(wrong=b"", broken=()):
    """Build a file of which every text tag in the dictionary holds the canary.

    `wrong`: a VR given to all of these; `broken`: tags that pixels need, which hold it too.
    """
    dataset = made(CT)
    needed = {int(e.tag): e for e in dataset}
    canary = CANARY.encode() + b" "
    elements = {}
    for tag, (vr, *_) in pydicom.datadict.DicomDictionary.items():
        if vr in TEXT_VRS and 0x00080000 <= tag < 0x7FE00000 and tag not in needed:
            elements[tag] = element(tag, wrong or vr.encode(), canary)
    for tag, plain in needed.items():
        if tag in broken:
            elements[tag] = element(tag, wrong or plain.VR.encode(), canary)
        elif plain.VR == "US":
            elements[tag] = element(tag, b"US", struct.pack("<H", plain.value))
        elif tag == 0x7FE00010:
            elements[tag] = element(tag, b"OW", plain.value)
        else:
            text = plain.value.encode()
            elements[tag] = element(tag, plain.VR.encode(), text + b" " * (len(text) % 2))
    head = written(dataset)
    start = head.index(struct.pack("<HH", 0x0008, 0x0016))
    assert len(elements) > 1500
    return head[:start] + b"".join(elements[tag] for tag in sorted(elements))


def told(data, capfd, caplog, **options):
    """Everything that decoding says, by any way, and the frames it gives."""
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    for name in ("pydicom", "PIL"):
        caplog.set_level(logging.DEBUG, name)
    frames, text = [], ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frames = list(decode(data, ReadOptions(**options)))
        except Rejected as error:
            text = "".join(traceback.format_exception(error)) + repr(error) + repr(error.rejection)
            while error is not None:
                text += repr(error.args)
                error = error.__context__ or error.__cause__
    output = capfd.readouterr()
    for frame in frames:
        text += repr(frame) + frame.name + frame.mode + frame.subject
    text += output.out + output.err + caplog.text + "".join(str(each.message) for each in caught)
    return text, frames


@pytest.mark.parametrize("wrong", [b"", *WRONG_VRS])
def test_row_14_no_tag_leaves_the_decoder(wrong, capfd, caplog):
    data = with_canaries(wrong)
    assert data.count(CANARY.encode()) > 1500
    for options in ({}, {"window": "file"}, {"subject_key": b"a key of many bytes"}):
        text, _ = told(data, capfd, caplog, **options)
        assert CANARY not in text
        assert "CANARY" not in text.upper()


def test_row_14_a_file_full_of_names_is_embedded(capfd, caplog):
    dataset = made(CT)
    for tag, (vr, *_, keyword) in pydicom.datadict.DicomDictionary.items():
        if vr in ("LO", "LT", "PN", "SH", "ST", "UC", "UT") and 0x00080000 <= tag < 0x7FE00000:
            setattr(dataset, keyword, "CANARY")
    dataset.add_new(0x00091001, "LO", "CANARY")
    text, frames = told(written(dataset), capfd, caplog, subject_key=b"a key of many bytes")
    assert "CANARY" not in text
    np.testing.assert_array_equal(frames[0].pixels, CT)
    assert (
        frames[0].subject == hmac.new(b"a key of many bytes", b"CANARY", hashlib.sha256).hexdigest()
    )


@pytest.mark.parametrize(
    "broken",
    [
        (0x00280004,),
        (0x00280010,),
        (0x00280002, 0x00280100),
        (0x00280101, 0x00280103),
        (0x7FE00010,),
    ],
)
@pytest.mark.parametrize("wrong", [b"", b"UN", b"UT", b"ZZ"])
def test_row_14_nor_does_one_that_holds_text_for_a_number(broken, wrong, capfd, caplog):
    text, frames = told(with_canaries(wrong, broken), capfd, caplog, window="file")
    assert not frames
    assert "CANARY" not in text


@pytest.mark.parametrize("number", ["19480229", "12345678"])
def test_row_14_nor_a_number_that_is_out_of_range(number, capfd, caplog):
    for tags in ({"NumberOfFrames": number}, {"RescaleSlope": f"{number}e999"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = dicom(CT, RescaleIntercept="0", **tags)
        text, frames = told(data, capfd, caplog)
        assert not frames
        assert number not in text


NATIVE = [
    written(made(MANY, PatientName=CANARY, RescaleSlope=2, RescaleIntercept=1)),
    dicom(CT, ImplicitVRLittleEndian, PatientID=CANARY, **WINDOW),
    dicom(CT, DeflatedExplicitVRLittleEndian, PatientID=CANARY),
    dicom(GREY, RLELossless, encapsulate([rle(frame) for frame in GREY]), PatientID=CANARY),
    dicom(RGB, PatientComments=CANARY, **COLOUR),
]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(NATIVE), st.data())
def test_row_14_and_15_altered_files_raise_nothing_but_rejected(data, draw):
    altered = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Most of the changes fall on the headers of elements, where they do most.
        first = draw.draw(st.sampled_from([132, max(132, len(altered) - 600)]))
        place = draw.draw(st.integers(first, min(first + 700, len(altered)) - 1))
        altered[place] = draw.draw(st.integers(0, 255))
    list(decode(data))  # so that no import is counted
    tracemalloc.start()
    try:
        frames = list(decode(bytes(altered), ReadOptions(window="file", max_pixels=100_000)))
    except Rejected as rejected:
        assert rejected.rejection.reason in REASONS
        assert "CANARY" not in "".join(traceback.format_exception(rejected)).upper()
    else:
        assert frames
        assert all(frame.pixels.dtype == np.float32 for frame in frames)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 30_000_000
