"""Radiographs of joints and hands: bones that meet, in flesh.

generator, count, side in pixels -> (count, side, side) in [0, 1]
"""

import torch
from torch import Generator, Tensor

from anatomy.body import bone, limb, plane, thickness, vessels
from anatomy.film import filmed
from deepssim_scan.training.procedural import drawn, pink_noise

_RAYS, _PARTS = 5, (2, 4)  # at most beside each other; bones of each, one after the other
_LENGTH = 2.6  # of all parts of a ray together


def limbs(rng: Generator, count: int, side: int) -> Tensor:
    """Draw radiographs of limbs, all of a batch with as many bones."""
    at = plane(rng, count, side, turn=3.2, scale=(0.7, 1.5))
    rays = int(torch.randint(1, _RAYS + 1, (), generator=rng))
    flesh, bones = torch.zeros_like(at[0]), torch.zeros_like(at[0])
    for ray in range(rays):
        beside = ray - (rays - 1) / 2
        x = drawn(rng, count, -0.15, 0.15) + beside * (0.35 if rays < 3 else 0.28)
        y = drawn(rng, count, -1.3, -0.9)
        apart = beside * drawn(rng, count, 0, 0.15)
        size = drawn(rng, count, 0.3, 1) * (0.28 if rays < 3 else 0.1)
        parts = int(torch.randint(_PARTS[0], _PARTS[1] + 1, (), generator=rng))
        for _ in range(parts):
            length = drawn(rng, count, 0.5, 1.1) * (_LENGTH / parts)
            end = x + apart * length + drawn(rng, count, -0.1, 0.1), y + length
            radii = size * drawn(rng, count, 0.8, 1.2), size * drawn(rng, count, 0.7, 1.1)
            gap = drawn(rng, count, 0, 0.05)
            start, stop = (x, y + gap + radii[0]), (end[0], end[1] - gap - radii[1])
            distance, along = limb(at, start, stop, radii)
            flared = 1 + drawn(rng, count, 0.2, 0.8) * (2 * along - 1).square().square()
            tube = bone(distance / flared * 1.2, drawn(rng, count, 0.1, 0.5))
            bones = torch.maximum(bones, tube * drawn(rng, count, 0.5, 1))
            around = tuple(radius * drawn(rng, count, 1.5, 3) for radius in radii)
            wide, _ = limb(at, (x, y), end, around)
            flesh = torch.maximum(flesh, thickness(wide.square()))
            x, y = end
    lattice = drawn(rng, count, 0.4, 1) + drawn(rng, count, 0, 0.2) * vessels(rng, count, side)
    cloud = pink_noise(rng, count, side) * drawn(rng, count, 0, 0.15)
    amount = flesh * (drawn(rng, count, 0.2, 0.7) + cloud) + bones * lattice
    return filmed(rng, amount, at)
