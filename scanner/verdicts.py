"""What the score of a match says of it: duplicate, similar or different.

    Matches + Thresholds -> Verdicts: codes (Q, k), one of VERDICTS each

As the reference labels pairs (arXiv:2509.16582): a score above `duplicate` is a duplicate, one
above `similar` is similar, and all else is different. The score only estimates SSIM, so it
proposes and the SSIM disposes: the pairs of `proposed` are to be verified, and one that was is a
duplicate when its SSIM after registration is above `certain`, or above `ssim` with a score above
`duplicate`, and only then. An image's verdict is that of its best match.
"""

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.checkpoint import Thresholds

VERDICTS = ("different", "similar", "duplicate")
VERIFIED = 5  # matches of every image that are, whatever their scores
_SIMILAR, _DUPLICATE = np.int8(1), np.int8(2)  # their places there


def proposed(scores: NDArray[np.float32], thresholds: Thresholds) -> NDArray[np.bool_]:
    """Choose the pairs to verify: above `similar`, and the best five of every image in any case.

    scores (Q, k) in descending order -> chosen (Q, k)
    """
    chosen = judge(scores, thresholds) >= _SIMILAR
    chosen[:, :VERIFIED] = True
    return chosen


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
    unlike = ssim <= np.float32(thresholds.ssim)  # false for NaN, as is the next
    certain = ssim > np.float32(thresholds.certain)
    verdicts = np.where(unlike, np.minimum(verdicts, _SIMILAR), verdicts)
    return np.where(certain, _DUPLICATE, verdicts)
