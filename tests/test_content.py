"""What images show, against scipy's filters and images whose padding is known."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from deepssim_scan.imaging.changes.augment import move_content
from deepssim_scan.imaging.content import (
    apart_from,
    dark_and_flat,
    dark_margin,
    dark_padding,
    highest_near,
    padding_of,
)
from deepssim_scan.imaging.warp import rotation
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.standardise import standardise


def textured(seed, height, width):
    rng = np.random.default_rng(seed)
    field = scipy.ndimage.gaussian_filter(rng.normal(size=(height, width)), 2)
    return ((field - field.min()) / np.ptp(field)).astype(np.float32)


def padded(image, side, grey):
    """Centre an image in a square of one grey, by numpy alone."""
    out = np.full((side, side), grey, np.float32)
    top, left = ((side - length) // 2 for length in image.shape)
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return torch.from_numpy(out)[None]


@pytest.mark.parametrize(("height", "width"), [(64, 40), (40, 64), (64, 64)])
def test_bars_of_padding_are_told_from_the_image(height, width):
    image = padded(textured(1, height, width), 64, 0.5)
    wanted = np.ones((64, 64), bool)
    top, left = (64 - height) // 2, (64 - width) // 2
    wanted[top : top + height, left : left + width] = False
    assert padding_of(image)[0].numpy().tolist() == wanted.tolist()


@pytest.mark.parametrize(("height", "width"), [(64, 40), (41, 64), (64, 63), (7, 64), (64, 64)])
def test_dark_padding_is_what_standardise_adds(height, width):
    images = torch.from_numpy(standardise(textured(2, height, width), Standardisation(64)))[None]
    wanted = padded(np.zeros((height, width), np.float32), 64, 1) == 1
    assert torch.equal(dark_padding(images), wanted)
    assert torch.equal(padding_of(images), wanted)


@pytest.mark.parametrize("shown", [np.s_[9:], np.s_[9:, 9:], np.s_[9:-9, 9:-9], np.s_[:, 9:-20]])
def test_a_black_background_is_no_padding(shown):
    """One bar of it, two that meet, four, or two that are not as wide."""
    image = np.zeros((64, 64), np.float32)
    image[shown] = 0.1 + textured(2, 64, 64)[shown]
    assert not padding_of(torch.from_numpy(image)[None]).any()


def test_a_dark_margin_is_padding_beside_which_a_background_runs_in():
    """An oblong image that was moved down, by rows of black that come in."""
    image = textured(2, 40, 64) + 0.1
    image[:7] = 0
    image[:, :5] = 0
    images = padded(image, 64, 0.0)
    margin = np.zeros((64, 64), bool)
    margin[:13], margin[-12:], margin[:, 0] = True, True, True
    assert not dark_padding(images).any()
    assert np.array_equal(dark_margin(images)[0], margin)


def test_the_highest_near_is_scipys():
    images = torch.from_numpy(np.stack([textured(seed, 31, 18) for seed in range(3)]))
    wanted = [scipy.ndimage.maximum_filter(image, 3, mode="nearest") for image in images.numpy()]
    assert np.array_equal(highest_near(images).numpy(), np.stack(wanted))


def test_masks_are_grown_by_two_pixels():
    masks = torch.from_numpy(np.random.default_rng(0).random((2, 40, 30)) > 0.99)
    square = np.ones((5, 5))
    wanted = [~scipy.ndimage.binary_dilation(mask, square) for mask in masks.numpy()]
    assert np.array_equal(apart_from(masks).numpy(), np.stack(wanted).astype(np.float32))


def test_a_black_background_is_dark_with_its_noise_and_a_dark_texture_is_not():
    rng = np.random.default_rng(3)
    image = np.zeros((64, 64), np.float32)
    image[16:48, 16:48] = 0.2 + 0.8 * textured(3, 32, 32)
    noisy = image + rng.uniform(0, 0.01, image.shape).astype(np.float32)
    dark = dark_and_flat(torch.from_numpy(noisy)[None])[0][0].numpy()
    assert dark[:14].all()
    assert not dark[18:46, 18:46].any()


def test_fill_is_flat_whatever_its_grey():
    image = torch.from_numpy(textured(4, 64, 64))
    image[:20] = 0.7
    flat = dark_and_flat(image[None])[1][0]
    assert flat[:18].all()
    assert not flat[22:].any()


@pytest.mark.parametrize("dark", [False, True])
def test_an_oblong_image_is_moved_within_its_bars(dark):
    """As a copy is that was moved first, and padded to a square afterwards."""
    image = padded(textured(5, 64, 40), 64, 0.5)
    shift = torch.tensor([0.25, 0.0])[None, :, None, None].expand(1, 2, 64, 64)
    identity = rotation(torch.zeros(1))
    moved = move_content(image, identity, shift, torch.tensor([dark]))[0].numpy()
    assert (moved[:, :12] == 0.5).all()
    assert (moved[:, 52:] == 0.5).all()
    # Reading 8 pixels to the right moves the image 8 pixels to the left.
    assert np.allclose(moved[:, 12:44], image[0, :, 20:52].numpy(), atol=1e-5)
    if dark:
        assert (moved[:, 45:52] == image.min().item()).all()
