"""The correlation of the pixels of two images as they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepssim_scan.evaluation.metrics.metric import Pairs, Scores, products, unit
from deepssim_scan.evaluation.metrics.ssim import refuse_file
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels


class PixelCorrelation:
    """Pearson's correlation; nobody has published thresholds for it."""

    bounds = None
    standardisation = Standardisation()

    def __init__(self, file: Path | None) -> None:
        refuse_file("correlation", file)

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        rows = [unit(np.stack([image.ravel() for image in side])) for side in (training, synthetic)]
        return products(rows[0], rows[1], pairs)
