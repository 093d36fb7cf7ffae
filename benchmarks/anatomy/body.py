"""Shapes that bodies are made of, each with its own place and size in every image of a batch.

Coordinates x, y (B, H, W) run from -1 to 1 over an image, y down; parameters are (B, 1, 1).
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.training.procedural import drawn

Plane = tuple[Tensor, Tensor]
_SCALES = 8, 14, 24  # knots a side of the noise whose ridges are vessels


def plane(
    rng: Generator,
    count: int,
    side: int,
    *,
    turn: float,
    scale: tuple[float, float],
    shift: float = 0.15,
) -> Plane:
    """Draw how bodies lie in the image: turned, of another size and aspect, beside its middle."""
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    x = axis - drawn(rng, count, -shift, shift)
    y = axis[:, None] - drawn(rng, count, -shift, shift)
    angle, shrink = drawn(rng, count, -turn, turn), 1 / drawn(rng, count, *scale)
    cos, sin = shrink * angle.cos(), shrink * angle.sin()
    return cos * x + sin * y, drawn(rng, count, 0.9, 1.1) * (cos * y - sin * x)


def happens(rng: Generator, count: int, probability: float) -> Tensor:
    """Draw 1 with a probability, else 0."""
    return (drawn(rng, count) < probability).float()


def inside(distance: Tensor, softness: Tensor | float) -> Tensor:
    """Return 1 where a distance is positive, and 0 beyond a soft edge."""
    return torch.sigmoid(distance / softness)


def wavy(rng: Generator, along: Tensor, size: float, waves: int = 3) -> Tensor:
    """Draw a smooth function of a coordinate."""
    total, count = torch.zeros_like(along), len(along)
    for wave in range(1, waves + 1):
        phase = wave * drawn(rng, count, 1.2, 2.2) * along + drawn(rng, count, 0, 2 * math.pi)
        total = total + size / wave * drawn(rng, count, -1, 1) * phase.sin()
    return total


def ellipse(at: Plane, centre: Plane, radii: Plane, angle: Tensor) -> Tensor:
    """Return the squared distance from the centre, 1 on the outline."""
    x, y = at[0] - centre[0], at[1] - centre[1]
    along = (angle.cos() * x + angle.sin() * y) / radii[0]
    across = (angle.cos() * y - angle.sin() * x) / radii[1]
    return along.square() + across.square()


def thickness(squared: Tensor) -> Tensor:
    """Return how thick a round body is where its squared distance (1 on its outline) is known."""
    return (1 - squared).clamp_min(0).sqrt()


def limb(at: Plane, start: Plane, end: Plane, radii: Plane) -> tuple[Tensor, Tensor]:
    """Return the distance from the axis in radii, and the position along it from 0 to 1."""
    right, down = end[0] - start[0], end[1] - start[1]
    x, y = at[0] - start[0], at[1] - start[1]
    along = ((x * right + y * down) / (right.square() + down.square())).clamp(0, 1)
    radius = radii[0] + (radii[1] - radii[0]) * along
    return torch.hypot(x - along * right, y - along * down) / radius, along


def bone(distance: Tensor, shell: Tensor) -> Tensor:
    """Return how much bone there is at a distance from its axis: a tube with marrow in it."""
    marrow = ((1 - shell).square() - distance.square()).clamp_min(0).sqrt()
    return thickness(distance.square()) - 0.8 * marrow


def vessels(rng: Generator, count: int, side: int) -> Tensor:
    """Draw branching lines: the ridges of smooth noise at three scales, (B, side, side)."""
    total = torch.zeros(count, side, side)
    for knots in _SCALES:
        noise = torch.randn(count, 1, knots, knots, generator=rng)
        size = (side, side)
        smooth = functional.interpolate(noise, size, mode="bicubic", align_corners=True)[:, 0]
        ridges = (1 - smooth.abs() / drawn(rng, count, 0.1, 0.25)).clamp_min(0).sqrt()
        total = total + ridges * drawn(rng, count, 0.3, 1)
    return total
