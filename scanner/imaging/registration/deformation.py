"""What a similarity transform leaves of registered pairs: a smooth displacement, undone.

    Registered -> the same, the synthetic image moved to where the training image shows the same

A copy can be drawn out here and there by a pixel or two. No measure of a pair is high then, because
edges lie beside each other. The displacement is one vector for every fourth pixel, estimated by
Lucas and Kanade's least squares around it (1981, IJCAI 2, 674-679) on images after local contrast
normalisation. It is at most three pixels of 128 long: two people are not brought together by that.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.registration import Registered
from deepssim_scan.imaging.warp import (
    normalise_local_contrast,
    pixel_centres,
    read_grid,
    standardise_within,
)

_PITCH = 4  # pixels between vectors; here and below, of images of half the size
_WIDTH = 4.0  # standard deviation of the Gaussian around a vector, pixels
_LONGEST = 1.5  # of each component, pixels
_STEPS = 2
_RIDGE = 0.1  # of the mean structure: where nothing is shown, nothing moves
_WINDOW, _FLOOR = 11, 0.05  # of local contrast normalisation


def undo_deformation(pairs: Registered) -> Registered:
    """Move the synthetic images (P, H, W) of registered pairs to fit the training images."""
    weight = pairs.inside.float()
    training, synthetic = (
        normalise_local_contrast(standardise_within(each, weight), _WINDOW, _FLOOR, weight)
        for each in (pairs.training, pairs.synthetic)
    )
    vectors = _displacement(synthetic, training, weight)
    return replace(pairs, synthetic=_moved(pairs.synthetic, vectors))


def _displacement(moving: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
    """Return by how many pixels to read `moving` elsewhere: (P, H, W) -> (2, P, H / 4, W / 4)."""
    down, right = (weight * slope for slope in torch.gradient(fixed, dim=(1, 2)))
    xx, xy, yy = (_around(product) for product in (right * right, right * down, down * down))
    ridge = _RIDGE * (xx + yy).mean((1, 2), keepdim=True) + 1e-4
    xx, yy = xx + ridge, yy + ridge
    determinant = xx * yy - xy * xy
    vectors = torch.zeros_like(torch.stack([xx, yy]))
    for _ in range(_STEPS):
        error = _moved(moving, vectors) - fixed
        x, y = _around(right * error), _around(down * error)
        step = torch.stack([yy * x - xy * y, xx * y - xy * x]) / determinant
        vectors = (vectors - step).clamp(-_LONGEST, _LONGEST)
    return vectors


def _moved(images: Tensor, vectors: Tensor) -> Tensor:
    """Read images (P, H, W) at every pixel plus the displacement between vectors."""
    height, width = images.shape[1:]
    rows, columns = _between(height, images), _between(width, images)
    by = (rows @ vectors @ columns.mT).permute(1, 2, 3, 0) * images.new_tensor(
        [2 / width, 2 / height]
    )
    y, x = pixel_centres(height, images)[:, None], pixel_centres(width, images)
    grid = torch.stack([x.expand(height, width), y.expand(height, width)], -1) + by
    return read_grid(images[:, None], grid)[:, 0]


def _around(images: Tensor) -> Tensor:
    """Average around each vector: (P, H, W) -> (P, H / 4, W / 4)."""
    rows, columns = (_gaussians(length, images) for length in images.shape[1:])
    return rows @ images @ columns.mT


def _gaussians(length: int, like: Tensor) -> Tensor:
    """Return the weights (length / 4, length) of the pixels around each vector."""
    places = torch.arange(length, device=like.device, dtype=like.dtype)
    distance = (places[::_PITCH, None] + (_PITCH - 1) / 2 - places) / _WIDTH
    return torch.softmax(-0.5 * distance.square(), 1)


def _between(length: int, like: Tensor) -> Tensor:
    """Return the weights (length, length / 4) that interpolate between vectors."""
    single = torch.eye(length // _PITCH, device=like.device, dtype=like.dtype)
    return functional.interpolate(single[None], length, mode="linear", align_corners=False)[0].mT
