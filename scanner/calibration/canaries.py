"""Canaries: copies of training images that a query plants, to see that it finds them.

planted copies, what was found of them, a rule -> Canaries
"""

from dataclasses import dataclass
from typing import Any

from deepssim_scan.calibration.found import Found, Planted
from deepssim_scan.calibration.rates import binomial_quantile, clopper_pearson
from deepssim_scan.calibration.rule import CalibratedRule
from deepssim_scan.imaging.names import KINDS

_CHANCE = 0.001  # that a detector as good as it was calibrated finds fewer than the least share
_LEAST = 0.5  # share that a detector finds, or no copy found says nothing


@dataclass(frozen=True, slots=True)
class Canaries:
    """How many copies of each kind were planted and flagged, and the share that had to be."""

    planted: dict[str, int]
    found: dict[str, int]
    least: float

    @property
    def count(self) -> tuple[int, int]:
        """How many were flagged, and how many planted."""
        return sum(self.found.values()), sum(self.planted.values())

    @property
    def passed(self) -> bool:
        """Whether the detector works. Where nothing could be planted, nobody knows."""
        found, planted = self.count
        return planted > 0 and found >= self.least * planted

    def as_json(self) -> dict[str, Any]:
        """Return what summary.json says of them."""
        found, planted = self.count
        low, high = clopper_pearson(found, planted)
        return {
            "planted": planted,
            "found": found,
            "recall": found / planted if planted else None,
            "recall_95": [low, high],
            "least": self.least,
            "passed": self.passed,
            "by_kind": {kind: [self.found[kind], self.planted[kind]] for kind in self.planted},
        }


def count_canaries(
    planted: Planted, found: Found, rule: CalibratedRule, least: float | None
) -> Canaries:
    """Count the canaries that a rule flags.

    The least share, where none is given, is what a detector as good as it was calibrated reaches
    but for one run in a thousand. How good that is has an interval, and its lower bound counts: a
    calibration that found all of its planted copies does not ask for all canaries. One that found
    fewer than half asks for what a detector reaches that finds half.
    """
    statistics = rule.calibration.statistic.of(found.features)
    above = statistics > rule.bounds.duplicate  # never where there is no evidence: NaN
    hit = (above & found.decidable).any(1)
    kinds = {name: planted.kinds == kind for kind, name in enumerate(KINDS)}
    count = len(planted.kinds)
    if least is None:
        lowest, _ = clopper_pearson(*rule.calibration.count_found(rule.rate))
        least = binomial_quantile(_CHANCE, count, max(lowest, _LEAST)) / max(count, 1)
    return Canaries(
        {name: int(of.sum()) for name, of in kinds.items() if of.any()},
        {name: int((hit & of).sum()) for name, of in kinds.items() if of.any()},
        least,
    )
