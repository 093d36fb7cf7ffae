"""SSCD (Pizzi et al. 2022, arXiv:2202.10261), by which "Chen" in the paper looks for copies.

The file is an ONNX export that takes uint8 RGB (B, 288, 288, 3), or TorchScript as its authors
publish it, which takes RGB (B, 3, 288, 288) with the means and spreads of ImageNet.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.evaluation.metrics import features
from deepssim_scan.evaluation.metrics.metric import Pairs, Scores
from deepssim_scan.evaluation.metrics.network import open_network
from deepssim_scan.evaluation.metrics.semdedup import imagenet_rgb
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import Bounds

_SIDE = 288


class SSCD:
    """The cosine of SSCD's features, with the thresholds that the paper gives it."""

    bounds = Bounds(0.4, 0.6)
    standardisation = Standardisation()

    def __init__(self, file: Path | None) -> None:
        self._network = open_network(file, "sscd")
        self._prepare = _bytes_rgb if str(file).endswith(".onnx") else imagenet_rgb

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        return features.score(
            lambda batch: self._network(self._prepare(batch)), _SIDE, training, synthetic, pairs
        )


def _bytes_rgb(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images (B, S, S) in [0, 1] as (B, S, S, 3)."""
    return np.repeat((images * 255).round().astype(np.uint8)[..., None], 3, 3)
