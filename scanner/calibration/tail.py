"""The generalised Pareto tail of a null, fitted to few values, with what is unsure about it.

    exceedances (k,), prior of the shape -> posterior on a grid -> predictive tail -> Tail

Plugging in the most likely shape and scale flags twice as many non-members as asked at rates of
1 / (2 n), because a tail that is fitted too short errs by more than one fitted too long. The
predictive tail is the mean over all shapes and scales, weighted by how well they fit, and has no
such bias (docs/decisions/0024-tail-of-the-null.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import boxcox, inv_boxcox

from deepssim_scan.errors import InputError
from deepssim_scan.storage.records import check_types

Floats = NDArray[np.float64]

_LEAST = 20
_LEAST_IN_HALF = 5
_PARTS = 10, 20  # one of so many exceeds the threshold; the second where the first is rejected
_REJECTED = 0.01  # goodness below which a tail is not used
_SHAPES = np.linspace(-0.5, 0.5, 40)  # 0 is not among them
_SCALES = np.exp(np.linspace(-1.2, 1.2, 64))  # in means of the exceedances
_PRIOR = -0.1, 0.2  # mean and standard deviation of the shape
_MATCHED = 0.1  # share of the exceedances at which the tail equals the predictive one
_SMALLEST, _FARTHEST = 1e-300, 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """A generalised Pareto distribution of what exceeds a threshold.

    threshold:     statistic above which it holds
    share:         rate at the threshold: (k + 1) / (n + 1), with k of n statistics above it
    shape, scale:  as those of scipy.stats.genpareto with a location of 0
    goodness:      p-value of a Kolmogorov-Smirnov test of a fit to half of the subjects, on the
                   exceedances of the other half

    Raises InputError for a share outside of (0, 1), or a scale that is not positive.
    """

    threshold: float
    share: float
    shape: float
    scale: float
    goodness: float

    def __post_init__(self) -> None:
        check_types(self)
        if not (0 < self.share < 1 and self.scale > 0):
            raise InputError(f"share ({self.share}) must be in (0, 1), scale ({self.scale}) > 0")

    def rates(self, x: Floats) -> Floats:
        """Return the rates at statistics (m,) not below the threshold: (m,), in [0, share]."""
        return self.share * _survival((x - self.threshold) / self.scale, self.shape)

    def statistic(self, rate: float) -> float:
        """Return the statistic at a rate in (0, share]."""
        return self.threshold - self.scale * float(boxcox(rate / self.share, -self.shape))


def fit_tail(statistics: Floats, subjects: NDArray[np.int64], seed: int) -> Tail | None:
    """Fit the tail of statistics (n,), sorted ascending, of subjects (n,); None where none fits.

    It is fitted above the 90 % quantile, else above the 95 % quantile, wherever at least 20
    statistics exceed it and the test does not reject it at 1 %. `seed` draws the halves of the
    subjects for the test. The tail itself is fitted to the exceedances of all subjects.
    """
    names = np.unique(subjects)
    half = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    in_half = np.isin(subjects, half)
    for part in _PARTS:
        tail = _tail_above(statistics, in_half, part)
        if tail is not None and tail.goodness >= _REJECTED:
            return tail
    return None


def _tail_above(statistics: Floats, in_half: NDArray[np.bool_], part: int) -> Tail | None:
    n = len(statistics)
    threshold = float(statistics[n - 1 - n // part])
    excess = np.maximum(statistics - threshold, 0)
    first, second = (each[each > 0] for each in (excess[in_half], excess[~in_half]))
    count = len(first) + len(second)
    if count < _LEAST or min(len(first), len(second)) < _LEAST_IN_HALF:
        return None
    share = (count + 1) / (n + 1)
    smallest = 1 / (2 * n) / share
    goodness = _goodness(second, fit_predictive(first, smallest), len(first))
    fitted = fit_predictive(excess[excess > 0], smallest)
    return Tail(threshold, share, *map(rounded, (*fitted, goodness)))


def _goodness(excess: Floats, fitted: tuple[float, float], count: int) -> float:
    """Test a shape and scale, fitted to `count` others, on an excess (k,): a p-value.

    The size of the test is that of a two-sample test, k * count / (k + count). With k, a true tail
    would be rejected in 4 to 25 % of nulls instead of 1 %: the fit is as unsure as the sample, and
    images of one subject are alike.
    """
    from scipy.stats import kstest, kstwo  # half a second, which no query needs

    shape, scale = fitted
    distance = kstest(excess, lambda x: 1 - _survival(x / scale, shape)).statistic
    return float(kstwo.sf(distance, round(len(excess) * count / (len(excess) + count))))


def fit_predictive(excess: Floats, smallest: float) -> tuple[float, float]:
    """Fit the shape and scale of what exceeds a threshold, excess (k,) > 0.

    The predictive tail has a prior on the shape, normal with mean -0.1 and standard deviation 0.2
    within [-0.5, 0.5], and a flat one on the logarithm of the scale. The result is the generalised
    Pareto distribution that equals it where 10 % and where `smallest` of the exceedances are
    above.
    """
    mean = float(excess.mean())
    survival = _predictive(excess / mean)
    near, far = _quantile(survival, _MATCHED), _quantile(survival, smallest)

    def missed(shape: float) -> float:
        return float(boxcox(1 / smallest, shape) / boxcox(1 / _MATCHED, shape)) - far / near

    shape = float(brentq(missed, -1.0, 3.0))
    return shape, mean * near / float(boxcox(1 / _MATCHED, shape))


def _quantile(survival: Callable[[float], float], share: float) -> float:
    """Return what `share` exceeds, in means of the exceedances."""
    return float(brentq(lambda t: survival(t) - share, 0.0, _FARTHEST))


def _predictive(excess: Floats) -> Callable[[float], float]:
    """Return the predictive share above t, for an excess (k,) whose mean is 1."""
    logs = np.stack([_log_likelihood(excess, shape) for shape in _SHAPES])
    mean, deviation = _PRIOR
    logs -= ((_SHAPES - mean) / deviation)[:, None] ** 2 / 2
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    shapes = _SHAPES[:, None]

    def survival(t: float) -> float:
        inside = np.maximum(1 + shapes * t / _SCALES, 0)
        return float((weights * inside ** (-1 / shapes)).sum())

    return survival


def _log_likelihood(excess: Floats, shape: float) -> Floats:
    """Return the log likelihood of an excess (k,) for each of the scales (s,)."""
    inside = 1 + shape * excess / _SCALES[:, None]
    logs = np.log(np.maximum(inside, _SMALLEST)).sum(1)  # beyond the end of the tail: next to none
    return np.asarray(-(1 + 1 / shape) * logs - len(excess) * np.log(_SCALES))


def _survival(excess: Floats, shape: float) -> Floats:
    """Return the share of a generalised Pareto distribution of scale 1 above an excess (m,)."""
    inside = 1 + shape * excess > 0  # else beyond the end of a tail that has one
    found = inv_boxcox(np.where(inside, -excess, 0.0), -shape)
    return np.asarray(np.where(inside, found, 0.0))


def rounded(value: float) -> float:
    """Round to 8 significant digits: what is stored is what was computed with."""
    return float(f"{value:.8g}")
