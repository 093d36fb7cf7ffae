"""How many of the best matches an approximate search finds: measured, and tuned.

queries, both searches -> Recall; training rows, each without itself -> the least effort that finds
as many as are asked for
"""

from dataclasses import dataclass
from time import monotonic

import numpy as np

from deepssim_scan.index.approximate import Approximate
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.rescore import Ids
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.progress import Progress
from deepssim_scan.store.array import Vectors

SAMPLE = 4000
"""Queries that are searched exactly as well: if all of so many agree, recall is above 0.999."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Of how many queries the best match was found, and of how many matches among the first."""

    queries: int
    best: int
    matches: int
    found: int


@dataclass(frozen=True, slots=True)
class Point:
    """What an effort found of the best matches of so many rows, in seconds of this machine."""

    effort: int
    rows: int
    found: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The effort to search with, and what was found with it and with less.

    The last point is of rows by which the effort was not chosen.
    """

    effort: int
    curve: list[Point]


def measured(search: TrainingIndex, queries: Vectors, count: int) -> Recall:
    """Search queries (Q, D) as they are searched, and exactly, and compare the first `count`."""
    found, exact = search.search(queries, count), search.exact().search(queries, count)
    same = (found.rows[:, :, None] == exact.rows[:, None]).any(1)
    best = found.scores[:, 0] >= exact.scores[:, 0]
    return Recall(len(queries), int(best.sum()), same.size, int(same.sum()))


def tuned(near: Approximate, flat: Flat, target: float, progress: Progress) -> Tuned:
    """Find the least effort with which the share `target` of best matches is found.

    The queries are training rows, each without itself. Half of them choose: they ask for half of
    what may be missing, so that chance does not decide. The others tell what is reached.
    """
    count = min(2 * SAMPLE, flat.rows)
    rows = np.random.default_rng(1).permutation(flat.rows)[:count]
    exact, search = TrainingIndex(flat), TrainingIndex(flat, near)
    wanted = _without_itself(exact, rows)
    choosing, telling = slice(0, count // 2), slice(count // 2, count)
    curve: list[Point] = []
    for effort in near.efforts:
        near.use(effort)
        curve.append(_point(search, rows[choosing], wanted[choosing], effort))
        progress("efforts tried", len(curve), len(near.efforts))
        if curve[-1].found >= (1 + target) / 2 * curve[-1].rows:
            break
    curve.append(_point(search, rows[telling], wanted[telling], near.effort))
    return Tuned(near.effort, curve)


def _point(search: TrainingIndex, rows: Ids, wanted: Vectors, effort: int) -> Point:
    started = monotonic()
    found = _without_itself(search, rows)
    seconds = monotonic() - started
    return Point(effort, len(rows), int((found >= wanted).sum()), round(seconds, 3))


def _without_itself(search: TrainingIndex, rows: Ids) -> Vectors:
    """Return the best score of each training row with another one (n,)."""
    found = search.search(search.vectors_at(rows), 2)
    return np.where(found.rows[:, 0] == rows, found.scores[:, 1], found.scores[:, 0])
