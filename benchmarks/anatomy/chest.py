"""Radiographs of chests.

Draw, side in pixels -> (B, side, side) in [0, 1]

Amounts that rays meet add up: a trunk, less the air of its lungs, a heart, vessels, cloudy parts, a
spine, ribs from behind and from the front, collar bones, shoulder blades, arms.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anatomy.body import Draw, Plane, bone, ellipse, inside, limb, plane, thickness, vessels, wavy
from anatomy.film import filmed
from deepssim_scan.training.procedural import pink_noise

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


def chests(of: Draw, side: int) -> Tensor:
    """Draw radiographs of chests."""
    at = plane(of, side, turn=0.12, scale=(0.95, 1.6))
    width, shoulder = of(0.75, 1.15), of(-0.8, -0.5)
    trunk = _trunk(of, at, width, shoulder)
    cage = _cage(of, at, width, shoulder)
    lungs, shown = _lungs(of, cage)
    amount = trunk * of(0.5, 1)
    air = of(0.3, 0.75) * amount.amax((1, 2), keepdim=True)
    amount = amount - air * lungs * trunk.clamp_min(0.3)
    amount = amount + _within(of, cage, shown) + _spine(of, cage) + _ribs(of, cage)
    for sign in SIDES:
        amount = amount + _beside(of, cage, sign, shoulder, trunk)
    amount = amount - _bubble(of, cage)
    amount = amount + trunk * of(0, 0.08) * (pink_noise(of.rng, of.count, side) - 0.5)
    return filmed(of, amount.clamp_min(0), at)


def _trunk(of: Draw, at: Plane, width: Tensor, shoulder: Tensor) -> Tensor:
    x, y = at
    neck, softness = of(0.16, 0.3), of(0.03, 0.12)
    outline = neck + (width - neck) * inside(y - shoulder, softness) + wavy(of, y, 0.05)
    return thickness((x / outline).square())


def _cage(of: Draw, at: Plane, width: Tensor, shoulder: Tensor) -> Cage:
    x, y = at
    y = y - of(-0.1, 0.1)
    top, bottom = shoulder + of(-0.05, 0.15), of(0.45, 0.9)
    half, power = (bottom - top) / 2, of(1.6, 2.8)
    height = (y - (top + bottom) / 2) / half
    profile = (1 - (height / 1.15).abs() ** power).clamp_min(0) ** (1 / power)
    wider = of(0.7, 1)
    cage = width * of(0.72, 0.9)
    rim = cage * profile * (wider + (1 - wider) * (height + 1) / 2) + wavy(of, y, 0.03)
    return Cage(x - wavy(of, y, 0.04), y, cage, top, bottom, rim)


def _lungs(of: Draw, cage: Cage) -> tuple[Tensor, Tensor]:
    """Return how much air there is, and where lungs are seen."""
    y = cage.y
    middle = of(0.1, 0.2)
    middle = middle + of(0, 0.12) * inside(y - cage.middle, 0.1)
    sharp = of(0.008, 0.03)
    air, shown = torch.zeros_like(y), torch.zeros_like(y)
    for sign in SIDES:
        x, _ = cage.side(sign)
        arch = of(0.05, 0.2) * (1 - ((x / cage.width - 0.5) / 0.5).square())
        dome = cage.bottom + of(-0.12, 0.12) - arch
        lung = inside(x - middle - wavy(of, y, 0.04), sharp) * inside(cage.rim - x, sharp)
        lung = lung * inside(dome - y, sharp) * inside(y - cage.top, sharp * 3)
        depth = (1 - ((x / cage.rim.clamp_min(0.05) - 0.5) / 0.62).square()).clamp_min(0.05)
        air = air + lung * depth.sqrt() * of(0.75, 1.1)
        shown = shown + lung
    return air, shown.clamp(0, 1)


def _within(of: Draw, cage: Cage, shown: Tensor) -> Tensor:
    """Return a heart, the knob above it, vessels, and cloudy parts of the lungs."""
    side, own = shown.shape[1], of.own
    at, middle = (cage.x, cage.y), cage.middle
    heart = (of(-0.05, 0.22), cage.bottom - of(0.15, 0.4))
    size = of(0.2, 0.42), of(0.18, 0.35)
    total = thickness(ellipse(at, heart, size, of(-0.3, 0.9)))
    total = total * of(0.15, 0.45)
    knob = (of(0.08, 0.2), middle - of(0.15, 0.3))
    size = of(0.06, 0.14), of(0.08, 0.2)
    above = thickness(ellipse(at, knob, size, of(-0.5, 0.5)))
    total = total + above * of(0, 0.2)
    reach = of(0.15, 0.45)
    roots = [torch.hypot(sign * cage.x - 0.2, cage.y - middle) for sign in SIDES]
    fading = sum((-root / reach).exp() for root in roots)
    total = total + vessels(of.own, side) * fading * shown * of(0.03, 0.3)
    for _ in range(3):
        centre = own(-0.6, 0.6), middle + own(-0.5, 0.5)
        size = own(0.05, 0.35), own(0.05, 0.3)
        cloud = thickness(ellipse(at, centre, size, own(0, 3))) * shown
        cloud = cloud * pink_noise(of.rng, of.count, side) * own.chance(0.2)
        total = total + cloud * own(0.1, 0.6)
    return total


def _spine(of: Draw, cage: Cage) -> Tensor:
    column = thickness((cage.x / of(0.06, 0.11)).square())
    turns = cage.y / of(0.1, 0.17) + of.own()
    return column * (0.7 + 0.3 * (2 * math.pi * turns).cos()) * of(0.05, 0.3)


def _ribs(of: Draw, cage: Cage) -> Tensor:
    """Return ribs from behind, and fainter ones from the front, which slope the other way."""
    y, outward = cage.y, cage.outward()
    spacing = of(0.12, 0.2)
    total = torch.zeros_like(y)
    for front, slopes, bends in ((0, (-0.2, 0.15), (0.15, 0.7)), (1, (-0.7, -0.3), (0, 0.2))):
        slope, bend = of(*slopes), of(*bends)
        curve = (slope * outward + bend * outward.square()) * cage.width * 0.6
        aslant = of(-0.04, 0.04) * cage.x.sign()
        turns = (y - curve - aslant + wavy(of, y, 0.02)) / spacing + of.own()
        tubes = bone((turns % 1 - 0.5).abs() / of(0.16, 0.3), of(0.1, 0.5))
        reach = inside(1.02 - outward, 0.02) * inside(outward - (0.35 if front else 0.15), 0.04)
        reach = reach * inside(y - cage.top + 0.05, 0.04) * inside(cage.bottom + 0.25 - y, 0.05)
        rounder = 0.6 + 0.8 * outward.clamp(0, 1).square()
        total = total + tubes * reach * rounder * of(0.04, 0.22) * (1 - 0.3 * front)
    return total


def _beside(of: Draw, cage: Cage, sign: int, shoulder: Tensor, trunk: Tensor) -> Tensor:
    """Return a collar bone, a shoulder blade, an arm and a breast of one side."""
    at, width = cage.side(sign), cage.width
    start = of(0.06, 0.12), cage.top + of(0.02, 0.12)
    end = of(0.6, 0.85) * width, cage.top + of(-0.15, 0.1)
    thin = of(0.025, 0.035), of(0.03, 0.04)
    collar = bone(limb(at, start, end, thin)[0], of(0.2, 0.5))
    total = collar * of(0.08, 0.25)
    centre = width * of(0.85, 1.1), cage.top + of(0.15, 0.4)
    size = of(0.08, 0.2), of(0.2, 0.4)
    blade = inside(1 - ellipse(at, centre, size, of(-0.4, 0.4)), 0.06)
    total = total + blade * of(0, 0.15) * trunk
    centre = width * of(0.45, 0.6), cage.middle + of(0.1, 0.4)
    size = of(0.2, 0.35), of(0.15, 0.35)
    breast = thickness(ellipse(at, centre, size, of(-0.3, 0.3)))
    total = total + breast * of(0.05, 0.25) * of.chance(0.2)
    return total + _arm(of, at, width, shoulder) * of.chance(0.7)


def _arm(of: Draw, at: Plane, width: Tensor, shoulder: Tensor) -> Tensor:
    raised = of.chance(0.4) > 0
    away = torch.where(raised, of(-0.8, -0.2), of(0.5, 1.2))
    start = width * of(0.9, 1.1), shoulder + of(0.05, 0.15)
    end = width * of(1.1, 1.5), shoulder + away
    thick = of(0.1, 0.18), of(0.08, 0.14)
    flesh = thickness(limb(at, start, end, thick)[0].square())
    thin = of(0.035, 0.06), of(0.03, 0.045)
    shaft = bone(limb(at, start, end, thin)[0], of(0.2, 0.5))
    return flesh * of(0.2, 0.5) + shaft * of(0.15, 0.35)


def _bubble(of: Draw, cage: Cage) -> Tensor:
    """Return the air in a stomach."""
    centre = of(0.15, 0.45), cage.bottom + of(-0.05, 0.15)
    size = of(0.06, 0.2), of(0.04, 0.12)
    air = thickness(ellipse((cage.x, cage.y), centre, size, of(-0.4, 0.4)))
    return air * of(0.1, 0.3) * of.chance(0.5)
