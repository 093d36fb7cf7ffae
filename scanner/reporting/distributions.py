"""How the images of a run and those of its calibration are distributed, for the plots.

rank-1 matches, a rule -> Distributions -> distributions.json
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.storage.layout import DISTRIBUTIONS
from deepssim_scan.storage.records import read_json, record, write_json

_BINS = 60
_TAILS = 0.2, 99.8  # percentiles of all, at which the outer bins begin


@dataclass(frozen=True, slots=True)
class Distributions:
    """Counts in bins of the decision statistic, or of the score where there is none.

    `edges` (B + 1,) are of the bins; the outer ones hold what lies beyond, too. `non_members`,
    `planted` and `synthetic` (B,) count images by their best match. `similar`
    and `duplicate` are the bounds of the verdicts. No outer bin has a bound within it, so that what
    lies beyond is on the right side of each.
    """

    what: str
    edges: list[float]
    non_members: list[int]
    planted: list[int]
    synthetic: list[int]
    similar: float
    duplicate: float

    @staticmethod
    def column(rule: Rule) -> str:
        """Return the column of matches.parquet that a rule compares."""
        return "statistic" if isinstance(rule, CalibratedRule) else "score"

    @classmethod
    def of(cls, best: Iterable[float], rule: Rule) -> Self:
        """Count images by what their best match has, as a rule compares it."""
        values = np.fromiter(best, np.float64)
        null, planted = np.empty(0), np.empty(0)
        if isinstance(rule, CalibratedRule):
            null = rule.calibration.null.statistics
            planted = np.concatenate([np.array(x) for x in rule.calibration.planted.values()])
        bounds = rule.bounds.similar, rule.bounds.duplicate
        every = np.concatenate([values[np.isfinite(values)], null, planted, bounds])
        every = every[np.isfinite(every)]
        low, high = np.percentile(every, _TAILS)
        low, high = min(low, *bounds), max(high, *bounds)
        step = (high - low) / (_BINS - 2) or 1.0
        edges = np.linspace(low - step, high + step, _BINS + 1)
        non_members, of_planted, synthetic = (
            np.histogram(each[np.isfinite(each)].clip(edges[0], edges[-1]), edges)[0].tolist()
            for each in (null, planted, values)
        )
        return cls(cls.column(rule), edges.tolist(), non_members, of_planted, synthetic, *bounds)

    def write(self, folder: Path) -> None:
        """Write distributions.json of a report folder."""
        write_json(folder / DISTRIBUTIONS, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it; InputMissing where there is none, Damaged where it is not what was written."""
        path = folder / DISTRIBUTIONS
        return record(cls, read_json(path), path)
