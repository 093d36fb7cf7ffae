"""How many of the best matches an approximate search finds: measured, and tuned.

queries, both searches -> Recall; points between training rows -> the least effort that finds as
many as are asked for; all rows -> those that the search does not find by themselves
"""

from dataclasses import dataclass

import numpy as np

from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.approximate import Approximate
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.rescore import Ids, cosines
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.progress import Progress
from deepssim_scan.store.array import Vectors

SAMPLE = 4000
"""Queries that are searched exactly as well: if all agree, recall is above 0.999 (95 %)."""

_NEIGHBOURS = 8  # of a row, one of which a query lies halfway to
_WORTH = 20  # one row in so many: to compare more is hardly faster than an exact search
_GAIN = 0.1  # of what is missed, which twice the effort must find, or more is not tried
_BLOCK = 16_384  # rows that are searched for themselves at once


@dataclass(frozen=True, slots=True)
class Recall:
    """Of how many queries the best match was found, and of how many matches among the first."""

    queries: int
    best: int
    matches: int
    found: int


@dataclass(frozen=True, slots=True)
class Point:
    """What an effort found of the best matches of queries; how many rows it compared for each."""

    effort: int
    queries: int
    found: int
    compared: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The effort to search with, and what was found with it and with less.

    The last point is of queries by which the effort was not chosen. `unfound` are rows that the
    search does not find by themselves, as a graph may not, and which are searched exactly.
    """

    effort: int
    curve: list[Point]
    unfound: Ids


def measured(search: TrainingIndex, queries: Vectors, count: int) -> Recall:
    """Search queries (Q, D) as they are searched, and exactly, and compare the first `count`."""
    found, exact = search.search(queries, count), search.exact().search(queries, count)
    both = zip(found.rows.tolist(), exact.rows.tolist(), strict=True)
    same = sum(len({*ours} & {*theirs}) for ours, theirs in both)
    best = found.scores[:, 0] >= exact.scores[:, 0]
    return Recall(len(queries), int(best.sum()), exact.rows.size, same)


def tuned(near: Approximate, flat: Flat, target: float, progress: Progress) -> Tuned:
    """Find the least effort with which the share `target` of best matches is found.

    The queries lie halfway between a training row and one like it: they are of no row, as the
    embedding of a synthetic image is. Half of them choose: they ask for half of what may be
    missing, so that chance does not decide. The others tell what is reached. Warns where that is
    too little.
    """
    near.use(near.efforts[0])
    unfound = _unfound(near, flat, progress)
    near.with_unfound(unfound, flat)
    queries = _between(flat)
    wanted = TrainingIndex(flat).search(queries, 1).scores[:, 0]
    half = len(queries) // 2
    choosing, telling = (queries[:half], wanted[:half]), (queries[half:], wanted[half:])
    curve: list[Point] = []
    for effort in near.efforts:
        curve.append(_point(near, flat, *choosing, effort))
        progress("efforts tried", len(curve), len(near.efforts))
        if _is_enough(curve, target, flat.rows):
            break
    most = max(point.found for point in curve)
    effort = next(point.effort for point in curve if point.found == most)
    told = _point(near, flat, *telling, effort)
    if told.found < target * told.queries:
        progress.warn(
            f"The approximate index finds {told.found / told.queries:.2%} of the best matches, and "
            f"{target:.2%} were asked for. Another --index-type may find more; flat finds all."
        )
    return Tuned(effort, [*curve, told], unfound)


def _is_enough(curve: list[Point], target: float, rows: int) -> bool:
    """Tell whether more effort is not to be tried: it is enough, or would not pay."""
    last = curve[-1]
    if last.found >= (1 + target) / 2 * last.queries or last.compared > rows / _WORTH:
        return True
    before = curve[-2] if len(curve) > 1 else Point(0, last.queries, 0, 0)
    return last.found - before.found < _GAIN * (last.queries - before.found)


def _between(flat: Flat) -> Vectors:
    """Return unit-norm points (n, D) halfway between training rows and ones like them."""
    rng = np.random.default_rng(1)
    rows = rng.permutation(flat.rows)[: 2 * SAMPLE]
    ours = flat.vectors_at(rows)
    near = TrainingIndex(flat).search(ours, _NEIGHBOURS).rows
    column = rng.integers(1, near.shape[1], len(rows))
    middle = ours + flat.vectors_at(near[np.arange(len(rows)), column])
    unit: Vectors = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    return unit


def _point(near: Approximate, flat: Flat, queries: Vectors, wanted: Vectors, effort: int) -> Point:
    near.use(effort)
    near.count_anew()
    found = TrainingIndex(flat, near).search(queries, 1).scores[:, 0]
    compared = near.compared / len(queries)
    return Point(effort, len(queries), int((found >= wanted).sum()), round(compared, 1))


def _unfound(near: Approximate, flat: Flat, progress: Progress) -> Ids:
    """Search every row for itself, and return those for which neither it nor its like is found.

    It is done with the least effort; more finds them, too.
    """
    search, lost = TrainingIndex(flat, near), [np.empty(0, np.int64)]
    for part in sliced(flat.rows, _BLOCK):
        ours = flat.vectors(part.start, part.stop)
        found = search.search(ours, 1).scores[:, 0]
        lost.append(part.start + np.flatnonzero(found < cosines(ours, ours)))
        progress("rows searched for themselves", part.stop, flat.rows)
    return np.concatenate(lost)
