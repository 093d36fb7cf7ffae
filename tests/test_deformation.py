"""Smooth displacements of registered pairs, made by scipy, and undone."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from pictures import of_every_family, registered

from deepssim_scan.imaging.registration.deformation import undo_deformation

SIDE = 64


def drawn_out(image, rng, most):
    """Move the pixels of an image (H, W) along a smooth field, by at most so many."""
    field = scipy.ndimage.gaussian_filter(rng.normal(size=(2, SIDE, SIDE)), (0, 9, 9))
    field *= most / np.abs(field).max()
    return scipy.ndimage.map_coordinates(image, np.indices(image.shape) + field, order=1)


@pytest.fixture(scope="module")
def images():
    """Images after a blur of a pixel, as they are compared."""
    sharp = of_every_family(8, SIDE).numpy()
    return torch.tensor(scipy.ndimage.gaussian_filter(sharp, (0, 1, 1)))


def squared_error(pairs):
    middle = (pairs.synthetic - pairs.training)[:, 4:-4, 4:-4]
    return middle.square().mean((1, 2))


def test_a_displacement_of_up_to_a_pixel_and_a_quarter_is_undone(images):
    rng = np.random.default_rng(0)
    moved = torch.tensor(np.stack([drawn_out(image.numpy(), rng, 1.25) for image in images]))
    before = registered(moved, images)
    after = undo_deformation(before)
    assert (squared_error(after) < squared_error(before)).all()
    assert squared_error(after).sum() < 0.3 * squared_error(before).sum()


def test_greys_do_not_matter(images):
    rng = np.random.default_rng(0)
    moved = torch.tensor(np.stack([drawn_out(image.numpy(), rng, 1.25) for image in images]))
    as_it_is = undo_deformation(registered(moved, images)).synthetic
    brighter = undo_deformation(registered(3 * moved + 2, images)).synthetic
    torch.testing.assert_close(brighter, 3 * as_it_is + 2, rtol=1e-3, atol=1e-3)


def test_a_pair_that_fits_stays_as_it_is(images):
    after = undo_deformation(registered(images, images))
    torch.testing.assert_close(after.synthetic, images, rtol=1e-5, atol=1e-5)


def test_no_pixel_comes_from_more_than_a_pixel_and_a_half_away(images):
    """Another image is not made of this one: each grey lies between those two pixels around."""
    after = undo_deformation(registered(images, images.roll(1, 0))).synthetic.numpy()
    size = (1, 5, 5)
    least = scipy.ndimage.minimum_filter(images.numpy(), size, mode="nearest")
    most = scipy.ndimage.maximum_filter(images.numpy(), size, mode="nearest")
    assert (after >= least - 1e-4).all()
    assert (after <= most + 1e-4).all()
    assert np.abs(after - images.numpy()).max() > 0.1


def test_where_nothing_is_compared_nothing_moves(images):
    inside = torch.zeros(images.shape, dtype=torch.bool)
    after = undo_deformation(registered(images, images.flip(0), inside))
    torch.testing.assert_close(after.synthetic, images, rtol=1e-5, atol=1e-5)


def test_a_pair_does_not_depend_on_those_beside_it(images):
    rng = np.random.default_rng(1)
    moved = torch.tensor(np.stack([drawn_out(image.numpy(), rng, 1.0) for image in images]))
    together = undo_deformation(registered(moved, images)).synthetic
    for number in (0, 13):
        alone = undo_deformation(
            registered(moved[number : number + 1], images[number : number + 1])
        )
        torch.testing.assert_close(alone.synthetic[0], together[number], rtol=1e-4, atol=1e-4)
