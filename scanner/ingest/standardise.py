"""Brings pixels to what an encoder takes: one size, mean 0, standard deviation 1.

(H, W) float32 -> standardise -> (H', W') float32
"""

import numpy as np
from PIL import Image

from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.rejection import Rejected

_MARKS = 50  # of so many pixels one, at most, is a mark
_LIGHT = 0.25  # of the range above the darkest grey, at least, is a frame
_ONE = 0.05  # of the range: greys no further from a frame's are of it
_DARK = 0.2  # of the range below a frame's grey: what is darker is background
_WITHIN = 64  # how far within the frame that line is: one part of so many of the side
_MOST = 0.5  # of the pixels of that line, at least, are background


def standardise(pixels: Pixels, rule: Standardisation) -> Pixels:
    """Scale, pad and z-score one image.

        pixels (H, W) float32 -> (size, size) float32, or (H, W) when size is None

    The result has mean 0 and population standard deviation 1. The longer side becomes `size`
    and the image is centred; an odd pixel of padding goes below or right. Marks far brighter than
    all else are brought to the range of the rest (`_unmarked`). A light frame about the image is
    left out, unless the size is kept.

    Raises Rejected: "not-finite", or "constant" by the bound in `z_score`, which holds for
    the image as decoded and again for the scaled one.
    """
    bad = pixels.size - np.count_nonzero(np.isfinite(pixels))
    if bad:
        raise Rejected("not-finite", f"{bad} of {pixels.size} pixels are not finite in float32")
    # Z-scored before scaling as well: the rounding of scaling then does not depend on the unit.
    scores = z_score(_unmarked(pixels))
    if rule.size is None:
        return scores
    return z_score(_pad(_scale(_unframed(scores), rule.size), rule.size))


def z_score(pixels: Pixels) -> Pixels:
    """Bring finite pixels (H, W) to mean 0 and population standard deviation 1.

    Raises Rejected "constant" in two cases, the written bound:

    - The standard deviation is at most 1e-6 of the largest magnitude. Float32 holds a pixel to
      6e-8 of it, so that the z-score would have no more than some 17 different values.
    - Fewer than 1 in 1000 pixels differ from the most common value. Such an image is empty but for
      specks, and its z-score says nothing about anatomy.

    Where the standard deviation is at most a tenth of the range, up to 1 in 1000 pixels at either
    end may be outliers, beside which the rest has no contrast. They are brought to the range of the
    rest (`_within_reach`).
    """
    values = pixels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    values -= values.mean()
    spread = float(np.sqrt(np.square(values).mean()))
    if _is_flat(spread, low, high):
        raise Rejected("constant", f"standard deviation {spread:.3g} in {low:.6g} to {high:.6g}")
    # When a share p of the pixels differ from one value, the variance is at most p * range^2. Most
    # images have more, so their pixels need not be ordered or counted.
    if 100 * spread**2 <= (high - low) ** 2 and (within := _within_reach(pixels)) is not None:
        return z_score(within)
    if 1000 * spread**2 <= (high - low) ** 2:
        _check_specks(pixels)
    scores: Pixels = (values / spread).astype(np.float32)
    return scores


def _unmarked(pixels: Pixels) -> Pixels:
    """Return pixels with their marks brought to the range of the rest, where there are any.

    Marks, as text that is burnt in, have the greatest grey, on at most 1 in 50 pixels. All others
    are nearer to the least, and show something: their standard deviation, marks included, is at
    least a twentieth of their range.
    """
    low, high = float(pixels.min()), float(pixels.max())
    bright = pixels >= (low + high) / 2
    if _MARKS * np.count_nonzero(bright) > pixels.size or (pixels[bright] < high).any():
        return pixels
    most = float(pixels[~bright].max())
    found: Pixels = pixels.clip(None, most)
    spread = float(found.std(dtype=np.float64))
    shows = 20 * spread >= most - low and not _is_flat(spread, low, most)
    return found if shows else pixels


def _is_flat(spread: float, low: float, high: float) -> bool:
    return spread <= 1e-6 * max(-low, high)


def _within_reach(pixels: Pixels) -> Pixels | None:
    """Return pixels whose outliers are brought to the range of the rest, None where there are none.

    The rest are all but the 1 in 1000 that are darkest and as many that are brightest. An outlier
    lies beyond their range by more than its length.
    """
    beyond = pixels.size // 1000
    ordered = np.partition(pixels, (beyond, pixels.size - 1 - beyond), axis=None)
    least, most = float(ordered[beyond]), float(ordered[pixels.size - 1 - beyond])
    farthest = max(least - float(ordered.min()), float(ordered.max()) - most)
    return pixels.clip(least, most) if farthest > most - least > 0 else None


def _check_specks(pixels: Pixels) -> None:
    # A value held by more than half of the pixels is the median.
    median = np.partition(pixels, pixels.size // 2, axis=None)[pixels.size // 2]
    differing = np.count_nonzero(pixels != median)
    if differing * 1000 < pixels.size:
        raise Rejected("constant", f"{differing} of {pixels.size} pixels differ from the others")


def _unframed(pixels: Pixels) -> Pixels:
    """Leave out a light frame about an image, as that of a plot: a bar of one grey on each side.

    Within it lies a black background, on all sides. So the light background of an image with
    inverted greys is no frame.
    """
    low, high = float(pixels.min()), float(pixels.max())
    grey = float(np.median(pixels[:: pixels.shape[0] - 1 or 1, :: pixels.shape[1] - 1 or 1]))
    if grey - low <= _LIGHT * (high - low):
        return pixels
    others = np.abs(pixels - np.float32(grey)) > _ONE * (high - low)
    other_rows, other_columns = (others.any(axis) for axis in (1, 0))
    if other_rows[[0, -1]].any() or other_columns[[0, -1]].any():
        return pixels
    box = tuple(slice(at[0], at[-1] + 1) for at in map(np.flatnonzero, (other_rows, other_columns)))
    dark = pixels[box] < low + _DARK * (grey - low)
    down, right = (side // _WITHIN for side in dark.shape)
    lines = dark[down], dark[-1 - down], dark[:, right], dark[:, -1 - right]
    return pixels[box] if all(line.mean() > _MOST for line in lines) else pixels


def _scale(pixels: Pixels, size: int) -> Pixels:
    """Resize so that the longer side is `size`.

    Pillow widens the filter when it shrinks, so fine structure is averaged and not aliased.
    Bilinear, because its weights are never negative: no ringing at the skin line, and no value
    outside of the image's own range.
    """
    height, width = (max(1, round(side * size / max(pixels.shape))) for side in pixels.shape)
    scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float32)


def _pad(pixels: Pixels, size: int) -> Pixels:
    """Centre in a square of `size`, filled with the image's darkest grey."""
    before = [(size - side) // 2 for side in pixels.shape]
    after = [size - side - first for side, first in zip(pixels.shape, before, strict=True)]
    widths = list(zip(before, after, strict=True))
    return np.pad(pixels, widths, constant_values=pixels.min())
