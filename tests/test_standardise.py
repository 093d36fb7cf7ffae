"""Each test is named after its row in the table of bad inputs, where it has one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from image_bytes import NOISE

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.standardise import _unframed, standardise, z_score

AS_IS = Standardisation(size=None)


def z(values):
    """Z-score in float64, without marks and outliers: the oracle."""
    values = np.asarray(values, np.float64)
    if len(greys := np.unique(values)) > 2:
        least, most, marks = greys[0], greys[-2], greys[-1]
        rest = np.minimum(values, most)
        far = marks - most > most - least and 50 * (values == marks).sum() <= values.size
        shown = rest.std() >= max((most - least) / 20, 1.000001e-6 * np.abs(rest).max())
        values = rest if far and shown else values
    few, ordered = values.size // 1000, np.sort(values, axis=None)
    low, high = ordered[few], ordered[-1 - few]
    farthest = max(low - ordered[0], ordered[-1] - high)
    if values.std() <= 0.1 * np.ptp(values) and farthest > high - low > 0:
        values = values.clip(low, high)
    return (values - values.mean()) / values.std()


def reason(pixels, rule=AS_IS):
    with pytest.raises(Rejected) as caught:
        standardise(pixels, rule)
    return caught.value.rejection.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [AS_IS, Standardisation(size=64)])
def test_row_08_not_finite(value, rule):
    pixels = NOISE.astype(np.float32)
    pixels[3, 4] = value
    assert reason(pixels, rule) == "not-finite"
    with pytest.raises(Rejected, match="1 of 6300 pixels"):
        standardise(pixels, rule)


def test_never_resized_is_only_the_z_score():
    pixels = NOISE.astype(np.float32)
    np.testing.assert_array_equal(standardise(pixels, AS_IS), z_score(pixels))
    np.testing.assert_allclose(standardise(pixels, AS_IS), z(NOISE), rtol=1e-6, atol=1e-6)


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
@pytest.mark.parametrize("rule", [AS_IS, Standardisation(size=64)])
def test_row_11_constant_by_the_written_bound(array, constant, rule):
    pixels = np.asarray(array, np.float32)
    if constant:
        assert reason(pixels, rule) == "constant"
    else:
        side = rule.size
        assert standardise(pixels, rule).shape == (pixels.shape if side is None else (side, side))


@pytest.mark.parametrize("value", [-1000.0, 1e6, -3e38])
@pytest.mark.parametrize("count", [1, 6])  # of 6300 pixels
def test_row_64_outliers_leave_the_rest_as_it_is(value, count):
    pixels = NOISE.astype(np.float32) / 255
    pixels.ravel()[:count] = value
    least, most = pixels.ravel()[count:].min(), pixels.ravel()[count:].max()
    pixels_in_reach = pixels.clip(least, most)
    found = standardise(pixels, AS_IS)
    np.testing.assert_allclose(found, z(pixels_in_reach), rtol=0.01, atol=0.01)
    np.testing.assert_allclose(found, z(pixels), rtol=1e-5, atol=1e-5)


def test_row_64_more_than_1_in_1000_are_no_outliers():
    pixels = NOISE.astype(np.float32) / 255
    pixels.ravel()[:7] = -1000.0
    np.testing.assert_allclose(standardise(pixels, AS_IS), z(pixels), rtol=1e-5, atol=1e-5)
    assert standardise(pixels, AS_IS).min() < -20


def marked(grey, count):
    """Pixels of noise of which so many of 6300, here and there, have a grey."""
    pixels = NOISE.astype(np.float32)
    at = np.random.default_rng(0).permutation(pixels.size)[:count]
    pixels.ravel()[at] = grey
    return pixels, np.delete(pixels.ravel(), at)


def plain(pixels):
    """Z-score in float64, of all pixels as they are."""
    values = pixels.astype(np.float64)
    return (values - values.mean()) / values.std()


@pytest.mark.parametrize("grey", [512.0, 65535.0, 1e38])
@pytest.mark.parametrize("count", [1, 126])
def test_row_66_marks_are_brought_to_the_range_of_the_rest(grey, count):
    pixels, rest = marked(grey, count)
    expected = plain(np.minimum(pixels, rest.max()))
    np.testing.assert_allclose(standardise(pixels, AS_IS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grey", "count"), [(65535.0, 127), (509.0, 126)])
def test_row_66_more_than_1_in_50_and_greys_of_the_same_range_are_no_marks(grey, count):
    pixels, _ = marked(grey, count)
    np.testing.assert_allclose(standardise(pixels, AS_IS), plain(pixels), rtol=1e-5, atol=1e-5)


def test_row_66_what_is_left_beside_marks_must_show_something():
    pixels = np.ones((28, 36), np.float32)
    pixels[0, :2] = 0, 3
    np.testing.assert_allclose(standardise(pixels, AS_IS), plain(pixels), rtol=1e-5, atol=1e-5)
    assert standardise(pixels, AS_IS).max() > 20


def test_row_66_bright_pixels_of_several_greys_are_no_marks():
    pixels, _ = marked(65535.0, 126)
    pixels[pixels == 65535.0] -= np.arange(126)
    np.testing.assert_allclose(standardise(pixels, AS_IS), plain(pixels), rtol=1e-5, atol=1e-5)


def head(side=96):
    """A disc with a texture on a black background."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    texture = 120 + 60 * np.sin(rows / 5) * np.cos(columns / 7)
    return np.where(np.hypot(rows, columns) < 0.4 * side, texture, 0).astype(np.float32)


