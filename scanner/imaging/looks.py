"""How images look, in four numbers that tell sets apart which do not go together.

standardised images (N, H, W) -> looks (N, 4)
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

LOOKS = "sharpness", "extent", "aspect", "brightest"
"""The columns.

sharpness is the logarithm (base 10) of what a blur of one pixel removes over what another one, of
two pixels, does after it, in the middle of the image; extent the share of the rows times that of
the columns that show something; aspect the logarithm of the former over the latter; brightest the
logarithm of the share of the pixels that have nearly the greatest grey.
"""

Looks = NDArray[np.float64]

_SHOWN, _FILLED = 0.15, 0.05  # of the range above the darkest grey; of the pixels of a row
_NEARLY = 0.02  # of the range below the greatest grey
_LEAST = 1e-3  # share of the pixels, and contrast, below which all is one


def looks(images: Iterable[NDArray[np.float32]]) -> Looks:
    """Return how images (H, W) look: (N, 4) of `LOOKS`."""
    found = [_look(image.astype(np.float64)) for image in images]
    return np.array(found, np.float64).reshape(-1, len(LOOKS))


def _look(image: NDArray[np.float64]) -> tuple[float, float, float, float]:
    low, high = image.min(), image.max()
    level = (image - low) / max(high - low, 1e-6)
    shown = level > _SHOWN
    rows, columns = (float((shown.mean(axis) > _FILLED).mean()) for axis in (1, 0))
    aspect = float(np.log10((rows + _LEAST) / (columns + _LEAST)))
    brightest = np.log10((level > 1 - _NEARLY).mean() + _LEAST)
    return _sharpness(image), rows * columns, aspect, float(brightest)


def _sharpness(image: NDArray[np.float64]) -> float:
    once, twice = gaussian_filter(image, 1), gaussian_filter(image, 2)
    middle = tuple(slice(side // 6, side - side // 6) for side in image.shape)
    fine, coarse = (np.abs(each[middle]).mean() + _LEAST for each in (image - once, once - twice))
    return float(np.log10(fine / coarse))
