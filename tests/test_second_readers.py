"""DICOM and NIfTI, against what readers by others make of the same files.

GDCM (`python-gdcm`) and dcmtk (`dcm2pnm` and its sisters) read every DICOM file that pydicom ships
and that is embedded, SimpleITK and nibabel the NIfTI files that nibabel ships. What they give is
brought to luminance here, by the standard and not by the code under test. A reader that is not
installed is left out. Each runs in a process of its own: GDCM ends it for some files.
"""

import gzip
import importlib.util
import json
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from image_bytes import WEIGHTS
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
)
from test_dicom import CT, FILES, MANY, SYNTAXES, dicom

from deepssim_scan.ingest.decode import decode
from deepssim_scan.ingest.rejection import Rejected

REJECTED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "a compressed frame of another size than declared",
    "MR_truncated.dcm": "fewer samples than its frames take",
    "badVR.dcm": None,  # its NumberOfFrames is no number
    "meta_missing_tsyntax.dcm": "no transfer syntax",
    "nested_priv_SQ.dcm": None,  # it has no Rows
}
"""What pydicom ships with pixel data that is not embedded, and what some of the details say."""

IN_WORDS = "it takes a big-endian sample of 32 bits for two of 16 bits"
MIXED = "it mixes the bytes of neighbouring samples, as dcmtk does not"
DIES = "the process ends, of a C++ exception"
DIFFER = {
    ("gdcm", "J2K_pixelrep_mismatch.dcm"): "it leaves samples unsigned that the tags call signed",
    ("gdcm", "SC_rgb_rle_16bit.dcm"): MIXED,
    ("gdcm", "SC_rgb_rle_16bit_2frame.dcm"): MIXED,
    ("gdcm", "SC_rgb_rle_32bit.dcm"): MIXED,
    ("gdcm", "SC_rgb_rle_32bit_2frame.dcm"): MIXED,
    ("gdcm", "rtdose_1frame.dcm"): DIES,
    ("gdcm", "rtdose_rle_1frame.dcm"): DIES,
    ("gdcm", "rtdose_expb.dcm"): IN_WORDS,
    ("gdcm", "rtdose_expb_1frame.dcm"): DIES,
    ("dcmtk", "rtdose_expb.dcm"): IN_WORDS,
    ("dcmtk", "rtdose_expb_1frame.dcm"): IN_WORDS,
    ("dcmtk", "SC_rgb_jpeg.dcm"): "it does not read it",
}
"""Why a reader gives something else; every other file must be the same to all."""

GDCM = """
import json, pathlib, sys, gdcm
reader = gdcm.ImageReader()
reader.SetFileName(sys.argv[1])
samples = reader.Read() and reader.GetImage().GetBuffer()
if not samples:
    sys.exit("not read")
pathlib.Path(sys.argv[2]).write_bytes(samples.encode("utf-8", "surrogateescape"))
image = reader.GetImage()
kind = image.GetPixelFormat().GetScalarTypeAsString()
print()
print(json.dumps([kind, image.GetPlanarConfiguration(), image.GetSlope(), image.GetIntercept()]))
"""


def tags_of(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)


PIXELS = {name: tags_of(path) for name, path in FILES.items() if "PixelData" in tags_of(path)}


def syntax_of(tags):
    return tags.file_meta.get("TransferSyntaxUID")


def in_colour(samples, photometric):
    """PS3.3 C.7.6.3.1.2: YBR of 8 bits to RGB, then luminance."""
    if photometric.startswith("YBR_FULL"):
        y, cb, cr = (samples[..., channel].astype(float) for channel in range(3))
        red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
        green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
        samples = np.stack([red, green, blue], axis=-1).clip(0, 255)
    return samples @ WEIGHTS


def filled(values, padded):
    """Padding is background: the least of the other values of its frame."""
    for frame, where in zip(values, padded, strict=True):
        frame[where] = frame[~where].min()
    return values


