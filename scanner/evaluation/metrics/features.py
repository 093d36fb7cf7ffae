"""What metrics by the features of a network share: images scaled for it, features compared.

standardised images of any size -> batches (B, S, S) in [0, 1] -> features -> unit-norm rows
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepssim_scan.evaluation.metrics.metric import (
    BATCH,
    Pairs,
    Scores,
    Vectors,
    products,
    unit,
)
from deepssim_scan.ingest.pixels import Pixels

Represent = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (B, S, S) in [0, 1] -> features (B, D)."""


def score(
    represent: Represent,
    side: int,
    training: Sequence[Pixels],
    synthetic: Sequence[Pixels],
    pairs: Pairs,
) -> Scores:
    """Return the cosines of the features of pairs, of images scaled to `side` pixels."""
    rows = [_rows(represent, side, images) for images in (training, synthetic)]
    return products(rows[0], rows[1], pairs)


def _rows(represent: Represent, side: int, images: Sequence[Pixels]) -> Vectors:
    found = []
    for first in range(0, len(images), BATCH):
        batch = np.stack([_scaled(image, side) for image in images[first : first + BATCH]])
        found.append(represent(batch))
    return unit(np.concatenate(found))


def _scaled(image: Pixels, side: int) -> NDArray[np.float32]:
    """Return an image as a square of some pixels, its greys from 0 to 1."""
    low, high = float(image.min()), float(image.max())
    grey = Image.fromarray(((image - low) / max(high - low, 1e-12)).astype(np.float32))
    return np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC), np.float32).clip(0, 1)
