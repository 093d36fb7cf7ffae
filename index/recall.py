"""How many of the best matches an approximate search finds: measured, and tuned.

queries, both searches -> Recall; training rows without their subjects -> the least effort that
finds as many as are asked for; all rows -> those that the search does not find by themselves
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.approximate import Approximate
from deepssim_scan.index.rescore import Ids, cosines
from deepssim_scan.index.search import MARGIN, TrainingIndex
from deepssim_scan.progress import Progress
from deepssim_scan.store.array import Vectors

SAMPLE = 4000
"""Queries that are searched exactly as well: if all agree, recall is above 0.999 (95 %)."""

_CROWD = 256  # images of a subject, of which more are taken for others
_WORTH = 2  # one row in so many: to compare more is no faster than an exact search
_GAIN = 0.05  # of what is missed, which the next effort must find, or more is not tried
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


def tuned(
    near: Approximate,
    exact: TrainingIndex,
    subjects: NDArray[np.int64],
    target: float,
    progress: Progress,
) -> Tuned:
    """Find the least effort with which the share `target` of best matches is found.

    The queries are training rows, each without those of its subject (N,). So they are as hard as
    images of other people. Half of them choose: they ask for half of what may be missing, so that
    chance does not decide. The others tell what is reached. Warns where that is too little.
    """
    unfound = _unfound(near, exact, near.efforts[0], progress)
    queries = _left_out(exact, subjects)
    half = len(queries.rows) // 2
    choosing, telling = queries.part(slice(half)), queries.part(slice(half, None))
    curve: list[Point] = []
    for effort in near.efforts:
        curve.append(_point(near, exact, choosing, effort))
        progress("efforts tried", len(curve), len(near.efforts))
        if _is_enough(curve, target, exact.rows):
            break
    most = max(point.found for point in curve)
    effort = next(point.effort for point in curve if point.found == most)
    if effort != near.efforts[0]:
        unfound = np.union1d(unfound, _unfound(near, exact, effort, progress))
    near.with_unfound(unfound, exact.flat)
    told = _point(near, exact, telling, effort)
    if told.found < target * told.queries:
        progress.warn(
            f"The approximate index finds {told.found / told.queries:.2%} of the best matches, and "
            f"{target:.2%} were asked for. Another --index-type may find more; flat finds all."
        )
    return Tuned(effort, [*curve, told], unfound)


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """Training rows (n,) without those of their subjects, and the score of the best other (n,).

    `subjects` (N,) has a number of the subject of every row, which `most` rows have at most.
    """

    rows: Ids
    wanted: Vectors
    subjects: NDArray[np.int64]
    most: int

    def part(self, which: slice) -> Self:
        return replace(self, rows=self.rows[which], wanted=self.wanted[which])

    def others(self, found: Ids) -> Ids:
        """Return what was found (n, m) for each row; -1 for rows of its subject."""
        own = self.subjects[found] == self.subjects[self.rows][:, None]
        return np.where(own, -1, found)


def _left_out(exact: TrainingIndex, subjects: NDArray[np.int64]) -> _LeftOut:
    """Draw training rows, and search them exactly."""
    sizes = np.bincount(subjects)[subjects]
    alone = np.where(sizes > _CROWD, subjects.max() + 1 + np.arange(len(subjects)), subjects)
    rows = np.random.default_rng(1).permutation(len(subjects))[: 2 * SAMPLE]
    most = int(sizes[sizes <= _CROWD].max(initial=1))
    drawn = _LeftOut(rows, np.empty(0, np.float32), alone, most)
    found = exact.search(exact.vectors_at(rows), 1 + most)
    scores = np.where(drawn.others(found.rows) < 0, -np.inf, found.scores)
    return replace(drawn, wanted=scores.max(1))


def _is_enough(curve: list[Point], target: float, rows: int) -> bool:
    """Tell whether more effort is not to be tried: it is enough, or would not pay."""
    last = curve[-1]
    if last.found >= (1 + target) / 2 * last.queries or last.compared > rows / _WORTH:
        return True
    before = curve[-2] if len(curve) > 1 else Point(0, last.queries, 0, 0)
    return last.found - before.found < _GAIN * (last.queries - before.found)


def _point(near: Approximate, exact: TrainingIndex, queries: _LeftOut, effort: int) -> Point:
    near.use(effort)
    near.count_anew()
    ours = exact.vectors_at(queries.rows)
    _, ids = near.propose(ours, min(queries.most + MARGIN + 1, exact.rows))
    best = exact.flat.best_of(ours, queries.others(ids), 1)[1][:, 0]
    compared = near.compared / len(ours)
    found = int((best >= queries.wanted).sum())
    return Point(effort, len(ours), found, round(compared, 1))


def _unfound(near: Approximate, exact: TrainingIndex, effort: int, progress: Progress) -> Ids:
    """Search every row for itself, and return those for which neither it nor its like is found.

    Only a graph has such rows, other ones by each effort. They are searched exactly from now on.
    """
    near.use(effort)
    search, lost = TrainingIndex(exact.flat, near=near), [np.empty(0, np.int64)]
    for part in sliced(exact.rows if near.is_graph else 0, _BLOCK):
        ours = exact.vectors(part.start, part.stop)
        found = search.search(ours, 1).scores[:, 0]
        lost.append(part.start + np.flatnonzero(found < cosines(ours, ours)))
        progress("rows searched for themselves", part.stop, exact.rows)
    unfound = np.concatenate(lost)
    near.with_unfound(unfound, exact.flat)
    return unfound
