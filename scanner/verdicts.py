"""What the score of a match says of it: duplicate, similar or different.

    Matches + Thresholds -> Verdicts: codes (Q, k), one of VERDICTS each

As the reference labels pairs (arXiv:2509.16582): a score above `duplicate` is a duplicate, one
above `similar` is similar, and all else is different. An image's verdict is that of its best
match.
"""

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.checkpoint import Thresholds

VERDICTS = ("different", "similar", "duplicate")


def judge(scores: NDArray[np.float32], thresholds: Thresholds) -> NDArray[np.int8]:
    """Return the place in VERDICTS of each score, of any shape.

    Raises ValueError for a score that is not finite: NaN compares as "not above" and would
    read as different.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    bounds = np.array([thresholds.similar, thresholds.duplicate], dtype=np.float32)
    return np.searchsorted(bounds, scores, side="left").astype(np.int8)
