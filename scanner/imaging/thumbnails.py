"""Thumbnails: images as they are compared region by region, small enough to be kept of all.

standardised images (H, W) of any shapes -> thumbnails (n, 48, 48) int8

Local contrast normalisation leaves structure where the greys were, so that dark and bright tissue
count alike and a change of contrast counts little. Each pixel of the thumbnail is a Gaussian mean
about its place.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

SIDE = 48
"""The side of a thumbnail, in pixels."""

Thumbnails = NDArray[np.int8]

_WINDOW = 18  # of the side of an image is a window, in which contrast is normalised
_LEAST = 3  # pixels of a window
_FLOOR = 0.01  # added to the variance; images have one of 1
_SIGMA = 0.5  # pixels of the thumbnail
_STEPS = 40  # that one standard deviation is


def thumbnails(images: Sequence[NDArray[np.float32]]) -> Thumbnails:
    """Make the thumbnails (n, 48, 48) of images, each (H, W)."""
    found = np.empty((len(images), SIDE, SIDE), np.int8)
    for number, image in enumerate(images):
        found[number] = np.clip(np.rint(_STEPS * _thumbnail(image)), -127, 127)
    return found


def _thumbnail(image: NDArray[np.float32]) -> NDArray[np.float32]:
    window = [max(side // _WINDOW // 2 * 2 + 1, _LEAST) for side in image.shape]
    centred = image - uniform_filter(image, window, mode="nearest")
    variance = uniform_filter(centred * centred, window, mode="nearest")
    rows, columns = (_means(side) for side in image.shape)
    small: NDArray[np.float32] = rows @ (centred / np.sqrt(variance + _FLOOR)) @ columns.T
    return small


@cache
def _means(side: int) -> NDArray[np.float32]:
    """Return the Gaussian means (48, side) of a line of pixels."""
    pixels, places = ((np.arange(n) + 0.5) / n for n in (side, SIDE))
    distance = (places[:, None] - pixels) * SIDE / _SIGMA
    weights = np.exp(-0.5 * distance**2)
    means: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return means