@pytest.mark.parametrize("widths", [((1, 1), (1, 1)), ((4, 4), (4, 4)), ((30, 12), (3, 40))])
@pytest.mark.parametrize("grey", [90, 180, 255])
def test_row_65_a_light_frame_is_left_out(widths, grey):
    framed = np.pad(head(), widths, constant_values=grey)
    noise = np.random.default_rng(0).normal(0, 1, framed.shape)
    rule = Standardisation(size=128)
    for image in (framed, framed + noise, 1000 - framed.max() + framed):
        found = standardise(image.astype(np.float32), rule)
        assert np.corrcoef(found.ravel(), standardise(head(), rule).ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    "image",
    [
        np.pad(head(), 4),  # a black one is a background
        255 - np.pad(head(), 4),  # as is a white one of an inverted image
        np.pad(head(), ((4, 4), (0, 0)), constant_values=255),  # two bars are none
        np.pad(head(), ((4, 4), (4, 0)), constant_values=255),
    ],
)
def test_row_65_what_is_no_light_frame_stays(image):
    image = image.astype(np.float32)
    assert _unframed(image) is image


def test_row_11_holds_for_the_scaled_image_too():
    line = np.random.default_rng(2).normal(size=(1, 5000)).astype(np.float32)
    assert standardise(line, Standardisation(size=512)).shape == (512, 512)
    with pytest.raises(Rejected, match="constant"):  # one row of 2048
        standardise(line, Standardisation(size=2048))


@settings(deadline=None)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_the_z_score_or_constant_by_the_bound(array):
    values = array.astype(np.float64)
    commonest = np.unique(array, return_counts=True)[1].max()
    flat = values.std() <= 1e-6 * np.abs(values).max()
    if flat or (array.size - commonest) * 1000 < array.size:
        assert reason(array) == "constant"
    else:
        np.testing.assert_allclose(standardise(array, AS_IS), z(array), rtol=1e-5, atol=1e-6)


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


def test_row_17_padding_is_symmetric_and_of_the_darkest_grey():
    image = np.full((32, 16), 900, np.float32)
    image[4:-4, 4:] = np.arange(24 * 12).reshape(24, 12)  # on four sides it were a frame (row 65)
    result = standardise(image, Standardisation(size=32))
    framed = np.zeros((32, 32))
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


def test_standardise_does_not_write_to_its_input():
    image = NOISE.astype(np.float32)
    image.flags.writeable = False
    standardise(image, Standardisation(size=70))
