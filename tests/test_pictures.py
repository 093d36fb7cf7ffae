"""Pictures of a finding: the training image is laid on the synthetic one as it was found to lie."""

import io
import math

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepssim_scan.reporting.pictures import aligned, draw

STILL = {
    "flip": "none",
    "degrees": 0.0,
    "right": 0.0,
    "down": 0.0,
    "gamma": 1.0,
    "scale": 1.0,
    "quarter_turn": False,
    "inverted": False,
}


def greys(seed=0, side=32):
    return np.random.default_rng(seed).random((side, side))


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, lambda image: image),
        ({"flip": "horizontal"}, np.fliplr),
        ({"flip": "vertical"}, np.flipud),
        ({"flip": "both"}, lambda image: image[::-1, ::-1]),
        ({"quarter_turn": True}, lambda image: image.T[:, ::-1]),
        ({"inverted": True}, lambda image: 1 - image),
        ({"gamma": 2.0}, np.square),
        ({"flip": "horizontal", "quarter_turn": True}, lambda image: image[:, ::-1].T[:, ::-1]),
        ({"degrees": 90.0}, lambda image: image.T[::-1]),
    ],
)
def test_what_moves_whole_pixels_is_exact(changed, wanted):
    image = greys()
    np.testing.assert_allclose(aligned(image, STILL | changed), wanted(image), atol=1e-6)


def test_a_shift_is_in_pixels_of_128():
    image = greys(side=64)
    found = aligned(image, STILL | {"right": 4.0, "down": -8.0})
    np.testing.assert_allclose(found[:-4, 2:], image[4:, :-2], atol=1e-6)
    assert not found[-4:].any() and not found[:, :2].any()


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-15, 15), st.floats(0.85, 1.15), st.floats(-16, 16), st.floats(-16, 16), st.booleans()
)
def test_scale_turn_and_shift_are_what_scipy_makes_of_them(degrees, scale, right, down, mirrored):
    image = scipy.ndimage.gaussian_filter(greys(side=64), 2)
    flip = "horizontal" if mirrored else "none"
    changed = {"degrees": degrees, "scale": scale, "right": right, "down": down, "flip": flip}
    found = aligned(image, STILL | changed)
    y, x = np.indices((64, 64)) + 0.5 - 32
    x, y = x - right / 2, y - down / 2
    angle = math.radians(degrees)
    from_x = (math.cos(angle) * x - math.sin(angle) * y) / scale
    from_y = (math.sin(angle) * x + math.cos(angle) * y) / scale
    where = [from_y + 31.5, (-from_x if mirrored else from_x) + 31.5]
    wanted = scipy.ndimage.map_coordinates(image, where, order=1)
    inside = (np.abs(from_x) < 30) & (np.abs(from_y) < 30)
    assert np.abs(found - wanted)[inside].max() < 5e-3


def test_a_picture_is_a_small_png_and_that_of_no_difference_is_black():
    image = scipy.ndimage.gaussian_filter(greys(side=128), 3).astype(np.float32)
    found = draw(image * 3 - 1, image, STILL)
    pictures = [
        np.asarray(Image.open(io.BytesIO(each)))
        for each in (found.synthetic, found.training, found.difference)
    ]
    assert {each.shape for each in pictures} == {(96, 96)}
    assert pictures[2].max() <= 2
    np.testing.assert_allclose(pictures[0], pictures[1].astype(int), atol=2)
    assert pictures[0].min() < 30
    assert pictures[0].max() > 220
