"""Radiographs of joints and hands: bones that meet, in flesh.

Draw, side in pixels -> (B, side, side) in [0, 1]
"""

import torch
from torch import Tensor

from anatomy.body import Draw, bone, limb, plane, thickness, vessels
from anatomy.film import filmed
from deepssim_scan.training.procedural import pink_noise

_RAYS, _PARTS = 5, (2, 4)  # at most beside each other; bones of each, one after the other
_LENGTH = 2.6  # of all parts of a ray together


def limbs(of: Draw, side: int) -> Tensor:
    """Draw radiographs of limbs, all of a batch with as many bones."""
    at = plane(of, side, turn=3.2, scale=(0.7, 1.5))
    rays = int(torch.randint(1, _RAYS + 1, (), generator=of.rng))
    flesh, bones = torch.zeros_like(at[0]), torch.zeros_like(at[0])
    for ray in range(rays):
        beside = ray - (rays - 1) / 2
        x = of(-0.15, 0.15) + beside * (0.35 if rays < 3 else 0.28)
        y = of(-1.3, -0.9)
        apart = beside * of(0, 0.15)
        size = of(0.3, 1) * (0.28 if rays < 3 else 0.1)
        parts = int(torch.randint(_PARTS[0], _PARTS[1] + 1, (), generator=of.rng))
        for _ in range(parts):
            length = of(0.5, 1.1) * (_LENGTH / parts)
            end = x + apart * length + of(-0.1, 0.1), y + length
            radii = size * of(0.8, 1.2), size * of(0.7, 1.1)
            gap = of(0, 0.05)
            start, stop = (x, y + gap + radii[0]), (end[0], end[1] - gap - radii[1])
            distance, along = limb(at, start, stop, radii)
            flared = 1 + of(0.2, 0.8) * (2 * along - 1).square().square()
            tube = bone(distance / flared * 1.2, of(0.1, 0.5))
            bones = torch.maximum(bones, tube * of(0.5, 1))
            around = tuple(radius * of(1.5, 3) for radius in radii)
            wide, _ = limb(at, (x, y), end, around)
            flesh = torch.maximum(flesh, thickness(wide.square()))
            x, y = end
    lattice = of(0.4, 1) + of(0, 0.2) * vessels(of.own, side)
    cloud = pink_noise(of.rng, of.count, side) * of(0, 0.15)
    amount = flesh * (of(0.2, 0.7) + cloud) + bones * lattice
    return filmed(of, amount, at)
