"""The SSIM of pairs after registration: rigid and smooth displacements, flips and gamma undone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepssim_scan.evaluation.metrics.metric import BATCH, Pairs, Scores
from deepssim_scan.evaluation.metrics.ssim import refuse_file, stacked
from deepssim_scan.imaging.comparison import compare
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import REFERENCE
from deepssim_scan.matching.evidence import RULE


class RegisteredSSIM:
    """SSIM of what both images show, blurred by a pixel, once what lies between them is undone."""

    bounds = REFERENCE
    standardisation = RULE

    def __init__(self, file: Path | None) -> None:
        refuse_file("registered-ssim", file)

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        found = []
        for first in range(0, len(pairs), BATCH):
            left, right = stacked(training, synthetic, pairs[first : first + BATCH])
            found.append(compare(right, left).cpu().measures[:, NAMES.index("ssim_1")].numpy())
        scores: Scores = np.nan_to_num(np.concatenate(found), nan=-1.0).astype(np.float64)
        return scores
