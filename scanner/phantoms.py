"""Volumes of bodies that never were, to cut slices of and to project: `subjects` does both.

Axes are right, anterior, superior, (side, side, side) float32 in [0, 1].

- `phantom` draws a body: soft parts and bones within one outline, most of them in pairs;
- `recoloured` gives a volume other contrasts, as another scanner or modality would
  (domain randomisation, after SynthSeg: Billot et al. 2023, arXiv:2107.09559);
- `encased` puts skull and skin around a brain.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.augment import smooth_field

_PARTS = (15, 60)  # of a body, a pair counting as one
_ROWS = (0, 4)  # of like parts, as vertebrae are, or ribs
_KNOTS = 8  # of a curve of greys
_BACKGROUND = 0.03  # greys below stay as they are
_Places = tuple[Tensor, Tensor, Tensor]  # of all voxels, along each axis, -1 to 1


class _Greys(NamedTuple):
    """Least and greatest of soft parts and of bones."""

    soft: tuple[float, float]
    bone: tuple[float, float]


def phantom(rng: Generator, side: int) -> Tensor:
    """Draw a body: an outline, layers beneath it, parts, rows of like parts, texture.

    Three of four are the same on the right and on the left. Some reach out of the volume on top
    and at the bottom, as a trunk does. In half of them bones are brighter than all else.
    """
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    right, anterior, superior = torch.meshgrid(axis, axis, axis, indexing="ij")
    paired = bool(_one(rng) < 0.75)
    places = (right.abs() if paired else right, anterior, superior)
    radii = torch.stack([_one(rng, 0.5, 0.95), _one(rng, 0.5, 0.95), _one(rng, 0.6, 1.4)])
    waves = smooth_field(1, 1, 5, (side,) * 3, rng)[0, 0] * _one(rng, 0, 0.1)
    waves = (waves + waves.flip(0)) / 2 if paired else waves
    depth = _radius(places, torch.zeros(3), radii, torch.eye(3)) + waves
    greys = _Greys((0.1, 0.5), (0.6, 1.0)) if _one(rng) < 0.5 else _Greys((0.0, 1.0), (0.0, 1.0))
    body, depth = _layered(depth, greys, rng)
    body = _with_parts(body, depth < 1, places, radii, greys, rng)
    body = _with_rows(body, depth < 1.1, places, radii, greys, rng)
    return _textured(body, rng)


def recoloured(volume: Tensor, rng: Generator) -> Tensor:
    """Map greys by a random curve, more or less far from the straight one: (X, Y, Z) -> same.

    The background stays dark.
    """
    straight = torch.linspace(0, 1, _KNOTS)
    curve = torch.lerp(straight, torch.rand(_KNOTS, generator=rng), _one(rng, 0.2, 1))
    place = volume * (_KNOTS - 1)
    low = place.floor().clamp(0, _KNOTS - 2)
    index = low.long()
    mapped = torch.lerp(curve[index], curve[index + 1], place - low)
    return torch.where(volume < _BACKGROUND, volume, mapped)


def encased(brain: Tensor, rng: Generator) -> Tensor:
    """Put a gap, skull and skin around a brain, each of its own thickness: (X, Y, Z) -> same."""
    coarse = functional.avg_pool3d((brain > 0.15).float()[None, None], 2, ceil_mode=True)
    inner = _grown(coarse, _count(rng, 0, 2))
    skull = _grown(inner, _count(rng, 1, 4))
    skin = _grown(skull, _count(rng, 1, 4))
    layers = (skull - inner) * _one(rng, 0.5, 1.5) + (skin - skull) * _one(rng, 0.1, 0.5)
    layers = functional.interpolate(layers, brain.shape, mode="trilinear")[0, 0]
    whole = brain + layers
    return whole / whole.max()


def _layered(depth: Tensor, greys: _Greys, rng: Generator) -> tuple[Tensor, Tensor]:
    """Draw skin and, in most bodies, bone beneath it; return the body, and depth within these."""
    body = torch.where(depth < 1, _one(rng, 0.1, 0.5), 0.0)
    if _one(rng) < 0.6:
        start = _one(rng, 0.75, 0.97)
        body = torch.where(depth < start, _one(rng, *greys.bone), body)
        depth = depth / (start - _one(rng, 0.03, 0.12))
    return torch.where(depth < 1, _one(rng, *greys.soft), body), depth


def _with_parts(
    body: Tensor, within: Tensor, places: _Places, radii: Tensor, greys: _Greys, rng: Generator
) -> Tensor:
    """Draw ellipsoids of all sizes, some of them hollow."""
    for _ in range(_count(rng, *_PARTS)):
        centre, shape, turn = _part(rng, radii, 0.06, 0.6)
        distance = _radius(places, centre, shape, turn)
        hollow = _one(rng, 0.5, 0.9) if _one(rng) < 0.3 else torch.tensor(0.0)
        grey = _one(rng, *(greys.bone if _one(rng) < 0.25 else greys.soft))
        body = torch.where((distance < 1) & (distance >= hollow) & within, grey, body)
    return body


def _with_rows(
    body: Tensor, within: Tensor, places: _Places, radii: Tensor, greys: _Greys, rng: Generator
) -> Tensor:
    """Draw rows of like bones, most of them from top to bottom."""
    for _ in range(_count(rng, *_ROWS)):
        centre, shape, turn = _part(rng, radii, 0.04, 0.15)
        step = torch.randn(3, generator=rng) * torch.tensor([0.2, 0.2, 1.0])
        step = step / step.norm() * shape.max() * _one(rng, 1.2, 2.5)
        grey, many = _one(rng, *greys.bone), _count(rng, 4, 12)
        for number in range(many):
            distance = _radius(places, centre + (number - many / 2) * step, shape, turn)
            body = torch.where((distance < 1) & within, grey, body)
    return body


def _part(
    rng: Generator, radii: Tensor, least: float, most: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw where an ellipsoid lies, its radii and how it is turned."""
    centre = (2 * torch.rand(3, generator=rng) - 1) * 0.8 * radii
    size = math.log(least) + (math.log(most) - math.log(least)) * torch.rand(1, generator=rng)
    shape = size.exp() * (0.25 + 0.75 * torch.rand(3, generator=rng))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng))
    return centre, shape, turn


