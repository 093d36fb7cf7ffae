"""Radiographs of chests.

generator, count, side in pixels -> (count, side, side) in [0, 1]

Amounts that rays meet add up: a trunk, less the air of its lungs, a heart, vessels, cloudy parts, a
spine, ribs from behind and from the front, collar bones, shoulder blades, arms.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from anatomy.body import (
    Plane,
    bone,
    ellipse,
    happens,
    inside,
    limb,
    plane,
    thickness,
    vessels,
    wavy,
)
from anatomy.film import filmed
from deepssim_scan.training.procedural import drawn, pink_noise

SIDES = -1, 1


@dataclass(frozen=True, slots=True)
class Cage:
    """Where the chest is: x from the spine, y down; heights, and half its width at every height."""

    x: Tensor
    y: Tensor
    width: Tensor
    top: Tensor
    bottom: Tensor
    rim: Tensor

    @property
    def middle(self) -> Tensor:
        """The height of its middle."""
        return (self.top + self.bottom) / 2

    def side(self, sign: int) -> Plane:
        """Coordinates in which a side is to the right."""
        return sign * self.x, self.y

    def outward(self) -> Tensor:
        """How far out from the spine: 0 there, 1 on the rim."""
        return self.x.abs() / self.rim.clamp_min(0.05)


def chests(rng: Generator, count: int, side: int) -> Tensor:
    """Draw radiographs of chests."""
    at = plane(rng, count, side, turn=0.12, scale=(0.95, 1.6))
    width, shoulder = drawn(rng, count, 0.75, 1.15), drawn(rng, count, -0.8, -0.5)
    trunk = _trunk(rng, at, width, shoulder)
    cage = _cage(rng, at, width, shoulder)
    lungs, shown = _lungs(rng, cage)
    amount = trunk * drawn(rng, count, 0.5, 1)
    air = drawn(rng, count, 0.3, 0.75) * amount.amax((1, 2), keepdim=True)
    amount = amount - air * lungs * trunk.clamp_min(0.3)
    amount = amount + _within(rng, cage, shown) + _spine(rng, cage) + _ribs(rng, cage)
    for sign in SIDES:
        amount = amount + _beside(rng, cage, sign, shoulder, trunk)
    amount = amount - _bubble(rng, cage)
    amount = amount + trunk * drawn(rng, count, 0, 0.08) * (pink_noise(rng, count, side) - 0.5)
    return filmed(rng, amount.clamp_min(0), at)


def _trunk(rng: Generator, at: Plane, width: Tensor, shoulder: Tensor) -> Tensor:
    x, y = at
    neck, softness = drawn(rng, len(x), 0.16, 0.3), drawn(rng, len(x), 0.03, 0.12)
    outline = neck + (width - neck) * inside(y - shoulder, softness) + wavy(rng, y, 0.05)
    return thickness((x / outline).square())


def _cage(rng: Generator, at: Plane, width: Tensor, shoulder: Tensor) -> Cage:
    x, y = at
    count = len(x)
    y = y - drawn(rng, count, -0.1, 0.1)
    top, bottom = shoulder + drawn(rng, count, -0.05, 0.15), drawn(rng, count, 0.45, 0.9)
    half, power = (bottom - top) / 2, drawn(rng, count, 1.6, 2.8)
    height = (y - (top + bottom) / 2) / half
    profile = (1 - (height / 1.15).abs() ** power).clamp_min(0) ** (1 / power)
    wider = drawn(rng, count, 0.7, 1)
    cage = width * drawn(rng, count, 0.72, 0.9)
    rim = cage * profile * (wider + (1 - wider) * (height + 1) / 2) + wavy(rng, y, 0.03)
    return Cage(x - wavy(rng, y, 0.04), y, cage, top, bottom, rim)


def _lungs(rng: Generator, cage: Cage) -> tuple[Tensor, Tensor]:
    """Return how much air there is, and where lungs are seen."""
    count, y = len(cage.y), cage.y
    middle = drawn(rng, count, 0.1, 0.2)
    middle = middle + drawn(rng, count, 0, 0.12) * inside(y - cage.middle, 0.1)
    sharp = drawn(rng, count, 0.008, 0.03)
    air, shown = torch.zeros_like(y), torch.zeros_like(y)
    for sign in SIDES:
        x, _ = cage.side(sign)
        arch = drawn(rng, count, 0.05, 0.2) * (1 - ((x / cage.width - 0.5) / 0.5).square())
        dome = cage.bottom + drawn(rng, count, -0.12, 0.12) - arch
        lung = inside(x - middle - wavy(rng, y, 0.04), sharp) * inside(cage.rim - x, sharp)
        lung = lung * inside(dome - y, sharp) * inside(y - cage.top, sharp * 3)
        depth = (1 - ((x / cage.rim.clamp_min(0.05) - 0.5) / 0.62).square()).clamp_min(0.05)
        air = air + lung * depth.sqrt() * drawn(rng, count, 0.75, 1.1)
        shown = shown + lung
    return air, shown.clamp(0, 1)


def _within(rng: Generator, cage: Cage, shown: Tensor) -> Tensor:
    """Return a heart, the knob above it, vessels, and cloudy parts of the lungs."""
    count, side = shown.shape[:2]
    at, middle = (cage.x, cage.y), cage.middle
    heart = (drawn(rng, count, -0.05, 0.22), cage.bottom - drawn(rng, count, 0.15, 0.4))
    size = drawn(rng, count, 0.2, 0.42), drawn(rng, count, 0.18, 0.35)
    total = thickness(ellipse(at, heart, size, drawn(rng, count, -0.3, 0.9)))
    total = total * drawn(rng, count, 0.15, 0.45)
    knob = (drawn(rng, count, 0.08, 0.2), middle - drawn(rng, count, 0.15, 0.3))
    size = drawn(rng, count, 0.06, 0.14), drawn(rng, count, 0.08, 0.2)
    above = thickness(ellipse(at, knob, size, drawn(rng, count, -0.5, 0.5)))
    total = total + above * drawn(rng, count, 0, 0.2)
    reach = drawn(rng, count, 0.15, 0.45)
    roots = [torch.hypot(sign * cage.x - 0.2, cage.y - middle) for sign in SIDES]
    fading = sum((-root / reach).exp() for root in roots)
    total = total + vessels(rng, count, side) * fading * shown * drawn(rng, count, 0.03, 0.3)
    for _ in range(3):
        centre = drawn(rng, count, -0.6, 0.6), middle + drawn(rng, count, -0.5, 0.5)
        size = drawn(rng, count, 0.05, 0.35), drawn(rng, count, 0.05, 0.3)
        cloud = thickness(ellipse(at, centre, size, drawn(rng, count, 0, 3))) * shown
        cloud = cloud * pink_noise(rng, count, side) * happens(rng, count, 0.2)
        total = total + cloud * drawn(rng, count, 0.1, 0.6)
    return total


def _spine(rng: Generator, cage: Cage) -> Tensor:
    count = len(cage.y)
    column = thickness((cage.x / drawn(rng, count, 0.06, 0.11)).square())
    turns = cage.y / drawn(rng, count, 0.1, 0.17) + drawn(rng, count)
    return column * (0.7 + 0.3 * (2 * math.pi * turns).cos()) * drawn(rng, count, 0.05, 0.3)


def _ribs(rng: Generator, cage: Cage) -> Tensor:
    """Return ribs from behind, and fainter ones from the front, which slope the other way."""
    count, y, outward = len(cage.y), cage.y, cage.outward()
    spacing = drawn(rng, count, 0.12, 0.2)
    total = torch.zeros_like(y)
    for front, slopes, bends in ((0, (-0.2, 0.15), (0.15, 0.7)), (1, (-0.7, -0.3), (0, 0.2))):
        slope, bend = drawn(rng, count, *slopes), drawn(rng, count, *bends)
        curve = (slope * outward + bend * outward.square()) * cage.width * 0.6
        aslant = drawn(rng, count, -0.04, 0.04) * cage.x.sign()
        turns = (y - curve - aslant + wavy(rng, y, 0.02)) / spacing + drawn(rng, count)
        tubes = bone(
            (turns % 1 - 0.5).abs() / drawn(rng, count, 0.16, 0.3), drawn(rng, count, 0.1, 0.5)
        )
        reach = inside(1.02 - outward, 0.02) * inside(outward - (0.35 if front else 0.15), 0.04)
        reach = reach * inside(y - cage.top + 0.05, 0.04) * inside(cage.bottom + 0.25 - y, 0.05)
        rounder = 0.6 + 0.8 * outward.clamp(0, 1).square()
        total = total + tubes * reach * rounder * drawn(rng, count, 0.04, 0.22) * (1 - 0.3 * front)
    return total


def _beside(rng: Generator, cage: Cage, sign: int, shoulder: Tensor, trunk: Tensor) -> Tensor:
    """Return a collar bone, a shoulder blade, an arm and a breast of one side."""
    count, at, width = len(trunk), cage.side(sign), cage.width
    start = drawn(rng, count, 0.06, 0.12), cage.top + drawn(rng, count, 0.02, 0.12)
    end = drawn(rng, count, 0.6, 0.85) * width, cage.top + drawn(rng, count, -0.15, 0.1)
    thin = drawn(rng, count, 0.025, 0.035), drawn(rng, count, 0.03, 0.04)
    collar = bone(limb(at, start, end, thin)[0], drawn(rng, count, 0.2, 0.5))
    total = collar * drawn(rng, count, 0.08, 0.25)
    centre = width * drawn(rng, count, 0.85, 1.1), cage.top + drawn(rng, count, 0.15, 0.4)
    size = drawn(rng, count, 0.08, 0.2), drawn(rng, count, 0.2, 0.4)
    blade = inside(1 - ellipse(at, centre, size, drawn(rng, count, -0.4, 0.4)), 0.06)
    total = total + blade * drawn(rng, count, 0, 0.15) * trunk
    centre = width * drawn(rng, count, 0.45, 0.6), cage.middle + drawn(rng, count, 0.1, 0.4)
    size = drawn(rng, count, 0.2, 0.35), drawn(rng, count, 0.15, 0.35)
    breast = thickness(ellipse(at, centre, size, drawn(rng, count, -0.3, 0.3)))
    total = total + breast * drawn(rng, count, 0.05, 0.25) * happens(rng, count, 0.2)
    return total + _arm(rng, at, width, shoulder) * happens(rng, count, 0.7)


def _arm(rng: Generator, at: Plane, width: Tensor, shoulder: Tensor) -> Tensor:
    count = len(width)
    raised = happens(rng, count, 0.4) > 0
    away = torch.where(raised, drawn(rng, count, -0.8, -0.2), drawn(rng, count, 0.5, 1.2))
    start = width * drawn(rng, count, 0.9, 1.1), shoulder + drawn(rng, count, 0.05, 0.15)
    end = width * drawn(rng, count, 1.1, 1.5), shoulder + away
    thick = drawn(rng, count, 0.1, 0.18), drawn(rng, count, 0.08, 0.14)
    flesh = thickness(limb(at, start, end, thick)[0].square())
    thin = drawn(rng, count, 0.035, 0.06), drawn(rng, count, 0.03, 0.045)
    shaft = bone(limb(at, start, end, thin)[0], drawn(rng, count, 0.2, 0.5))
    return flesh * drawn(rng, count, 0.2, 0.5) + shaft * drawn(rng, count, 0.15, 0.35)


def _bubble(rng: Generator, cage: Cage) -> Tensor:
    """Return the air in a stomach."""
    count = len(cage.y)
    centre = drawn(rng, count, 0.15, 0.45), cage.bottom + drawn(rng, count, -0.05, 0.15)
    size = drawn(rng, count, 0.06, 0.2), drawn(rng, count, 0.04, 0.12)
    air = thickness(ellipse((cage.x, cage.y), centre, size, drawn(rng, count, -0.4, 0.4)))
    return air * drawn(rng, count, 0.1, 0.3) * happens(rng, count, 0.5)
