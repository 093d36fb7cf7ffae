"""Slices and projections of heads that nobody has: the MNI152 average, deformed.

Draw, side in pixels -> (B, side, side) in [0, 1]

Two neighbouring images of each pseudo-subject. What a scanner gives, and what illness does, is
drawn beside it: other contrasts of the tissues, lesions, shading, coarse resolution on an axis.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn import functional

from anatomy.body import Draw, ellipse, inside
from deepssim_scan.imaging.changes.augment import smooth_field
from deepssim_scan.imaging.warp import blur
from deepssim_scan.training.procedural import pink_noise
from deepssim_scan.training.pseudo_subjects import FILLED, mni152, projections, slices

_EACH = 2  # neighbouring images of a pseudo-subject
_BEYOND = 0.06  # of an axis: slices that a head does not fill
_APART, _TURNED = 0.03, 12.0  # of an axis, and degrees, at most, between neighbours
_KNOTS = 6  # of a curve that gives each grey another one
_RAYS = 96  # pixels a side at which projections are made


def head_slices(of: Draw, side: int) -> Tensor:
    """Draw slices of pseudo-subjects on one axis."""
    axis = int(torch.randint(3, (), generator=of.rng))
    subjects = replace(of, count=of.count // _EACH)
    low, high = tuple(FILLED.values())[axis]
    first = subjects(low - _BEYOND, high + _BEYOND)
    second = first + subjects.own(-_APART, _APART)
    images = [
        slices(_volume(), axis, pair, side, _person(of.rng))
        for pair in torch.cat([first, second], 1)[..., 0].tolist()
    ]
    every = torch.stack(images)  # (subjects, 2, side, side)
    return _scanned(of, _ill(subjects.own, _recoloured(subjects, every)).flatten(0, 1))


def head_projections(of: Draw, side: int) -> Tensor:
    """Draw radiographs of pseudo-subjects."""
    subjects = replace(of, count=of.count // _EACH)
    first = subjects(0, 360)
    pairs = torch.cat([first, first + subjects.own(-_TURNED, _TURNED)], 1)[..., 0]
    images = [projections(_volume(), pair, _RAYS, _person(of.rng)) for pair in pairs.tolist()]
    size = (side, side)
    drawn = functional.interpolate(torch.cat(images)[:, None], size, mode="bicubic")
    return drawn[:, 0].clamp(0, 1)


@cache
def _volume() -> Tensor:
    return mni152()


def _person(rng: Generator) -> Generator:
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=rng)))


def _recoloured(of: Draw, images: Tensor) -> Tensor:
    """Give every grey another one, as other sequences do; half of the pseudo-subjects keep theirs.

    Air stays dark.
    """
    knots = [of() for _ in range(_KNOTS - 1)]
    levels = torch.cat([torch.zeros_like(knots[0]), *knots], 1)[..., 0]  # (subjects, knots)
    at = images.clamp(0, 1) * (_KNOTS - 1)
    below = at.floor().long().clamp_max(_KNOTS - 2)
    low, high = (levels.gather(1, (below + k).flatten(1)).view_as(images) for k in (0, 1))
    changed = of.chance(0.5)[:, None] > 0
    return torch.where(changed, low + (at - below) * (high - low), images)


def _ill(of: Draw, images: Tensor) -> Tensor:
    """Add up to three lesions, with a rim of another grey, that neighbours share."""
    side = images.shape[-1]
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    at = axis[None, None].expand(1, side, -1), axis[None, :, None].expand(1, -1, side)
    within = inside(blur(images.flatten(0, 1), torch.tensor([2.0])) - 0.1, 0.03).view_as(images)
    for _ in range(3):
        shape = ellipse(
            at, (of(-0.5, 0.5), of(-0.5, 0.5)), (of(0.04, 0.3), of(0.04, 0.3)), of(0, 3)
        )
        shape = shape + (pink_noise(of.rng, of.count, side) - 0.5) * of(0, 1.5)
        there = of.chance(0.2)
        for bound in (1.0, 0.6):
            share = (inside(bound - shape, 0.1) * there * of(0.3, 1))[:, None] * within
            images = images + (of()[:, None] - images) * share
    return images


def _scanned(of: Draw, images: Tensor) -> Tensor:
    """Shade and coarsen, and add the noise of a magnitude: (B, side, side) -> same."""
    size = tuple(images.shape[1:])
    shading = 1 + of(0, 0.3) * smooth_field(of.count, 1, 3, size, of.rng)[:, 0]
    images = blur(images * shading, of(0.2, 0.9).flatten() * size[0] / 128)
    coarse, rows, columns = torch.rand(3, generator=of.rng).tolist()
    if coarse < 0.3:
        smaller = round(size[0] * (1 - 0.6 * rows)), round(size[1] * (1 - 0.6 * columns))
        small = functional.interpolate(images[:, None], smaller, mode="bilinear", antialias=True)
        images = functional.interpolate(small, size, mode="bicubic")[:, 0]
    real, imaginary = torch.randn(2, *images.shape, generator=of.rng)
    strength = of(0, 0.05) * of.chance(0.7)
    noisy = torch.hypot(images + strength * real, strength * imaginary)
    return (noisy * of(0.6, 1.2)).clamp(0, 1) ** of(0.8, 2)
