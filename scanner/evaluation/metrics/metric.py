"""What a metric is: a score of pairs of a training and a synthetic image.

Images of the two sides, pairs (P, 2) of their numbers -> scores (P,), higher for more alike
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import Bounds

Pairs = NDArray[np.int64]
"""Numbers of the training and of the synthetic image of each pair: (P, 2)."""

Scores = NDArray[np.float64]
"""(P,)"""

Vectors = NDArray[np.float32]
"""Unit-norm rows: (N, D)."""

BATCH = 32
_AT_ONCE = 1024  # pairs


class Metric(Protocol):
    """A score of pairs, how images are read for it, and the thresholds of its authors, if any."""

    @property
    def standardisation(self) -> Standardisation:
        """How images are read."""

    @property
    def bounds(self) -> Bounds | None:
        """The scores above which its authors call a pair similar, and a duplicate."""

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs of images (H, W), read by `standardisation`."""


def products(training: Vectors, synthetic: Vectors, pairs: Pairs) -> Scores:
    """Return the inner products of pairs of rows, some pairs at a time."""
    found = np.empty(len(pairs), np.float64)
    for first in range(0, len(pairs), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        left, right = training[pairs[part, 0]], synthetic[pairs[part, 1]]
        found[part] = np.einsum("pd,pd->p", left.astype(np.float64), right.astype(np.float64))
    return found


def unit(rows: NDArray[np.floating]) -> Vectors:
    """Bring rows (N, D) to unit norm; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Vectors = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
    return found


def batches(images: Sequence[Pixels]) -> Sequence[NDArray[np.float32]]:
    """Return images of one shape in batches (B, H, W)."""
    parts = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    return [np.stack(part) for part in parts]