def by_gdcm(path, tags, folder):
    """The frames (N, H, W) of a file as GDCM reads it; None: it does not."""
    command = [sys.executable, "-c", GDCM, str(path), str(folder / "samples")]
    run = subprocess.run(command, capture_output=True, check=False)
    if run.returncode:
        return None
    kind, planar, slope, intercept = json.loads(run.stdout.splitlines()[-1])
    samples = np.frombuffer((folder / "samples").read_bytes(), np.uint8)
    if kind == "SINGLEBIT":
        samples = np.unpackbits(samples, bitorder="little")
    else:
        samples = samples.view(f"<{np.dtype(kind.lower()).str[1:]}")
    shape = (int(tags.get("NumberOfFrames") or 1), tags.Rows, tags.Columns)
    photometric = tags.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        channels = (tags[f"{name}PaletteColorLookupTableData"] for name in ("Red", "Green", "Blue"))
        table = np.stack([np.frombuffer(each.value, "<u2") for each in channels], axis=-1)
        return in_colour(table[samples.reshape(shape)], "RGB")
    if tags.SamplesPerPixel == 3:
        planes = np.moveaxis(samples.reshape(shape[0], 3, *shape[1:]), 1, -1) if planar else samples
        return in_colour(planes.reshape(*shape, 3), photometric)
    stored = samples.reshape(shape)
    # GDCM takes the scale of a radiation dose for a rescale slope.
    values = stored * (slope / float(tags.get("DoseGridScaling", 1))) + intercept
    values = -values if photometric == "MONOCHROME1" else values
    return filled(values, stored == tags.get("PixelPaddingValue"))


def pnm(path):
    """A text PGM or PPM as luminance (H, W)."""
    kind, width, height, _, *samples = path.read_text("ascii").split()
    pixels = np.array(samples, float).reshape(int(height), int(width), -1)
    return in_colour(pixels, "RGB") if kind == "P3" else pixels[..., 0]


def by_dcmtk(path, tags, folder):
    """The frames (N, H, W) of a file as dcmtk shows it, grey at a scale of its own; or None."""
    grey = tags.PhotometricInterpretation.startswith("MONOCHROME")
    depth = 32 if grey else 16 if "PALETTE" in tags.PhotometricInterpretation else tags.BitsStored
    tool = "dcml2pnm" if syntax_of(tags) in JPEGLSTransferSyntaxes else "dcmj2pnm"
    options = ["-q", "--no-overlays", "--no-modality", "--all-frames", "+opn", str(depth)]
    run = subprocess.run([tool, *options, str(path), str(folder / "frame")], check=False)
    written = sorted(folder.glob("frame.*"), key=lambda each: int(each.name.split(".")[1]))
    return np.stack([pnm(each) for each in written]) if written and not run.returncode else None


READERS = {
    "gdcm": (by_gdcm, importlib.util.find_spec("gdcm")),
    "dcmtk": (by_dcmtk, shutil.which("dcmj2pnm") and shutil.which("dcml2pnm")),
}


def every_reader():
    """Each reader with each file that is to be embedded; dcmtk has no JPEG 2000."""
    for reader, (_, there) in READERS.items():
        absent = pytest.mark.skipif(not there, reason=f"{reader} is not installed")
        for name, tags in PIXELS.items():
            no_decoder = reader == "dcmtk" and syntax_of(tags) in (JPEG2000, JPEG2000Lossless)
            if name in REJECTED or no_decoder:
                continue
            why = DIFFER.get((reader, name))
            known = pytest.mark.xfail(reason=why or "", strict=True, raises=AssertionError)
            yield pytest.param(reader, name, marks=[absent, known] if why else [absent])


def at_our_scale(theirs, ours):
    """Bring what dcmtk gives of grey to our unit: it maps all values of the type to its output."""
    slope, offset = np.polyfit(theirs.ravel(), ours.ravel(), 1)
    assert slope > 0
    return theirs * slope + offset


def tolerance(tags):
    """Grey levels by which two decoders may differ: of lossy JPEG, and of rounded YBR."""
    if syntax_of(tags) in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return 2
    return 1 if tags.PhotometricInterpretation.startswith("YBR_FULL") else 0


def compare(reader, path, tags, folder):
    ours = np.stack([frame.pixels for frame in decode(path.read_bytes())]).astype(float)
    theirs = READERS[reader][0](path, tags, folder)
    assert theirs is not None
    assert theirs.shape == ours.shape
    if reader == "dcmtk" and tags.PhotometricInterpretation.startswith("MONOCHROME"):
        theirs = at_our_scale(theirs, ours)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=tolerance(tags) + 1e-3)


@pytest.mark.parametrize(("reader", "name"), list(every_reader()))
def test_a_second_reader_gives_the_same_frames(reader, name, tmp_path):
    compare(reader, FILES[name], PIXELS[name], tmp_path)


@pytest.mark.parametrize("name", REJECTED)
def test_row_61_pixel_data_that_is_not_embedded(name):
    with pytest.raises(Rejected, match=REJECTED[name]) as caught:
        list(decode(FILES[name].read_bytes()))
    assert caught.value.rejection.reason == "damaged"


