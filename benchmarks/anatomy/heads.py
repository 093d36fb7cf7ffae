"""Slices and projections of heads that nobody has: the MNI152 average, deformed.

generator, count, side in pixels -> (count, side, side) in [0, 1]

Neighbouring images of each pseudo-subject; what a scanner gives, and what illness does, is drawn
beside it: other contrasts of the tissues, lesions, shading, a coarse resolution along one axis.
"""

from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn import functional

from anatomy.body import ellipse, happens, inside
from deepssim_scan.imaging.augment import smooth_field
from deepssim_scan.imaging.warp import blur
from deepssim_scan.training.procedural import drawn, pink_noise
from deepssim_scan.training.pseudo_subjects import FILLED, mni152, projections, slices

_EACH = 2  # neighbouring images of a pseudo-subject
_APART, _TURNED = 0.03, 12.0  # of an axis, and degrees, at most, between neighbours
_KNOTS = 6  # of a curve that gives each grey another one
_RAYS = 96  # pixels a side at which projections are made


def head_slices(rng: Generator, count: int, side: int) -> Tensor:
    """Draw slices of pseudo-subjects on one axis."""
    axis = int(torch.randint(3, (), generator=rng))
    low, high = tuple(FILLED.values())[axis]
    made = []
    for _ in range(0, count, _EACH):
        first, apart = torch.rand(2, generator=rng).tolist()
        first = low + (high - low) * first
        positions = [first, first + _APART * (2 * apart - 1)]
        person = torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        images = slices(_volume(), axis, positions, side, person)
        made.append(_scanned(rng, _ill(rng, _recoloured(rng, images))))
    return torch.cat(made)[:count]


def head_projections(rng: Generator, count: int, side: int) -> Tensor:
    """Draw radiographs of a pseudo-subject."""
    first, *apart = torch.rand(count, generator=rng).tolist()
    angles = [360 * first, *(360 * first + _TURNED * (2 * each - 1) for each in apart)]
    person = torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
    images = projections(_volume(), angles, _RAYS, person)
    size = (side, side)
    return functional.interpolate(images[:, None], size, mode="bicubic")[:, 0].clamp(0, 1)


@cache
def _volume() -> Tensor:
    return mni152()


def _recoloured(rng: Generator, images: Tensor) -> Tensor:
    """Give every grey another one, as other sequences do; half of the pseudo-subjects keep theirs.

    Air stays dark.
    """
    levels = torch.cat([torch.zeros(1), torch.rand(_KNOTS - 1, generator=rng)])
    changed = bool(happens(rng, 1, 0.5))
    if not changed:
        return images
    at = images.clamp(0, 1) * (_KNOTS - 1)
    below = at.floor().long().clamp_max(_KNOTS - 2)
    return levels[below] + (at - below) * (levels[below + 1] - levels[below])


def _ill(rng: Generator, images: Tensor) -> Tensor:
    """Add up to three lesions, with a rim of another grey, that neighbours share."""
    axis = (torch.arange(images.shape[1]) + 0.5) * 2 / images.shape[1] - 1
    at = (
        axis[None, None].expand(1, len(axis), -1),
        axis[None, :, None].expand(1, -1, len(axis)),
    )
    within = inside(blur(images, torch.tensor([2.0])) - 0.1, 0.03)
    for _ in range(3):
        centre = drawn(rng, 1, -0.5, 0.5), drawn(rng, 1, -0.5, 0.5)
        radii = drawn(rng, 1, 0.04, 0.3), drawn(rng, 1, 0.04, 0.3)
        shape = ellipse(at, centre, radii, drawn(rng, 1, 0, 3))
        shape = shape + (pink_noise(rng, len(images), len(axis)) - 0.5) * drawn(rng, 1, 0, 1.5)
        there = bool(happens(rng, 1, 0.2))
        core, rim = (inside(bound - shape, 0.1) * within for bound in (0.6, 1.0))
        if there:
            for mask in (rim, core):
                images = images + (drawn(rng, 1) - images) * mask * drawn(rng, 1, 0.3, 1)
    return images


def _scanned(rng: Generator, images: Tensor) -> Tensor:
    """Shade, coarsen, and dim what lies within, and add the noise of a magnitude."""
    size = tuple(images.shape[1:])
    shading = 1 + drawn(rng, 1, 0, 0.3) * smooth_field(1, 1, 3, size, rng)[0]
    images = blur(images * shading, drawn(rng, 1, 0.2, 0.9).flatten() * size[0] / 128)
    if bool(happens(rng, 1, 0.3)):
        rows, columns = (1 - 0.6 * torch.rand(2, generator=rng)).tolist()
        coarse = round(size[0] * rows), round(size[1] * columns)
        small = functional.interpolate(images[:, None], coarse, mode="bilinear", antialias=True)
        images = functional.interpolate(small, size, mode="bicubic")[:, 0]
    real, imaginary = torch.randn(2, *images.shape, generator=rng)
    strength = drawn(rng, 1, 0, 0.05) * happens(rng, 1, 0.7)
    noisy = torch.hypot(images + strength * real, strength * imaginary)
    return (noisy * drawn(rng, 1, 0.6, 1.2)).clamp(0, 1) ** drawn(rng, 1, 0.8, 2)
