"""How many of the best matches a run's search found, where its index is approximate.

embeddings of some synthetic images, and of the canaries -> Searched, in summary.json
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.index.recall import SAMPLE, Recall, measured
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.jobs.query.proof.sampling import read_rows
from deepssim_scan.matching.candidates import Rows
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.store import Store

_ONE_SIDED = 0.9  # of a two-sided interval, of which one side has 95 %


@dataclass(frozen=True, slots=True)
class Searched:
    """What was searched with, and what a sample of the queries and the canaries say of it.

    `canaries` are those of which an exact search lists the source, and of how many this one does.
    Both are None where the search is exact, and `canaries` where none were planted.
    """

    kind: str
    effort: int
    least: float
    sample: Recall | None = None
    canaries: tuple[int, int] | None = None

    @property
    def passed(self) -> bool:
        """Whether the share of best matches that is found is, at least, what is asked for."""
        return self.sample is None or self._at_least(self.sample) >= self.least

    def as_json(self) -> dict[str, Any]:
        """Return what summary.json says of it."""
        planted = self.canaries
        return {
            "type": self.kind,
            "effort": self.effort,
            "exact": self.sample is None,
            "least": self.least,
            "passed": self.passed,
            "sample": self.sample and self._told(self.sample),
            "canaries": planted and {"listed": planted[0], "found": planted[1]},
        }

    def _told(self, found: Recall) -> dict[str, Any]:
        return {
            "queries": found.queries,
            "best_found": found.best,
            "recall": found.best / found.queries,
            "recall_at_least_95": self._at_least(found),
            "recall_of_candidates": found.found / found.matches,
        }

    def _at_least(self, found: Recall) -> float:
        """Return the one-sided lower bound of 95 % of the share of best matches that is found."""
        return clopper_pearson(found.best, found.queries, _ONE_SIDED)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Embeddings (m, D) of planted copies, and the training row (m,) of each."""

    rows: Vectors
    sources: Rows


def searched(
    search: TrainingIndex, store: Store, copies: Copies | None, count: int, least: float
) -> Searched:
    """Search a random sample of a store, and copies, exactly as well; compare the first `count`."""
    used = search.proposer
    if search.is_exact:
        return Searched(used.kind, used.effort, least)
    planted = None if copies is None else _found(search, copies, count)
    sample = measured(search, _sample(store), count)
    return Searched(used.kind, used.effort, least, sample, planted)


def _found(search: TrainingIndex, copies: Copies, count: int) -> tuple[int, int]:
    """Count the copies of which an exact search lists the source, and of those this one does."""
    ours, theirs = (
        (each.search(copies.rows, count).rows == copies.sources[:, None]).any(1)
        for each in (search, search.exact())
    )
    return int(theirs.sum()), int((ours & theirs).sum())


def _sample(store: Store) -> Vectors:
    """Read up to `SAMPLE` rows of a store, drawn at random; the same ones every time."""
    rng = np.random.default_rng(int(store.digest[:8], 16))
    rows = np.sort(rng.permutation(store.rows)[:SAMPLE])
    return read_rows(store, rows)
