"""Images that copy a part of another: a half or a quarter of it, pasted into a host.

standardised images (H, W), host and donor -> the host with a part of the donor
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepssim_scan.imaging.names import PARTS

Image = NDArray[np.float32]

_SHIFT = 0.04  # of the side, at most
_GAMMA = 0.4  # logarithm of the exponent, at most
_NOISE = 0.05  # standard deviations of the image
_EDGE = 1 / 64  # of the side, the blur of the border between the two


def paste(host: Image, donor: Image, part: str, rng: np.random.Generator) -> Image:
    """Paste a part of a donor, shifted a little and in another contrast, at its place in a host.

    `part` is one of `names.PARTS`: the upper, lower, left or right half, or a quarter in a corner.
    Raises ValueError when the shapes differ.
    """
    if host.shape != donor.shape:
        raise ValueError(f"host and donor have shapes {host.shape} and {donor.shape}")
    return paste_where(_mask(host.shape, part, rng), host, donor, rng)


def paste_where(
    mask: NDArray[np.float64], host: Image, donor: Image, rng: np.random.Generator
) -> Image:
    """Paste what a mask (H, W) of ones and zeros shows of a changed donor, with a soft edge."""
    soft = ndimage.gaussian_filter(mask, _EDGE * max(host.shape))
    return _standardised(soft * _changed(donor, rng) + (1 - soft) * host)


def _mask(shape: tuple[int, ...], part: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return 1 where the part lies."""
    mask = np.zeros(shape)
    (top, left), (height, width) = rng.integers(2, size=2), (length // 2 for length in shape)
    rows, columns = slice(top * height, (top + 1) * height), slice(left * width, (left + 1) * width)
    if part == PARTS[0]:
        rows, columns = (rows, slice(None)) if rng.integers(2) else (slice(None), columns)
    mask[rows, columns] = 1
    return mask


def _changed(donor: Image, rng: np.random.Generator) -> Image:
    """Shift a donor a little, give it another contrast, and add noise."""
    by = rng.uniform(-_SHIFT, _SHIFT, 2) * donor.shape
    moved = ndimage.shift(donor, by, order=1, mode="nearest")
    low, high = moved.min(), moved.max()
    level = (moved - low) / max(high - low, 1e-6)
    bent = _standardised(level ** np.exp(rng.uniform(-_GAMMA, _GAMMA)))
    return bent + np.float32(_NOISE) * rng.standard_normal(donor.shape, np.float32)


def _standardised(image: NDArray[np.float64]) -> Image:
    standardised: Image = ((image - image.mean()) / max(image.std(), 1e-6)).astype(np.float32)
    return standardised
