"""The SSIM of pairs after registration: rigid and smooth displacements, flips and gamma undone."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from deepssim_scan.evaluation.metrics.metric import Pairs, Scores
from deepssim_scan.evaluation.metrics.ssim import pair_by_pair, refuse_file
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
        """Score pairs; see `Metric`. One of which nothing could be compared has -1."""
        return pair_by_pair(_registered, training, synthetic, pairs)


def _registered(training: Tensor, synthetic: Tensor) -> Tensor:
    found = compare(synthetic, training).cpu().measures[:, NAMES.index("ssim_1")]
    return found.nan_to_num(nan=-1.0)
