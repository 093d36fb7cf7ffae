"""SemDeDup (Abbas et al. 2023, arXiv:2303.09540): the cosine of the features of a general network.

The file is a network that takes RGB (B, 3, 224, 224) with the means and spreads of ImageNet, such
as the image side of CLIP.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.evaluation.metrics import features
from deepssim_scan.evaluation.metrics.metric import Pairs, Scores
from deepssim_scan.evaluation.metrics.network import open_network
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import Bounds

_SIDE = 224
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


class SemDeDup:
    """The cosine of a network's features, with the thresholds that the paper gives it."""

    bounds = Bounds(0.97, 0.99905)
    standardisation = Standardisation()

    def __init__(self, file: Path | None) -> None:
        self._network = open_network(file, "semdedup")

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        return features.score(
            lambda batch: self._network(imagenet_rgb(batch)), _SIDE, training, synthetic, pairs
        )


def imagenet_rgb(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images (B, S, S) in [0, 1] as networks trained on ImageNet want them: (B, 3, S, S)."""
    return np.ascontiguousarray((images[:, None] - _MEAN) / _SPREAD, np.float32)