def test_row_61_files_without_meta_group_that_pydicom_ships_hold_no_image():
    for name in ("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm"):
        path = FILES["CT_small.dcm"].parent / name
        assert "PixelData" not in tags_of(path)
        with pytest.raises(Rejected, match="no-pixels"):
            list(decode(path.read_bytes()))
    with pytest.raises(Rejected, match="unknown-format"):  # it starts with a byte of something else
        list(decode((FILES["CT_small.dcm"].parent / "no_meta.dcm").read_bytes()))


@pytest.mark.parametrize("name", ["rtdose", "rtdose_1frame"])
def test_row_58_a_big_endian_dose_is_that_of_the_little_endian_file(name):
    """Of 32 bits in OW, where the other readers swap bytes within 16 bits only."""
    both = [
        [frame.pixels for frame in decode(FILES[f"{each}.dcm"].read_bytes())]
        for each in (name, name.replace("rtdose", "rtdose_expb"))
    ]
    np.testing.assert_array_equal(*both)


@pytest.mark.skipif(not READERS["gdcm"][1], reason="gdcm is not installed")
def test_what_gdcm_takes_for_words_is_the_same_with_its_halves_swapped(tmp_path):
    name = "rtdose_expb.dcm"
    ours = [frame.pixels.astype(np.uint32) for frame in decode(FILES[name].read_bytes())]
    theirs = by_gdcm(FILES[name], PIXELS[name], tmp_path)
    swapped = np.rint(theirs).astype(np.uint32).view("<u2").reshape(*theirs.shape, 2)[..., ::-1]
    np.testing.assert_array_equal(np.ascontiguousarray(swapped).view("<u4")[..., 0], ours)


@pytest.mark.skipif(not READERS["gdcm"][1], reason="gdcm is not installed")
def test_what_gdcm_leaves_unsigned_is_the_same_up_to_the_sign(tmp_path):
    name = "J2K_pixelrep_mismatch.dcm"
    (frame,) = decode(FILES[name].read_bytes())
    (theirs,) = by_gdcm(FILES[name], PIXELS[name], tmp_path)
    assert PIXELS[name].BitsStored == 13
    np.testing.assert_array_equal(frame.pixels % 8192, theirs % 8192)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bare", [False, True])
def test_a_second_reader_takes_signed_12_bits_with_or_without_a_meta_group(
    reader, syntax, bare, tmp_path
):
    if not READERS[reader][1]:
        pytest.skip(f"{reader} is not installed")
    signed = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    for tags in ({}, signed, {"PhotometricInterpretation": "MONOCHROME1"}):
        whole = dicom(MANY[0] if tags is signed else CT, syntax, **tags)
        data = whole[144 + struct.unpack_from("<L", whole, 140)[0] :] if bare else whole
        path = tmp_path / "file"
        path.write_bytes(data)
        (tmp_path / "whole").write_bytes(whole)
        compare(reader, path, tags_of(tmp_path / "whole"), tmp_path)


NIFTI = Path(nibabel.__file__).parent / "tests/data"
SHIPPED = ["anatomical.nii", "reoriented_anat_moved.nii", "resampled_anat_moved.nii"]
VOLUMES = ["example4d.nii.gz", "functional.nii"]  # of which one volume is taken


def slices_of(path):
    return np.stack([frame.pixels for frame in decode(path.read_bytes())])


def compare_volume(path):
    """Ours against nibabel, and against SimpleITK where it is installed."""
    ours = slices_of(path)
    volume = nibabel.load(path).get_fdata()
    np.testing.assert_allclose(ours, volume.T, rtol=1e-6)
    if importlib.util.find_spec("SimpleITK"):
        import SimpleITK

        theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=1e-6)  # it gives 0 for NaN


@pytest.mark.parametrize("name", SHIPPED)
def test_nifti_slices_are_those_of_nibabel_and_simpleitk(name):
    compare_volume(NIFTI / name)


@pytest.mark.parametrize("name", VOLUMES)
def test_so_are_those_of_a_volume_of_a_series(name, tmp_path):
    image = nibabel.load(NIFTI / name)
    nibabel.save(image.slicer[..., 1], tmp_path / name)
    compare_volume(tmp_path / name)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scaling", [None, (0.5, -3.0)])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_so_are_those_of_every_type(dtype, order, scaling, packed, tmp_path):
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    samples = np.asarray(nibabel.load(NIFTI / SHIPPED[0]).dataobj) % 200 - (dtype != "u1") * 99
    data = nibabel.Nifti1Image(samples.astype(order + dtype), np.eye(4), header).to_bytes()
    if scaling:  # scl_slope and scl_inter
        data = data[:112] + struct.pack(f"{order}ff", *scaling) + data[120:]
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(data) if packed else data)
    compare_volume(path)
    slope, intercept = scaling or (1, 0)
    np.testing.assert_array_equal(slices_of(path), samples.T * slope + intercept)
