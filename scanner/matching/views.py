"""Which test-time views of an image are looked at.

    rows (Q, D) of images as they are, what else is asked for -> rows of all views (Q, V, D)

An image that is like a training image as it is is neither turned nor inverted. The calibration
turns and inverts training images, and finds how like others they are then. An image with a higher
score is not looked at in those views.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.encoder.views import LATER, TTA_VIEWS
from deepssim_scan.store.array import Vectors

NEVER = 2.0
"""No cosine similarity is as high."""

Embed = Callable[[NDArray[np.int64], NDArray[np.bool_]], Vectors]
"""Embeds the views (m, V) that are asked for of images with numbers (m,): (m, V, D)."""


@dataclass(frozen=True, slots=True)
class Views:
    """The first `count` of `TTA_VIEWS` are looked at where they are needed.

    `enough` are the scores of an image as it is from which on it is not turned, and not inverted.
    """

    count: int = len(TTA_VIEWS)
    enough: tuple[float, float] = (NEVER, NEVER)

    def asked(self, best: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which views (Q, V) are needed beside the first, by the best score (Q,) in it."""
        asked = np.zeros((len(best), self.count), bool)
        for views, enough in zip(LATER, self.enough, strict=True):
            asked[:, [view for view in views if view < self.count]] = (best < enough)[:, None]
        return asked

    def complete(
        self, first: Vectors, best: NDArray[np.float32], embed: Embed
    ) -> tuple[Vectors, NDArray[np.bool_]]:
        """Return the rows of all views (Q, V, D), and which images (Q,) could not be looked at.

        `best` (Q,) are the best scores of the rows `first` (Q, D), which stand for a view that is
        not needed.
        """
        every, asked = np.repeat(first[:, None], self.count, 1), self.asked(best)
        unseen, numbers = np.zeros(len(first), bool), np.flatnonzero(asked.any(1))
        found = embed(numbers, asked[numbers])
        gone = np.isnan(found).any(2) & asked[numbers]
        unseen[numbers] = gone.any(1)
        every[numbers] = np.where((asked[numbers] & ~gone)[..., None], found, every[numbers])
        return every, unseen
