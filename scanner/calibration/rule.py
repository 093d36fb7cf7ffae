"""A rule that judges the candidates of images, and says how often it is wrong.

Part (Q, n), subjects (Q, n) -> Judged (Q, n): verdicts, statistics, p-values
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.calibration.calibration import Calibration, similar_rate
from deepssim_scan.matching.config import CANDIDATES
from deepssim_scan.matching.decision import VERDICTS, Bounds, judge, strongest_first
from deepssim_scan.matching.parts import Part
from deepssim_scan.matching.statistic import features
from deepssim_scan.matching.views import NEVER

SIMILAR_VERDICT = np.int8(VERDICTS.index("similar"))


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What is said of pairs (Q, n).

    verdicts are indices in VERDICTS. statistics and p_values are NaN where there are none. order
    (Q, n) has the strongest pair of each image first.
    """

    verdicts: NDArray[np.int8]
    statistics: NDArray[np.float64]
    p_values: NDArray[np.float64]
    order: NDArray[np.int64]

    def reordered(self, order: NDArray[np.int64]) -> "Judged":
        """Return the pairs of each image in another order (Q, k), k <= n."""
        at = np.arange(len(order))[:, None], order
        return Judged(self.verdicts[at], self.statistics[at], self.p_values[at], self.order[at])


class Rule(Protocol):
    """Judges the candidates of images."""

    @property
    def bounds(self) -> Bounds:
        """Above which value a pair is similar, and a duplicate."""

    @property
    def enough(self) -> tuple[float, float]:
        """From which score on an image is not looked at turned, and inverted."""

    def judge(self, part: Part, subjects: NDArray[np.int64]) -> Judged:
        """Judge candidates (Q, n) of such subjects (Q, n)."""


@dataclass(frozen=True, slots=True)
class CalibratedRule:
    """Compares the decision statistic with quantiles of the null."""

    calibration: Calibration
    rate: float
    verified: int = CANDIDATES

    @property
    def bounds(self) -> Bounds:
        """The quantiles for the false-alarm rate, and for ten times that."""
        null = self.calibration.null
        return Bounds(null.threshold(similar_rate(self.rate)), null.threshold(self.rate))

    @property
    def enough(self) -> tuple[float, float]:
        """As the calibration found."""
        return self.calibration.enough

    def judge(self, part: Part, subjects: NDArray[np.int64]) -> Judged:
        """Judge candidates (Q, n), the first `verified` of which count.

        Those after them are listed alone: by their scores they are similar at most, and they come
        last.
        """
        found, evidence = part.candidates, part.evidence
        count = self.verified
        known = evidence.correlation, evidence.measures
        every = features(found.scores, *known, subjects)
        statistics = self.calibration.statistic.of(every)
        missing, foreground = evidence.missing, evidence.foreground
        verdicts = judge(found.scores, statistics, missing, foreground, self.bounds)
        verdicts[:, count:] = np.minimum(verdicts[:, count:], SIMILAR_VERDICT)
        p_values = np.full(statistics.shape, np.nan)
        there = ~np.isnan(statistics)
        p_values[there] = self.calibration.null.p_values(statistics[there])
        order = np.broadcast_to(np.arange(found.rows.shape[1]), found.rows.shape).copy()
        first = verdicts[:, :count], statistics[:, :count], found.scores[:, :count]
        order[:, :count] = strongest_first(*first)
        return Judged(verdicts, statistics, p_values, order)


@dataclass(frozen=True, slots=True)
class ReferenceRule:
    """Compares the cosine similarity with fixed scores, as the reference does."""

    bounds: Bounds
    enough: tuple[float, float] = (NEVER, NEVER)

    def judge(self, part: Part, subjects: NDArray[np.int64]) -> Judged:
        """Judge candidates (Q, n)."""
        scores = part.candidates.scores
        verdicts = self.bounds.judge(scores)
        nothing = np.full(scores.shape, np.nan)
        return Judged(verdicts, nothing, nothing, strongest_first(verdicts, nothing, scores))
