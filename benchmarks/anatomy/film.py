"""From what rays met to greys: tubes and wires, the film, letters, the borders of the collimator.

thickness (B, H, W) >= 0 -> images (B, H, W) in [0, 1]
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from anatomy.body import Plane, ellipse, happens, inside, thickness, wavy
from deepssim_scan.imaging.warp import blur
from deepssim_scan.training.procedural import drawn

_TUBES, _WORDS = 4, ("L", "R", "AP", "PA", "PORTABLE", "SUPINE", "ERECT")
_SIDE = 128  # pixels, of which blurs and letters are given


def filmed(rng: Generator, amount: Tensor, at: Plane) -> Tensor:
    """Make radiographs of what rays met."""
    images = _exposed(rng, _with_devices(rng, amount, at))
    return _collimated(rng, _lettered(rng, images))


def _with_devices(rng: Generator, amount: Tensor, at: Plane) -> Tensor:
    """Add tubes, wires and something round."""
    count = len(amount)
    for _ in range(_TUBES):
        lengthwise = happens(rng, count, 0.5) > 0
        across, along = (torch.where(lengthwise, *pair) for pair in (at, at[::-1]))
        path = drawn(rng, count, -0.8, 0.8) + wavy(rng, along, 0.25)
        tube = thickness(((across - path) / drawn(rng, count, 0.006, 0.02)).square())
        tube = tube * inside(along - drawn(rng, count, -1.2, 0.2), 0.01)
        tube = tube * inside(drawn(rng, count, 0, 1.4) - along, 0.01)
        amount = amount + tube * drawn(rng, count, 0.1, 0.6) * happens(rng, count, 0.25)
    centre = drawn(rng, count, -0.7, 0.7), drawn(rng, count, -0.7, 0.7)
    radii = drawn(rng, count, 0.015, 0.07), drawn(rng, count, 0.015, 0.07)
    spot = inside(1 - ellipse(at, centre, radii, drawn(rng, count, 0, 3)), 0.1)
    return amount + spot * drawn(rng, count, 0.2, 1) * happens(rng, count, 0.15)


def _exposed(rng: Generator, amount: Tensor) -> Tensor:
    """Turn amounts to greys, as a detector and its software do."""
    count, pixel = len(amount), amount.shape[1] / _SIDE
    amount = amount / amount.amax((1, 2), keepdim=True).clamp_min(1e-6)
    steepness = drawn(rng, count, 0.3, 2.5)
    images = (1 - (-steepness * amount).exp()) / (1 - (-steepness).exp())
    wide = blur(images, drawn(rng, count, 3, 20).flatten() * pixel)
    images = images - drawn(rng, count, 0, 0.7) * happens(rng, count, 0.6) * (wide - 0.5)
    images = blur(images, drawn(rng, count, 0.2, 1).flatten() * pixel)
    grain = torch.randn(images.shape, generator=rng)
    images = images + drawn(rng, count, 0, 0.02) * grain
    some = images.flatten(1)[:, ::7]
    low, high = (some.quantile(share, 1)[:, None, None] for share in (0.01, 0.995))
    span = (high - low).clamp_min(1e-6)
    low = low + drawn(rng, count, -0.02, 0.1) * span
    images = ((images - low) / (span * drawn(rng, count, 0.8, 1.05))).clamp(0, 1)
    return images ** drawn(rng, count, 0.7, 1.4)


def _lettered(rng: Generator, images: Tensor) -> Tensor:
    """Write a word near the border of half of the images."""
    side = images.shape[1]
    written = images.clone()
    for image in written:
        some, bright, column, row = torch.rand(4, generator=rng).tolist()
        word, size = (int(torch.randint(below, (), generator=rng)) for below in (len(_WORDS), 10))
        if some < 0.5:
            plate = Image.new("L", (side, side))
            corner = tuple(side * (0.25 * c if c < 0.5 else 0.5 + 0.5 * c) for c in (column, row))
            font = ImageFont.load_default((6 + size) * side // _SIDE)
            ImageDraw.Draw(plate).text(corner, _WORDS[word], fill=255, font=font)
            letters = torch.from_numpy(np.asarray(plate, np.float32)) / 255
            image.copy_(torch.maximum(image, letters * (0.6 + 0.4 * bright)))
    return written


def _collimated(rng: Generator, images: Tensor) -> Tensor:
    """Cover some of the sides, a little aslant, in black or white."""
    count, side = images.shape[:2]
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    slant = drawn(rng, count, -0.05, 0.05)
    x, y = axis + slant * axis[:, None], axis[:, None] - slant * axis
    shown = torch.ones_like(images)
    for distance in (x, -x, y, -y):
        edge = torch.where(happens(rng, count, 0.25) > 0, drawn(rng, count, 0.75, 1), 1.2)
        shown = shown * inside(edge - distance, 0.01)
    black = happens(rng, count, 0.8) > 0
    grey = torch.where(black, drawn(rng, count, 0, 0.1), drawn(rng, count, 0.7, 1))
    return shown * images + (1 - shown) * grey
