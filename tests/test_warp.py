"""Changes of images against scipy's and scikit-image's."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from pictures import of_every_family
from skimage.exposure import adjust_gamma
from torch.nn import functional

from deepssim_scan.imaging.warp import (
    blur,
    gamma,
    normalise_local_contrast,
    read_at,
    resample,
    restandardise,
    rotation,
)

SIDE = 48


@pytest.fixture(scope="module")
def images():
    """Eight standardised images of each procedural family."""
    return of_every_family(8, SIDE)


def _inner(images, rim):
    return images[..., rim:-rim, rim:-rim]


@pytest.mark.parametrize("angle", [-0.17, 0.05, 0.17, 1.0])
def test_rotation_equals_scipys(angle, images):
    turned = resample(images, rotation(torch.full((len(images),), angle)))
    degrees = np.rad2deg(angle)
    expected = scipy.ndimage.rotate(
        images.numpy(), degrees, axes=(1, 2), reshape=False, order=1, mode="nearest"
    )
    rim = 2 if abs(angle) < 0.5 else SIDE // 5  # beyond it, corners come from outside
    torch.testing.assert_close(
        _inner(turned, rim), _inner(torch.tensor(expected), rim), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("scale", [None, 0.9, 1.15])
def test_reading_at_an_angle_a_scale_and_a_shift_equals_scipys(scale, images):
    angle, right, down = 0.15, 0.1, -0.05
    count = len(images)
    found = read_at(
        images,
        torch.full((count,), angle),
        torch.tensor([[right, down]] * count),
        None if scale is None else torch.full((count,), scale),
    )
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turn *= scale or 1
    middle = np.array([(SIDE - 1) / 2] * 2)  # scipy's axes are row, column
    offset = middle - turn @ middle + np.array([down, right]) * SIDE / 2
    for image, moved in zip(images.numpy(), found, strict=True):
        wanted = scipy.ndimage.affine_transform(image, turn, offset, order=1, mode="nearest")
        torch.testing.assert_close(
            _inner(moved, 9), _inner(torch.tensor(wanted), 9), rtol=0, atol=2e-3
        )


def test_resampling_moves_by_the_displacement(images):
    shift = torch.zeros(len(images), 2, SIDE, SIDE)
    shift[:, 0], shift[:, 1] = 2 * 3 / SIDE, -2 * 5 / SIDE  # pixels, in half sides
    identity = torch.eye(2).expand(len(images), 2, 2)
    moved = resample(images, identity, shift)
    torch.testing.assert_close(moved[:, 5:, :-3], images[:, :-5, 3:], rtol=0, atol=1e-4)
    edge = images[:, :1, 3:].expand(-1, 5, -1)  # beyond the border the border continues
    torch.testing.assert_close(moved[:, :5, :-3], edge, rtol=0, atol=1e-4)


def test_what_comes_in_from_outside_is_dark_where_asked():
    images = torch.rand(2, 12, 12) + 1
    images[:, 0, 0] = 0.5
    right = torch.zeros(2, 2, 12, 12)
    right[:, 0] = 2.0  # a whole side
    read = resample(images, torch.eye(2).expand(2, 2, 2), right, torch.tensor([True, False]))
    assert (read[0] == 0.5).all()
    torch.testing.assert_close(read[1], images[1, :, -1:].expand(12, 12))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_gamma_equals_scikit_images(exponent, images):
    found = gamma(images, torch.full((len(images),), exponent))
    for image, each in zip(images.double().numpy(), found.numpy(), strict=True):
        low, span = image.min(), np.ptp(image)
        expected = adjust_gamma((image - low) / span, exponent) * span + low
        np.testing.assert_allclose(each, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_blur_equals_scipys(sigma, images):
    found = blur(images, torch.full((len(images),), sigma))
    expected = scipy.ndimage.gaussian_filter(images.numpy(), (0, sigma, sigma), truncate=6)
    torch.testing.assert_close(
        _inner(found, 15), _inner(torch.tensor(expected), 15), rtol=0, atol=1e-4
    )


def test_blur_takes_each_image_its_own_sigma_and_no_darkness_from_outside():
    flat = torch.ones(3, 20, 20)
    torch.testing.assert_close(blur(flat, torch.tensor([0.5, 1, 9])), flat)
    points = torch.zeros(3, 21, 21)
    points[:, 10, 10] = 1
    peaks = blur(points, torch.tensor([1.0, 2, 3]))[:, 10, 10]
    torch.testing.assert_close(
        peaks, 1 / (2 * torch.pi * torch.tensor([1.0, 4, 9])), rtol=0.01, atol=0
    )


def reference_normalised(images):
    def mean(x):
        return functional.avg_pool2d(x, 17, stride=1, padding=8, count_include_pad=False)

    spread = mean((images - mean(images)) ** 2)
    return (images - mean(images)) / torch.sqrt(spread + 0.05)


@pytest.mark.parametrize("shape", [(2, 40, 40), (1, 9, 30), (3, 17, 64)])
def test_local_contrast_normalisation_equals_average_pooling(shape):
    images = 2 * torch.randn(shape) + 1
    images[..., :5, :] = 0.25  # a flat part, whose local spread is nought
    torch.testing.assert_close(
        normalise_local_contrast(images, 17, 0.05),
        reference_normalised(images),
        rtol=1e-4,
        atol=1e-4,
    )


def test_local_contrast_is_the_same_for_bright_and_dark():
    images = torch.randn(1, 40, 40)
    shifted = images + torch.linspace(-3, 3, 40)  # brighter on one side
    inner = (..., slice(8, 32), slice(8, 32))
    brightness = (shifted - images)[inner].abs().mean()
    changed = normalise_local_contrast(shifted, 17, 0.05) - normalise_local_contrast(
        images, 17, 0.05
    )
    assert changed[inner].abs().mean() < 0.2 * brightness


def test_restandardised_images_are_standard_whatever_their_unit_and_a_constant_one_is_nought():
    images = (torch.rand(3, 9, 14) + 20) * torch.tensor([1.0, 500, 1e-4])[:, None, None]
    images[0] = 7
    found = restandardise(images)
    assert not found[0].any()
    spread, mean = torch.std_mean(found[1:], (1, 2), correction=0)
    torch.testing.assert_close(spread, torch.ones(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=1e-4)
