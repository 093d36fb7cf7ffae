"""The decision statistic: one number of a pair, the higher, the more it is like a copy.

    cosine similarity, correlation (Q, n), measures (Q, n, 6), subjects (Q, n)
    -> features (Q, n, 16)
    features -> statistic (Q, n)

A weighted sum of the evidence, and of how much it exceeds that of the image's candidates of other
subjects. `calibration` fits the weights to the training set.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import InputError
from deepssim_scan.imaging.names import NAMES

_PLAIN = ("score", "correlation", *NAMES)
FEATURES = (*_PLAIN, *(f"{name}_margin" for name in _PLAIN))
"""What is weighed: cosine similarity, correlation of the coarse look and measures, and of each the
margin over other subjects."""

Array = NDArray[np.float64]

_CLOSEST = 0.999  # correlation: beyond it, pairs differ by their compression alone


@dataclass(frozen=True, slots=True)
class Statistic:
    """The weights (16,) of `FEATURES`, and the constant that is added."""

    weights: tuple[float, ...]
    constant: float

    def __post_init__(self) -> None:
        if len(self.weights) != len(FEATURES):
            raise InputError(
                f"weights must be those of {len(FEATURES)} features, found {len(self.weights)}"
            )

    def of(self, features: Array) -> Array:
        """Return the statistic of features (..., 16): (...,); NaN where there is no evidence."""
        total: Array = features @ np.array(self.weights) + self.constant
        return total


def features(
    scores: NDArray[np.float32],
    correlation: NDArray[np.float32],
    measures: NDArray[np.float32],
    subjects: NDArray[np.int64],
) -> Array:
    """Return the features (Q, n, 16) of the candidates of Q images; NaN where there are none.

    Candidates that were not looked at have none, those that were not registered have no measures.
    All are spread by Fisher's transform, since copies differ in the last per mille.
    A margin is over the mean of the candidates of other subjects that have the feature, 0 where
    there are none. The mean, since the best of them may be a second copy in the training set.
    """
    scores = np.where(np.isnan(correlation), np.nan, scores)
    every = np.concatenate([scores[..., None], correlation[..., None], measures], -1)
    plain = np.arctanh(np.clip(every.astype(np.float64), -_CLOSEST, _CLOSEST))
    there = np.isfinite(plain)
    other = (subjects[:, :, None] != subjects[:, None]).astype(np.float64)
    count = other @ there
    mean = other @ np.where(there, plain, 0.0) / np.maximum(count, 1)
    margin = np.where(there, np.where(count > 0, plain - mean, 0.0), np.nan)
    return np.concatenate([plain, margin], -1)
