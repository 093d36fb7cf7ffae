"""Shapes that bodies are made of, each with its own place and size in every image of a batch.

The bodies of a batch are alike, as people are, or of any kind: `Draw` says how much.

Coordinates x, y (B, H, W) run from -1 to 1 over an image, y down; parameters are (B, 1, 1).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.training.procedural import drawn

Plane = tuple[Tensor, Tensor]
_SCALES = 8, 14, 24  # knots a side of the noise whose ridges are vessels


@dataclass(frozen=True, slots=True)
class Draw:
    """Draws numbers for `count` bodies, which differ by `spread`: 0 alike, 1 of any kind."""

    rng: Generator
    count: int
    spread: float = 1.0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw a number between two for each body: (B, 1, 1)."""
        every = drawn(self.rng, 1, low, high)
        return every + self.spread * (drawn(self.rng, self.count, low, high) - every)

    def chance(self, probability: float) -> Tensor:
        """Draw 1 with a probability, else 0, for each body."""
        return (self() < probability).float()

    @property
    def own(self) -> "Draw":
        """Draws what no two bodies share."""
        return replace(self, spread=1.0)


def plane(
    of: Draw,
    side: int,
    *,
    turn: float,
    scale: tuple[float, float],
    shift: float = 0.15,
) -> Plane:
    """Draw how bodies lie in the image: turned, of another size and aspect, beside its middle."""
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    x = axis - of(-shift, shift)
    y = axis[:, None] - of(-shift, shift)
    angle, shrink = of(-turn, turn), 1 / of(*scale)
    cos, sin = shrink * angle.cos(), shrink * angle.sin()
    return cos * x + sin * y, of(0.9, 1.1) * (cos * y - sin * x)


def inside(distance: Tensor, softness: Tensor | float) -> Tensor:
    """Return 1 where a distance is positive, and 0 beyond a soft edge."""
    return torch.sigmoid(distance / softness)


def wavy(of: Draw, along: Tensor, size: float, waves: int = 3) -> Tensor:
    """Draw a smooth function of a coordinate."""
    total = torch.zeros_like(along)
    for wave in range(1, waves + 1):
        phase = wave * of(1.2, 2.2) * along + of(0, 2 * math.pi)
        total = total + size / wave * of(-1, 1) * phase.sin()
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


def vessels(of: Draw, side: int) -> Tensor:
    """Draw branching lines: the ridges of smooth noise at three scales, (B, side, side)."""
    total = torch.zeros(of.count, side, side)
    for knots in _SCALES:
        noise = torch.randn(of.count, 1, knots, knots, generator=of.rng)
        size = (side, side)
        smooth = functional.interpolate(noise, size, mode="bicubic", align_corners=True)[:, 0]
        ridges = (1 - smooth.abs() / of(0.1, 0.25)).clamp_min(0).sqrt()
        total = total + ridges * of(0.3, 1)
    return total
