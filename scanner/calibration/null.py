"""The null: decision statistics of non-members, and what rate of false alarms a statistic has.

    statistics (n,) of images whose subjects are not in the gallery -> NullDistribution
    statistics (m,) of synthetic images -> p-values (m,)

The p-value of an image is the share of non-members with a statistic at least as large. Between the
statistics of the null it is interpolated, and above its 90 % quantile it follows a fitted tail.
Images of one subject are alike, so bounds count subjects rather than images.
"""

from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.calibration.tail import Floats, Tail, fit_tail, rounded
from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.storage.records import record

_FLOOR = 0.1  # smallest p-value, over the number of statistics
_LEAST_ABOVE = 10  # statistics from which a design effect is estimated
_UP = Context(prec=3, rounding=ROUND_CEILING)  # so that the rate that is told is supported
_LOWER_QUANTILE = 0.9  # where fewer are above the threshold


@dataclass(frozen=True, slots=True, eq=False)
class NullDistribution:
    """The null of an index.

    statistics:  (n,) float64, ascending; higher is more like a copy
    subjects:    (n,) int64, the number of the subject of each
    tail:        fitted to the largest, None where too few are large or none fits

    Raises InputError when there are no statistics, or they are not finite or not ascending.
    """

    statistics: Floats
    subjects: NDArray[np.int64]
    tail: Tail | None

    def __post_init__(self) -> None:
        if self.statistics.shape != self.subjects.shape or self.statistics.ndim != 1:
            shapes = self.statistics.shape, self.subjects.shape
            raise InputError(f"statistics and subjects have shapes {shapes}, wanted (n,) twice")
        if len(self.statistics) == 0:
            raise InputError("A null needs statistics of non-members, found none.")
        if not np.isfinite(self.statistics).all():
            count = np.count_nonzero(~np.isfinite(self.statistics))
            raise InputError(f"{count} of {len(self.statistics)} statistics are not finite.")
        if (np.diff(self.statistics) < 0).any():
            raise InputError("The statistics of a null must be ascending.")

    @classmethod
    def of(cls, statistics: Floats, subjects: NDArray[np.int64], seed: int) -> "NullDistribution":
        """Fit the null to statistics (n,) of subjects (n,), in any order.

        The statistics are rounded to 8 significant digits. `seed` draws the halves of the subjects
        by which the tail is tested. The same values and seed give the same null.
        """
        values = np.array([*map(rounded, statistics)], np.float64)
        order = np.lexsort((subjects, values))
        untailed = cls(values[order], subjects[order], None)
        return replace(untailed, tail=fit_tail(untailed.statistics, untailed.subjects, seed))

    @property
    def smallest_rate(self) -> float:
        """The smallest false-alarm rate that it supports: 1 / (2 n), without a tail 1 / (n + 1)."""
        n = len(self.statistics)
        return 1 / (n + 1) if self.tail is None else 1 / (2 * n)

    def p_values(self, x: Floats) -> Floats:
        """Return the p-values (m,) of statistics (m,), in (0, 1]; the larger one is not above.

        The smallest is 0.1 / n, also beyond the end of a tail that has one. Without a tail it is
        1 / (n + 1). Raises ValueError for a statistic that is NaN.
        """
        x = np.asarray(x, np.float64)
        if np.isnan(x).any():
            raise ValueError(f"{np.count_nonzero(np.isnan(x))} statistics are NaN")
        n = len(self.statistics)
        found = np.interp(x, *self._steps(), left=1.0, right=1 / (n + 1))
        if self.tail is not None:
            above = x > self.tail.threshold
            found[above] = np.maximum(self.tail.rates(x[above]), _FLOOR / n)
        return found

    def threshold(self, rate: float) -> float:
        """Return the statistic above which p-values are at most `rate`, to within rounding.

        Raises InputError for a rate that the null does not support.
        """
        self._check(rate)
        if self.tail is not None and rate < self.tail.share:
            return self.tail.statistic(rate)
        values, rates = self._steps()
        highest = values[-1] if self.tail is None else self.tail.threshold
        return float(min(np.interp(-rate, -rates, values), highest))

    def upper_bound(self, threshold: float, confidence: float = 0.95) -> float:
        """Return the one-sided upper bound of the false-alarm rate from a threshold on.

        It needs no tail: it counts the statistics that reach the threshold, and takes the images
        of a subject as so many independent ones as their spread between subjects tells.

        Source: Korn and Graubard (1998), Survey Methodology 24: Clopper-Pearson with the effective
        sample size.
        """
        reached = float((self.statistics >= threshold).mean())
        size = self.effective_size(threshold)
        return clopper_pearson(reached * size, size, 2 * confidence - 1)[1]

    def effective_size(self, threshold: float) -> float:
        """Return how many independent images tell as much of the rate from a threshold on.

        It lies between the number of subjects and that of images. Where fewer than 10 images reach
        the threshold, or all do, the 90 % quantile is taken in its place.
        """
        n = len(self.statistics)
        if not _LEAST_ABOVE <= np.count_nonzero(self.statistics >= threshold) < n:
            threshold = float(np.quantile(self.statistics, _LOWER_QUANTILE, method="higher"))
        reached = self.statistics >= threshold
        owners = np.unique(self.subjects, return_inverse=True)[1]
        sums = np.bincount(owners, reached - reached.mean())
        single = float(reached.var()) * n  # variance of the count, were the images independent
        subjects = len(sums)
        if subjects == 1 or single == 0:
            return float(subjects)
        clustered = float((sums**2).sum()) * subjects / (subjects - 1)
        return float(np.clip(n * single / max(clustered, single), subjects, n))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, from which `from_json` makes the same null."""
        return {
            "statistics": self.statistics.tolist(),
            "subjects": self.subjects.tolist(),
            "tail": None if self.tail is None else asdict(self.tail),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], path: Path) -> "NullDistribution":
        """Make the null that `as_json` told of; `path` is the file that held it.

        Raises Damaged when it is not what `as_json` gives.
        """
        try:
            tail = None if value["tail"] is None else record(Tail, value["tail"], path)
            statistics = np.array(value["statistics"], np.float64)
            return cls(statistics, np.array(value["subjects"], np.int64), tail)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path}: holds no null ({error!r}). Build the index again.") from error

    def _steps(self) -> tuple[Floats, Floats]:
        """Return the distinct statistics (d,), ascending, and the rate at each (d,), descending.

        At the i-th largest of n the rate is i / (n + 1): so many of new images, in the mean of all
        nulls, reach it.
        """
        n = len(self.statistics)
        values, first = np.unique(self.statistics, return_index=True)
        return values, (n - first) / (n + 1)

    def _check(self, rate: float) -> None:
        if not rate < 1:
            raise InputError(f"The false-alarm rate ({rate:g}) must be below 1.")
        if not rate >= self.smallest_rate:
            least = _UP.create_decimal(str(float(self.smallest_rate)))
            raise InputError(
                f"A false-alarm rate of {rate:g} was asked for; the null of "
                f"{len(self.statistics)} non-members supports {float(least):g} at least. "
                "Ask for that, or hold out more people."
            )
