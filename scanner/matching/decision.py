"""What is said of a pair: duplicate, similar or different.

    cosine similarity + SSIM (Q, n) + Thresholds -> verdicts (Q, n), indices in VERDICTS

As the reference labels pairs (arXiv:2509.16582): a score above `duplicate` is a duplicate, one
above `similar` is similar, and all else is different. The score only estimates SSIM. A pair that
was registered is therefore a duplicate only when its SSIM is above `high_ssim`, or above `ssim`
with a score above `duplicate`. An image's verdict is that of its strongest match.
"""

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.encoder.thresholds import Thresholds

VERDICTS = ("different", "similar", "duplicate")
_SIMILAR, _DUPLICATE = np.int8(1), np.int8(2)  # their indices there


def judge(
    scores: NDArray[np.float32],
    thresholds: Thresholds,
    ssim: NDArray[np.float32] | None = None,
) -> NDArray[np.int8]:
    """Return the index in VERDICTS of each score, of any shape.

    `ssim`, of the same shape, is NaN for pairs that were not registered.

    Raises ValueError for a score that is not finite: NaN compares as "not above" and would
    read as different.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    bounds = np.array([thresholds.similar, thresholds.duplicate], dtype=np.float32)
    verdicts = np.searchsorted(bounds, scores, side="left").astype(np.int8)
    if ssim is None:
        return verdicts
    low = ssim <= np.float32(thresholds.ssim)  # false for NaN, as is the next
    high = ssim > np.float32(thresholds.high_ssim)
    verdicts = np.where(low, np.minimum(verdicts, _SIMILAR), verdicts)
    return np.where(high, _DUPLICATE, verdicts)


def strongest_first(
    verdicts: NDArray[np.int8], ssim: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Order the pairs of each image: by verdict, then SSIM, then score, then as they were.

    (Q, n) three times -> (Q, n) indices. Pairs without an SSIM come after those with one.
    """
    ssim = np.where(np.isnan(ssim), -np.inf, ssim)
    return np.lexsort((-scores, -ssim, -verdicts.astype(np.int64)), axis=1)
