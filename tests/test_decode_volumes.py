"""NPY, NPZ and NIfTI: planes, volumes cut into slices, and headers that lie.

Each test is named after its row in the table of bad inputs, where it has one.
"""

import gzip
import io
import itertools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes, integer_dtypes
from image_bytes import FORMATS, NOISE, STACK, nifti, npy, npz

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode import arrays as arrays_module
from deepssim_scan.ingest.decode import decode
from deepssim_scan.ingest.rejection import Rejected

VOLUME = np.random.default_rng(4).integers(-999, 999, (5, 6, 7)).astype(np.int16)


def one(data, reading=ReadOptions()):
    (frame,) = decode(data, reading)
    assert frame.name == ""
    return frame.pixels


def named(data, **options):
    return {frame.name: frame.pixels for frame in decode(data, ReadOptions(**options))}


def reason(data, **options):
    with pytest.raises(Rejected) as caught:
        list(decode(data, ReadOptions(**options)))
    assert caught.value.__context__ is None
    assert "\n" not in caught.value.rejection.detail
    return caught.value.rejection.reason


@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9), (8, 9, 1), (1, 8, 9, 1), (8, 1, 9)])
def test_axes_of_length_one_are_dropped(shape):
    array = np.arange(72, dtype=np.int16).reshape(shape) ** 2
    plane = array.reshape(8, 9)
    for data in (npy(array), npy(np.asfortranarray(array)), npz(array)):
        np.testing.assert_array_equal(one(data), plane)
    np.testing.assert_array_equal(one(nifti(array)), plane.T)
    volume = np.stack([array, array + 1], axis=-1)
    for data in (npy(volume), nifti(volume)):
        frames = named(data, axis=2)
        assert list(frames) == ["axis=2,slice=0", "axis=2,slice=1"]
        first, second = frames.values()
        np.testing.assert_array_equal(second, first + 1)


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (1, 1), (1, 1, 50)])
def test_a_line_is_a_plane(shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert one(npy(array)).shape == shape[-2:]
    np.testing.assert_array_equal(one(npy(array)).ravel(), array.ravel())


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_row_10_an_array_is_cut_into_its_slices(axis):
    frames = named(npy(VOLUME), axis=axis)
    cut = axis or 0
    assert list(frames) == [f"axis={cut},slice={number}" for number in range(VOLUME.shape[cut])]
    np.testing.assert_array_equal(list(frames.values()), np.moveaxis(VOLUME, cut, 0))
    fortran = named(npy(np.asfortranarray(VOLUME)), axis=axis)
    np.testing.assert_array_equal(list(fortran.values()), list(frames.values()))


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_row_10_a_nifti_is_cut_as_nibabel_slices_it(axis, kind):
    data = nifti(VOLUME, kind=kind)
    cut = 2 if axis is None else axis
    image = kind.from_bytes(data)
    for packed in (data, gzip.compress(data)):
        frames = named(packed, axis=axis)
        assert list(frames) == [f"axis={cut},slice={number}" for number in range(VOLUME.shape[cut])]
        for number, pixels in enumerate(frames.values()):
            place = (slice(None),) * cut + (number,)
            np.testing.assert_array_equal(pixels, image.get_fdata()[place].T)


@pytest.mark.parametrize(
    ("slices", "taken"),
    [
        (":", range(7)),
        ("2:5", range(2, 5)),
        ("2:", range(2, 7)),
        (":2", range(2)),
        ("3:99", range(3, 7)),
        ("0.2:0.8", range(1, 6)),  # 1.4 and 5.6, rounded
        ("0.5:", range(4, 7)),
        (":0.5", range(4)),
        ("1:0.5", range(1, 4)),
        ("0.0:1.0", range(7)),
        ("00:01", range(1)),
    ],
)
def test_row_10_a_range_of_slices(slices, taken):
    for data, axis in ((nifti(VOLUME), 2), (npy(VOLUME), 2)):
        frames = named(data, axis=axis, slices=slices)
        assert list(frames) == [f"axis=2,slice={number}" for number in taken]


@given(st.integers(2, 300), st.lists(st.decimals(0, 1, places=3), min_size=1, max_size=4))
def test_fractions_part_a_volume_with_nothing_lost_or_doubled(length, parts):
    bounds = ["", *(f"{part:.3f}" for part in sorted(set(parts) - {0, 1})), ""]
    pieces = itertools.pairwise(bounds)
    taken = [
        number for a, b in pieces for number in ReadOptions(slices=f"{a}:{b}").slice_range(length)
    ]
    assert taken == list(range(length))


@pytest.mark.parametrize("slices", ["7:", "9:12", "0.0:0.01", "0.51:0.52"])
def test_row_10_a_range_that_selects_nothing_says_so(slices):
    for data in (nifti(VOLUME), npy(VOLUME.transpose(2, 0, 1))):
        with pytest.raises(Rejected, match=f"slices {slices} select nothing") as caught:
            list(decode(data, ReadOptions(slices=slices)))
        assert caught.value.rejection.reason == "no-pixels"
    assert one(npy(NOISE), ReadOptions(slices=slices, axis=1)).shape == NOISE.shape  # no volume


@pytest.mark.parametrize("shape", [(2, 2, 2, 2), (3, 8, 9, 5), (1, 2, 8, 9, 2, 1)])
def test_row_10_more_axes_than_a_volume_has(shape):
    array = np.zeros(shape, np.float32)
    for data in (npy(array), npz(array), nifti(array)):
        with pytest.raises(Rejected, match="save each volume as a file") as caught:
            list(decode(data))
        assert caught.value.rejection.reason == "unsupported"


def test_row_09_an_array_that_looks_like_colour_is_refused():
    for shape in ((8, 9, 3), (8, 9, 4), (3, 8, 9, 1, 3), (8, 1, 9, 3)):
        array = np.ones(shape, np.uint8)
        for axis in (None, 0, 2):
            assert reason(npy(array), axis=axis) == "unsupported"
            assert reason(npz(array), axis=axis) == "unsupported"
    assert len(named(npy(np.ones((3, 8, 9), np.uint8)))) == 3
    assert len(named(nifti(np.ones((8, 9, 3), np.uint8)))) == 3
    assert one(npy(np.ones((9, 3), np.uint8))).shape == (9, 3)


def test_npz_gives_its_arrays_by_sorted_name():
    frames = named(npz(VOLUME, b=NOISE, a=NOISE.T), slices="1:3")
    names = ["array=a", "array=arr_0,axis=0,slice=1", "array=arr_0,axis=0,slice=2", "array=b"]
    assert list(frames) == names
    for name, expected in zip(names, (NOISE.T, VOLUME[1], VOLUME[2], NOISE), strict=True):
        np.testing.assert_array_equal(frames[name], expected)
    assert list(named(npz(NOISE))) == [""]
    assert list(named(npz(VOLUME), slices="4:")) == ["array=arr_0,axis=0,slice=4"]
    np.testing.assert_array_equal(one(npz(NOISE, compressed=False)), NOISE)


def zipped(members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def test_npz_with_a_damaged_or_foreign_member_is_rejected_whole():
    good = ("a.npy", npy(NOISE))
    assert len(named(zipped([good, ("b.npy", npy(NOISE))]))) == 2
    assert reason(zipped([good, ("b.npy", npy(NOISE)[:-1])])) == "bad-array"
    assert reason(zipped([good, ("b.npy", npy(NOISE) + b"\0")])) == "bad-array"
    assert reason(zipped([good, ("b.npy", b"")])) == "bad-array"
    assert reason(zipped([good, ("b.txt", b"")])) == "bad-array"
    assert reason(zipped([("b.txt", b"")])) == "unknown-format"
    with pytest.warns(UserWarning, match="Duplicate"):
        doubled = zipped([good, good])
    assert reason(doubled) == "bad-array"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert reason(zipped([good], method)) == "unsupported"
    data = npz(NOISE, compressed=False)
    wrong = bytearray(data)
    wrong[data.index(NOISE.tobytes()) + 99] ^= 1  # found by its checksum only
    assert reason(bytes(wrong)) == "damaged"
    for end in (40, len(data) // 2, len(data) - 1):
        assert reason(data[:end]) == "damaged"


def test_npz_encrypted():
    data = bytearray(npz(NOISE))
    data[data.index(b"PK\1\2") + 8] |= 1
    data[6] |= 1
    assert reason(bytes(data)) == "unsupported"


def test_row_13_npz_bombs_are_not_inflated(monkeypatch):
    header = npy(NOISE)[: -NOISE.size]
    bomb = zipped([("a.npy", header + bytes(50_000_000))])
    long = zipped(
        [("a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 50_000_000) + bytes(50_000_000))]
    )
    tracemalloc.start()
    try:
        assert reason(bomb) == "bad-array"
        assert reason(long) == "bad-array"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(arrays_module, "MAX_INFLATED", 2 * NOISE.size)
    assert len(named(npz(NOISE, NOISE))) == 2
    assert reason(npz(NOISE, NOISE, NOISE)) == "too-large"
    assert reason(npy(np.zeros((3, *NOISE.shape), np.uint8))) == "too-large"


class Trap:
    """Pickled into a file; unpickling it would make the file that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_row_13_pickled_arrays_are_not_executed(tmp_path):
    trap = np.empty((2, 2), object)
    trap[...] = Trap(tmp_path / "sprung")
    assert reason(npy(trap, allow_pickle=True)) == "bad-array"
    assert reason(npz(trap)) == "bad-array"
    assert not (tmp_path / "sprung").exists()
    np.load(io.BytesIO(npy(trap, allow_pickle=True)), allow_pickle=True)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("(2000000, 2000000)", "too-large"),  # 29 TiB of float64
        ("(2000, 2000, 2000)", "too-large"),
        ("(9" + "9" * 5000 + ", 2)", "bad-array"),
        ("(3, 3)", "bad-array"),
        ("(3, 3, 3)", "unsupported"),
        ("(3, 3, 2)", "bad-array"),
        ("(0, 4)", "bad-array"),
        ("(-2, -2)", "bad-array"),
        ("(4,)", "bad-array"),
        ("()", "bad-array"),
        ("__import__('os')", "bad-array"),
    ],
)
def test_row_13_npy_headers_that_lie(shape, expected):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(32)
    assert reason(data) == expected
    assert reason(zipped([("a.npy", data)])) == expected


def test_row_13_npy_bytes_and_types():
    data = npy(NOISE)
    assert reason(data + b"\0") == "bad-array"
    assert reason(data[:-1]) == "bad-array"
    assert reason(data[:20]) == "bad-array"
    assert reason(b"\x93NUMPY\x09\x00" + data[8:]) == "bad-array"
    for dtype in ("c8", "S4", "M8[s]", "f4,f4", "O", "U2"):
        array = np.zeros((4, 4), dtype)
        assert reason(npy(array, allow_pickle=True)) == "bad-array"
    for dtype in ("?", "<i8", ">u8", "<f2", ">f8", "u1"):
        array = (NOISE > 99).astype(dtype)
        np.testing.assert_array_equal(one(npy(array, version=(2, 0))), NOISE > 99)


@settings(deadline=None)
@given(
    arrays(
        st.one_of(integer_dtypes(), floating_dtypes(sizes=(16, 32, 64))),
        array_shapes(min_dims=2, max_dims=2, max_side=9),
    )
)
def test_npy_gives_every_sample(array):
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(one(npy(array)), array.astype(np.float32))


def test_row_12_nifti_slope_and_intercept():
    array = NOISE.astype(np.int16)
    plain = one(nifti(array))
    np.testing.assert_array_equal(plain, NOISE.T)
    np.testing.assert_array_equal(one(nifti(array, -2.0, 5.0)), 5 - 2.0 * NOISE.T)
    for none in (0.0, np.nan):
        np.testing.assert_array_equal(one(nifti(array, none, 5.0)), plain)
    for slope, intercept in ((np.inf, 0.0), (1.0, np.inf), (1.0, np.nan)):
        assert reason(nifti(array, slope, intercept)) == "damaged"
    assert not np.isfinite(one(nifti(array.astype(np.float32), 3e38, 0.0))).all()


def test_row_12_nifti_big_endian():
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    data = nibabel.Nifti1Image(NOISE.astype(">i2"), np.eye(4), header).to_bytes()
    assert data[:4] == b"\0\0\1\x5c"
    np.testing.assert_array_equal(one(data), NOISE.T)


def test_a_window_clips_a_nifti_in_rescaled_units():
    expected = np.clip(VOLUME[..., 3].T * 2.0 - 5, 60 - 100, 60 + 100)
    frames = named(nifti(VOLUME, 2.0, -5.0), window="60,200")
    np.testing.assert_array_equal(frames["axis=2,slice=3"], expected)
    plain = named(nifti(VOLUME, 2.0, -5.0), window="file")["axis=2,slice=3"]
    np.testing.assert_array_equal(plain, VOLUME[..., 3].T * 2.0 - 5)
    np.testing.assert_array_equal(one(npy(NOISE), ReadOptions(window="60,20")), NOISE)


def test_row_08_a_window_does_not_hide_what_is_not_finite():
    samples = NOISE.astype(np.float32)
    samples[3, 4] = np.nan
    assert np.isnan(one(nifti(samples), ReadOptions(window="60,20"))[4, 3])


def test_row_12_nifti_headers_that_lie():
    data = nifti(NOISE)
    huge = bytearray(data)
    huge[40:48] = struct.pack("<hhhh", 3, 32000, 32000, 32000)
    assert reason(bytes(huge)) == "too-large"
    assert reason(gzip.compress(bytes(huge))) == "too-large"
    huge[40:48] = struct.pack("<hhhh", 2, 32000, 32000, 1)
    assert reason(bytes(huge)) == "too-large"
    for shape in ((0, 0, 0), (2, 0, 5), (2, -4, 5), (1, 5, 5), (9, 5, 5)):
        wrong = bytearray(data)
        wrong[40:46] = struct.pack("<hhh", *shape)
        # More than 7 axes is how the other byte order is told, in which the sides are huge.
        assert reason(bytes(wrong)) == ("too-large" if shape[0] == 9 else "bad-array")
    for offset in (0.0, -400.0, 1e30, np.nan, np.inf):
        wrong = bytearray(data)
        wrong[108:112] = struct.pack("<f", offset)
        assert reason(bytes(wrong)) == "damaged"
    pair = bytearray(data)
    pair[344:348] = b"ni1\0"
    assert reason(bytes(pair)) == "unknown-format"
    assert reason(nifti(NOISE.astype(np.complex64))) == "bad-array"


@pytest.mark.parametrize("array", [NOISE, STACK])
def test_row_12_nifti_truncated_trailing_or_altered(array):
    data = nifti(array)
    packed = gzip.compress(data)
    assert reason(data[:-1]) == "bad-array"
    assert reason(data + b"\0") == "bad-array"
    assert reason(data[:300]) == "unknown-format"
    assert reason(gzip.compress(data[:-1])) == "bad-array"
    assert reason(packed[: len(packed) // 2]) == "damaged"
    assert reason(packed[:-1]) == "damaged"
    wrong = bytearray(packed)
    wrong[-8] ^= 1  # the checksum
    assert reason(bytes(wrong)) == "damaged"
    members = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    assert len(named(members)) == len(named(data))
    assert reason(gzip.compress(FORMATS["PNG"])) == "unknown-format"


def test_row_12_gzip_bombs_are_not_inflated(monkeypatch):
    bomb = gzip.compress(nifti(NOISE) + bytes(50_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        assert reason(bomb) == "bad-array"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(arrays_module, "MAX_INFLATED", STACK.size)
    assert len(named(gzip.compress(nifti(STACK)))) == STACK.shape[2]
    monkeypatch.setattr(arrays_module, "MAX_INFLATED", STACK.size - 1)
    assert reason(gzip.compress(nifti(STACK))) == "too-large"
