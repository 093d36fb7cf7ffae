"""From what rays met to greys: tubes and wires, the film, letters, the borders of the collimator.

thickness (B, H, W) >= 0 -> images (B, H, W) in [0, 1]
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anatomy.body import Draw, Plane, ellipse, inside, thickness, wavy
from deepssim_scan.imaging.warp import blur

_TUBES, _WORDS = 4, ("L", "R", "AP", "PA", "PORTABLE", "SUPINE", "ERECT")
_SIDE = 128  # pixels, of which blurs and letters are given


def filmed(of: Draw, amount: Tensor, at: Plane) -> Tensor:
    """Make radiographs of what rays met."""
    images = _exposed(of, _with_devices(of.own, amount, at))
    return _collimated(of, _lettered(of, images))


def _with_devices(of: Draw, amount: Tensor, at: Plane) -> Tensor:
    """Add tubes, wires and something round."""
    for _ in range(_TUBES):
        lengthwise = of.chance(0.5) > 0
        across, along = (torch.where(lengthwise, *pair) for pair in (at, at[::-1]))
        path = of(-0.8, 0.8) + wavy(of, along, 0.25)
        tube = thickness(((across - path) / of(0.006, 0.02)).square())
        tube = tube * inside(along - of(-1.2, 0.2), 0.01)
        tube = tube * inside(of(0, 1.4) - along, 0.01)
        amount = amount + tube * of(0.1, 0.6) * of.chance(0.25)
    centre = of(-0.7, 0.7), of(-0.7, 0.7)
    radii = of(0.015, 0.07), of(0.015, 0.07)
    spot = inside(1 - ellipse(at, centre, radii, of(0, 3)), 0.1)
    return amount + spot * of(0.2, 1) * of.chance(0.15)


def _exposed(of: Draw, amount: Tensor) -> Tensor:
    """Turn amounts to greys, as a detector and its software do."""
    pixel = amount.shape[1] / _SIDE
    amount = amount / amount.amax((1, 2), keepdim=True).clamp_min(1e-6)
    steepness = of(0.3, 2.5)
    images = (1 - (-steepness * amount).exp()) / (1 - (-steepness).exp())
    wide = blur(images, of(3, 20).flatten() * pixel)
    images = images - of(0, 0.9) * of.chance(0.7) * (wide - 0.5)
    images = blur(images, of(0.2, 1).flatten() * pixel)
    grain = torch.randn(images.shape, generator=of.rng)
    images = images + of(0, 0.03) * grain
    some = images.flatten(1)[:, ::7]
    low, high = (some.quantile(share, 1)[:, None, None] for share in (0.01, 0.995))
    span = (high - low).clamp_min(1e-6)
    low = low + of(-0.02, 0.1) * span
    images = ((images - low) / (span * of(0.8, 1.05))).clamp(0, 1)
    return images ** of(0.7, 1.4)


def _lettered(of: Draw, images: Tensor) -> Tensor:
    """Write a word near the border of half of the images."""
    side = images.shape[1]
    written = images.clone()
    for image in written:
        some, bright, column, row = torch.rand(4, generator=of.rng).tolist()
        word, size = (
            int(torch.randint(below, (), generator=of.rng)) for below in (len(_WORDS), 10)
        )
        if some < 0.5:
            plate = Image.new("L", (side, side))
            corner = tuple(side * (0.25 * c if c < 0.5 else 0.5 + 0.5 * c) for c in (column, row))
            font = ImageFont.load_default((6 + size) * side // _SIDE)
            ImageDraw.Draw(plate).text(corner, _WORDS[word], fill=255, font=font)
            letters = torch.from_numpy(np.asarray(plate, np.float32)) / 255
            image.copy_(torch.maximum(image, letters * (0.6 + 0.4 * bright)))
    return written


def _collimated(of: Draw, images: Tensor) -> Tensor:
    """Cover some of the sides, a little aslant, in black or white."""
    side = images.shape[1]
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    slant = of(-0.05, 0.05)
    x, y = axis + slant * axis[:, None], axis[:, None] - slant * axis
    shown = torch.ones_like(images)
    for distance in (x, -x, y, -y):
        edge = torch.where(of.chance(0.25) > 0, of(0.75, 1), 1.2)
        shown = shown * inside(edge - distance, 0.01)
    black = of.chance(0.8) > 0
    grey = torch.where(black, of(0, 0.1), of(0.7, 1))
    return shown * images + (1 - shown) * grey
