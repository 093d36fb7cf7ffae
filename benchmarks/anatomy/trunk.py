"""Sections of trunks, as CT and MRI give them: skin, fat, muscle, ribs, a vertebra, organs, gas.

Draw, side in pixels -> (B, side, side) in [0, 1]
"""

import torch
from torch import Tensor

from anatomy.body import Draw, Plane, ellipse, inside, plane, vessels, wavy
from deepssim_scan.imaging.changes.augment import smooth_field
from deepssim_scan.imaging.warp import blur
from deepssim_scan.training.procedural import integers, pink_noise

_ORGANS, _IN_A_CHEST = 16, 3  # at most


def sections(of: Draw, side: int) -> Tensor:
    """Draw sections of trunks; in 4 of 10 the large organs are lungs."""
    at = plane(of, side, turn=0.15, scale=(0.85, 1.2), shift=0.1)
    size = of(0.75, 0.98), of(0.5, 0.75)
    angle = torch.atan2(at[1] / size[1], at[0] / size[0])
    radius = torch.hypot(at[0] / size[0], at[1] / size[1]) * (1 + wavy(of, angle, 0.025, 4))
    sharp, air = of(0.01, 0.03), of(0, 0.08)
    wall = of(0.75, 0.95)
    inner = wall - of(0.08, 0.2)
    cavity = inside(inner - radius, sharp)
    image = air + (of(0.1, 0.8) - air) * inside(1 - radius, sharp)
    image = _put(image, inside(wall - radius, sharp), of(0.3, 0.8))
    image = _put(image, cavity, of(0.1, 0.6))
    image = _organs(of, image, cavity, at, size, air)
    bright = of(0.1, 1)
    image = _vertebra(of, image, at, size, bright)
    number = integers(of.rng, of.count, 5, 12)[:, None, None]
    around = (number * angle + of(0, 6)).sin() / 0.6
    rib = inside(1 - torch.hypot((radius - (inner + wall) / 2) / 0.04, around), 0.15)
    image = _put(image, rib * of.chance(0.7), bright)
    cloud = of(0, 0.1) * (pink_noise(of.rng, of.count, side) - 0.5)
    return _received(of, (image + cloud * inside(1 - radius, sharp)).clamp_min(0))


def _put(image: Tensor, mask: Tensor, grey: Tensor) -> Tensor:
    return image + (grey - image) * mask


def _organs(of: Draw, image: Tensor, cavity: Tensor, at: Plane, size: Plane, air: Tensor) -> Tensor:
    """Put a large organ with vessels on each side, and smaller ones anywhere."""
    side = image.shape[1]
    lungs = of.chance(0.4) > 0
    for sign in (-1, 1):
        centre = sign * size[0] * of(0.35, 0.5), of(-0.1, 0.1)
        radii = size[0] * of(0.25, 0.38), size[1] * of(0.4, 0.7)
        organ = inside(1 - ellipse(at, centre, radii, of(-0.3, 0.3)), 0.06) * cavity
        grey = torch.where(lungs, air + of(0, 0.1), of(0.2, 0.9))
        image = _put(image, organ, grey)
        lines = (vessels(of.own, side) > 0.8) * organ * torch.where(lungs, 1.0, 0.3)
        image = image + lines * of(0.1, 0.5)
    many = integers(of.rng, of.count, 2, _ORGANS)[:, None, None]
    most = torch.where(lungs, many.clamp_max(_IN_A_CHEST), many)
    for number in range(_ORGANS):
        centre = size[0] * of(-0.6, 0.6), size[1] * of(-0.65, 0.45)
        radii = of(0.04, 0.3), of(0.04, 0.22)
        organ = inside(1 - ellipse(at, centre, radii, of(0, 3)), 0.08) * cavity
        image = _put(image, organ * (number < most), of(0.05, 1))
    return image


def _vertebra(of: Draw, image: Tensor, at: Plane, size: Plane, grey: Tensor) -> Tensor:
    x, y = of(-0.03, 0.03), size[1] * of(0.4, 0.6)
    radii = of(0.1, 0.17), of(0.09, 0.15)
    body = inside(1 - ellipse(at, (x, y), radii, of(-0.2, 0.2)), 0.06)
    canal = of(0.04, 0.07), of(0.03, 0.06)
    hole = inside(1 - ellipse(at, (x, y + 0.16), canal, of()), 0.1)
    return _put(_put(image, body, grey), hole, of(0, 0.8))


def _received(of: Draw, image: Tensor) -> Tensor:
    """Shade, blur and window an image, and add noise."""
    side = image.shape[1]
    shading = 1 + of(0, 0.15) * smooth_field(of.count, 1, 3, (side, side), of.rng)[:, 0]
    image = blur(image * shading, of(0.2, 1.2).flatten() * side / 128)
    image = image + of(0, 0.04) * torch.randn(image.shape, generator=of.rng)
    return (image * of(0.7, 1.3)).clamp(0, 1) ** of(0.7, 1.4)
