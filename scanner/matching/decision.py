"""What is said of a pair: duplicate, similar, different, or that it cannot be told.

    scores, statistics, missing, foreground (Q, n) -> verdicts (Q, n), indices in VERDICTS

Two rules. The calibrated one compares the decision statistic with two quantiles of the null. The
reference's (arXiv:2509.16582) compares the cosine similarity with two fixed scores; it is also
that of pairs that could not be looked at. An image's verdict is that of its strongest match.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import InputError
from deepssim_scan.matching.config import REFERENCE_SCORES

VERDICTS = ("different", "similar", "duplicate", "undecidable")
_SIMILAR, _DUPLICATE, _UNDECIDABLE = np.int8(1), np.int8(2), np.int8(3)  # their indices there
_STRENGTH = np.array([0, 2, 3, 1])  # of each verdict

LEAST_FOREGROUND = 0.02
"""Share of the pixels that must be compared: with less, people cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Above which value a pair is similar, and above which it is a duplicate."""

    similar: float
    duplicate: float

    def __post_init__(self) -> None:
        if not self.similar <= self.duplicate:
            raise InputError(
                f"similar ({self.similar:g}) must be <= duplicate ({self.duplicate:g})"
            )

    def judge(self, values: NDArray[np.floating]) -> NDArray[np.int8]:
        """Return the index in VERDICTS of each value, of any shape.

        Raises ValueError for one that is NaN, which would read as different.
        """
        if np.isnan(values).any():
            raise ValueError(f"{np.count_nonzero(np.isnan(values))} values are NaN")
        bounds = np.array([self.similar, self.duplicate], values.dtype)
        return np.searchsorted(bounds, values, side="left").astype(np.int8)


REFERENCE = Bounds(*REFERENCE_SCORES)
"""The scores of the reference's rule."""


def judge(
    scores: NDArray[np.float32],
    statistics: NDArray[np.float64],
    missing: NDArray[np.bool_],
    foreground: NDArray[np.float32],
    bounds: Bounds,
) -> NDArray[np.int8]:
    """Return the index in VERDICTS of each pair (Q, n) by the calibrated rule.

    A pair that was looked at and has no statistic (NaN), since others of its image are more alike,
    is different. One that is missing, since it was not looked at, is judged by the reference's
    rule. One of which too little was compared is undecidable.
    """
    verdicts = bounds.judge(np.where(np.isnan(statistics), -np.inf, statistics))
    verdicts = np.where(missing, REFERENCE.judge(scores), verdicts)
    return np.where(foreground < LEAST_FOREGROUND, _UNDECIDABLE, verdicts)


def strongest_first(
    verdicts: NDArray[np.int8], statistics: NDArray[np.float64], scores: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Order the pairs of each image: by verdict, then statistic, then score, then as they were.

    (Q, n) three times -> (Q, n) indices. Duplicates come first, then similar, undecidable and
    different ones. Pairs without a statistic (NaN) come after those with one.
    """
    statistics = np.where(np.isnan(statistics), -np.inf, statistics)
    return np.lexsort((-scores, -statistics, -_STRENGTH[verdicts]), axis=1)