def _radius(places: _Places, centre: Tensor, radii: Tensor, turn: Tensor) -> Tensor:
    """Return how far out each place is in an ellipsoid, 1 at its surface."""
    beside = [place - middle for place, middle in zip(places, centre, strict=True)]
    squares = [
        ((row[0] * beside[0] + row[1] * beside[1] + row[2] * beside[2]) / radius) ** 2
        for row, radius in zip(turn, radii, strict=True)
    ]
    distance: Tensor = (squares[0] + squares[1] + squares[2]).sqrt()
    return distance


def _textured(body: Tensor, rng: Generator) -> Tensor:
    """Add texture of two scales where the body is."""
    size = tuple(body.shape)
    coarse = smooth_field(1, 1, _count(rng, 6, 12), size, rng)
    fine = smooth_field(1, 1, _count(rng, 20, 48), size, rng)
    texture = _one(rng, 0, 0.12) * coarse + _one(rng, 0, 0.08) * fine
    return torch.where(body > 0, body * (1 + texture[0, 0]) + 0.2 * texture[0, 0], body).clamp(0, 1)


def _grown(mask: Tensor, voxels: int) -> Tensor:
    """Grow a mask (1, 1, X, Y, Z) by some voxels on every side, with rounded corners."""
    for _ in range(voxels):
        mask = (functional.avg_pool3d(mask, 3, 1, 1) > 0.1).float()
    return mask


def _one(rng: Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand((), generator=rng)


def _count(rng: Generator, least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, (), generator=rng))
