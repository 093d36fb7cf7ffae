"""How many of the best matches a run's search found, where its index is approximate.

embeddings of some synthetic images, and of the canaries -> Searched, in summary.json
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.index.recall import SAMPLE, Recall, measured
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.store import Store

_ONE_SIDED = 0.9  # of a two-sided interval, of which one side has 95 %


@dataclass(frozen=True, slots=True)
class Searched:
    """What was searched with, and what a sample of the queries and the canaries say of it.

    Both are None where the search is exact, and `canaries` where none were planted.
    """

    kind: str
    effort: int
    least: float
    sample: Recall | None = None
    canaries: Recall | None = None

    @property
    def passed(self) -> bool:
        """Whether the share of best matches that is found is at least what is asked for."""
        told = [each for each in (self.sample, self.canaries) if each is not None and each.queries]
        return all(each.best >= self.least * each.queries for each in told)

    def as_json(self) -> dict[str, Any]:
        """Return what summary.json says of it."""
        return {
            "type": self.kind,
            "effort": self.effort,
            "exact": self.sample is None,
            "least": self.least,
            "passed": self.passed,
            "sample": _told(self.sample),
            "canaries": _told(self.canaries),
        }


def searched(
    search: TrainingIndex, store: Store, canaries: Vectors | None, count: int, least: float
) -> Searched:
    """Search a random sample of a store, and canaries (m, D), exactly as well; compare `count`."""
    used = search.proposer
    if search.is_exact:
        return Searched(used.kind, used.effort, least)
    planted = None if canaries is None else measured(search, canaries, count)
    return Searched(used.kind, used.effort, least, measured(search, _sample(store), count), planted)


def _sample(store: Store) -> Vectors:
    """Read up to `SAMPLE` rows of a store, drawn at random; the same ones every time."""
    rng = np.random.default_rng(int(store.digest[:8], 16))
    rows = np.sort(rng.permutation(store.rows)[:SAMPLE])
    parts = [
        part[rows[(rows >= first) & (rows < first + len(part))] - first]
        for first, part in store.shards()
    ]
    return np.concatenate(parts)


def _told(found: Recall | None) -> dict[str, Any] | None:
    if found is None or not found.queries:
        return None
    low, _ = clopper_pearson(found.best, found.queries, _ONE_SIDED)
    return {
        "queries": found.queries,
        "best_found": found.best,
        "recall": found.best / found.queries,
        "recall_at_least_95": low,
        "recall_of_candidates": found.found / found.matches,
    }
