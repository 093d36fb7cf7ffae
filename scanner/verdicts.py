"""What the score of a match says of it: duplicate, similar or different.

    Matches + Thresholds -> Verdicts: codes (Q, k), one of VERDICTS each

As the reference labels pairs (arXiv:2509.16582): a score above `duplicate` is a duplicate, one
above `similar` is similar, and all else is different. Where a pair was verified, a duplicate needs
both: its SSIM after registration must be above `ssim` too, or it is similar. An image's verdict
is that of its best match.
"""

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.checkpoint import Thresholds

VERDICTS = ("different", "similar", "duplicate")
SIMILAR = np.int8(1)  # its place there


def judge(
    scores: NDArray[np.float32],
    thresholds: Thresholds,
    ssim: NDArray[np.float32] | None = None,
) -> NDArray[np.int8]:
    """Return the place in VERDICTS of each score, of any shape.

    `ssim`, of the same shape, is NaN for pairs that were not verified.

    Raises ValueError for a score that is not finite: NaN compares as "not above" and would
    read as different.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    bounds = np.array([thresholds.similar, thresholds.duplicate], dtype=np.float32)
    verdicts = np.searchsorted(bounds, scores, side="left").astype(np.int8)
    if ssim is None:
        return verdicts
    unlike = ssim <= np.float32(thresholds.ssim)  # false for NaN
    return np.where(unlike, np.minimum(verdicts, SIMILAR), verdicts)
