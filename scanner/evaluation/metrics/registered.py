"""The SSIM of pairs after registration: flips, rotation, scale, shift and gamma undone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from deepssim_scan.evaluation.metrics.metric import Pairs, Scores
from deepssim_scan.evaluation.metrics.ssim import pair_by_pair, refuse_file
from deepssim_scan.imaging.registration import undone
from deepssim_scan.imaging.registration.comparison import compare
from deepssim_scan.imaging.ssim import image_range, ssim
from deepssim_scan.imaging.warp import gamma, restandardise
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import REFERENCE
from deepssim_scan.matching.evidence import RULE

_PIXEL = 2  # pixels of 128 that are one: half the resolution, at which pairs are registered


class RegisteredSSIM:
    """SSIM as the reference defines it, once what makes the synthetic image is undone.

    The registration is that of a query. Other than the measures of a query, it is of whole images,
    with their background, and no smooth displacement is undone.
    """

    bounds = REFERENCE
    standardisation = RULE

    def __init__(self, file: Path | None) -> None:
        refuse_file("registered-ssim", file)

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`. One of which nothing could be compared has -1."""
        return pair_by_pair(_registered, training, synthetic, pairs)


@torch.inference_mode()
def _registered(training: Tensor, synthetic: Tensor) -> Tensor:
    found = compare(synthetic, training)
    moved = undone(synthetic, found.flip.clamp_min(0), found.degrees, found.scale, found.shift)
    both = training, gamma(moved, 1 / found.gamma)
    theirs, ours = (restandardise(avg_pool2d(images, _PIXEL)) for images in both)
    return ssim(theirs, ours, image_range(theirs)).nan_to_num(nan=-1.0)
