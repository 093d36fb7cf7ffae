"""Thumbnails, and regions of images that copy regions of training images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from deepssim_scan.imaging.thumbnails import SIDE, thumbnails
from deepssim_scan.matching.regions import CORNERS, WINDOW, RegionSearch, _greatest, boxes


def pictures(count, seed, side=128):
    """Smooth noise (n, side, side), standardised: every picture is another."""
    noise = np.random.default_rng(seed).standard_normal((count, side, side))
    smooth = gaussian_filter(noise, (0, 2.5, 2.5))
    return (smooth / smooth.std((1, 2), keepdims=True)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.floats(0.5, 3), st.floats(-2, 2))
def test_a_thumbnail_depends_little_on_contrast_and_not_on_brightness(height, width, scale, shift):
    image = pictures(1, height, 200)[0, :height, :width]
    plain, changed = thumbnails([image, scale * image + shift]).astype(float)
    assert plain.shape == (SIDE, SIDE)
    assert np.corrcoef(plain.ravel(), changed.ravel())[0, 1] > 0.98
    assert np.abs(thumbnails([image + 2])[0] - plain).max() <= 1


@pytest.fixture(scope="module")
def training():
    return pictures(60, 1)


@pytest.fixture(scope="module")
def search(training):
    return RegionSearch(thumbnails(training), np.arange(60) // 2)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("corner", range(len(CORNERS)))
def test_a_region_of_a_training_image_is_found_where_it_is(search, training, corner, mirrored):
    """Of the size of a region, shifted by three pixels, in another contrast."""
    host, source = pictures(1, 100 + corner)[0], 7 * corner
    donor = np.roll(1.5 * training[source] + 0.3, (3, -2), (0, 1))
    if mirrored:
        donor = donor[:, ::-1]
    y, x = (int(at * 128 / SIDE) for at in CORNERS[corner])
    length = int(WINDOW * 128 / SIDE)
    left = 128 - length - x if mirrored else x
    host[y : y + length, left : left + length] = donor[y : y + length, left : left + length]
    found = search.look_for(thumbnails([host, *pictures(30, 5)]))
    assert found.rows[0] == source
    assert found.mirrored[0] == mirrored
    assert found.statistic[0] > found.statistic[1:].max()
    box = next(boxes(found))
    wanted = np.array([left, y, left + length, y + length]) / 128
    assert np.abs(np.array(box) - wanted).max() < 0.02


def test_the_image_of_a_subject_that_is_left_out_is_not_found(search, training):
    small = thumbnails(training[:4])
    with_all = search.look_for(small)
    assert with_all.rows.tolist() == [0, 1, 2, 3]
    without = search.look_for(small, np.array([[0], [0], [1], [1]]))
    assert not {*without.rows.tolist()} & {0, 1, 2, 3}
    assert (without.statistic < with_all.statistic).all()


def test_images_looked_for_alone_and_together_have_the_same_regions(search):
    small = thumbnails(pictures(70, 9))
    together, alone = search.look_for(small), search.look_for(small[66:67])
    assert together.rows[66] == alone.rows[0]
    assert together.statistic[66] == pytest.approx(alone.statistic[0], abs=1e-4)


def test_fewer_than_two_subjects_tell_nothing():
    small = thumbnails(pictures(5, 3))
    assert np.isnan(RegionSearch(small, np.zeros(5, int)).look_for(small).statistic).all()
    two = RegionSearch(small, np.array([0, 0, 0, 1, 1]))
    assert np.isfinite(two.look_for(small).statistic).all()
    assert np.isnan(two.look_for(small, np.zeros((5, 1), int)).statistic).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(8, 400), st.integers(0, 9))
def test_the_greatest_scores_are_those_of_a_sort(count, width, seed):
    scores = np.random.default_rng(seed).integers(0, 40, (5, width)).astype(np.float32)
    found = _greatest(scores, count)
    assert all(len({*row}) == count for row in found.tolist())
    values = np.sort(np.take_along_axis(scores, found, 1), 1)
    assert np.array_equal(values, np.sort(scores, 1)[:, -count:])
