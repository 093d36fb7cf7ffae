"""Candidates: the training images that are looked at again for each image.

    views (Q, V, D), an index, whose image each row is -> Matches (Q, n)

The best by score, but of one subject not so many that nobody else is left. How much better a
candidate fits than those of other subjects is what tells a copy from a person who looks alike.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.index.rescore import Matches
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.store.array import Vectors

Rows = NDArray[np.int64]

OTHERS = 3
"""Candidates of other subjects, at least, where there are any."""

_DEEPER = 4  # times as many rows are asked for, first and whenever they were not enough


def propose(
    search: TrainingIndex,
    views: Vectors,
    count: int,
    subjects: Rows,
    left_out: Sequence[Rows] | None = None,
) -> Matches:
    """Return the `count` best candidates of each image, the best first; fewer where there are not.

    `subjects` (N,) numbers the subject of each training row. Of one subject at most `count` - 3,
    and at least one, are taken, unless there are no others. `left_out` names rows for each image
    that are not taken; where one image has fewer rows than `count`, all have as few.
    """
    most = max(map(len, left_out)) if left_out else 0
    depth = _DEEPER * count + most
    while True:
        found = search.search_views(views, depth)
        barred = np.zeros(found.rows.shape, bool)
        for query, rows in enumerate(left_out or ()):
            barred[query] = np.isin(found.rows[query], rows)
        repeated = _rank(np.where(barred, -1 - found.rows, subjects[found.rows]))
        late = repeated >= max(1, count - OTHERS)
        if depth >= search.rows or ((~barred & ~late).sum(1) >= count).all():
            room = int((~barred).sum(1).min(initial=count))
            return _first(found, 2 * barred + late, room)
        depth = min(_DEEPER * depth, search.rows)


def followed(search: TrainingIndex, views: Vectors, found: Matches, count: int) -> Matches:
    """Put the next best rows after the candidates of images, up to `count` of them or all rows.

    They are to be listed alone, and are not verified.
    """
    more = min(count, search.rows) - found.rows.shape[1]
    if more <= 0:
        return found
    deeper = search.search_views(views, count + found.rows.shape[1])
    again = (deeper.rows[:, :, None] == found.rows[:, None]).any(-1)
    rest = deeper.reordered(np.argsort(again, axis=1, kind="stable")[:, :more])
    columns = ("rows", "scores", "views")
    return Matches(*(np.concatenate([getattr(m, c) for m in (found, rest)], 1) for c in columns))


def _first(found: Matches, penalty: NDArray[np.int64], count: int) -> Matches:
    """Return the first matches of the least penalty, the best score first."""
    chosen = np.sort(np.argsort(penalty, axis=1, kind="stable")[:, :count], axis=1)
    return found.reordered(chosen)


def _rank(subjects: Rows) -> Rows:
    """Count how many of the same subject come before each (Q, k): (Q, k)."""
    order = np.argsort(subjects, axis=1, kind="stable")
    ordered = np.take_along_axis(subjects, order, 1)
    place = np.broadcast_to(np.arange(ordered.shape[1]), ordered.shape)
    first = np.ones(ordered.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    since = place - np.maximum.accumulate(np.where(first, place, 0), axis=1)
    rank = np.empty_like(since)
    np.put_along_axis(rank, order, since, 1)
    return rank
