"""Dar et al. (arXiv:2402.01054): the correlation of the features of a contrastive network.

The file is a network that takes standardised images (B, 1, 128, 128) and gives their features, as
`benchmarks/casestudy/train_dar.py` writes it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepssim_scan.evaluation.metrics.metric import (
    Pairs,
    Scores,
    batches,
    products,
    unit,
)
from deepssim_scan.evaluation.metrics.network import open_network
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import Bounds


class Dar:
    """The correlation of features; one threshold tells copies from all others."""

    bounds = Bounds(0.8030425, 0.8030425)
    standardisation = Standardisation()

    def __init__(self, file: Path | None) -> None:
        self._network = open_network(file, "dar")

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        rows = []
        for side in (training, synthetic):
            found = [self._network(batch[:, None]) for batch in batches(side)]
            features = np.concatenate(found).astype(np.float64)
            rows.append(unit(features - features.mean(1, keepdims=True)))
        return products(rows[0], rows[1], pairs)
