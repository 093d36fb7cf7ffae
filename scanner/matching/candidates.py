"""Candidates: the training images that are looked at again for each image.

    views (Q, V, D), an index, whose image each row is -> Matches (Q, n)

The best by score, but of one subject not so many that nobody else is left. How much better a
candidate fits than those of other subjects is what tells a copy from a person who looks alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.rescore import Matches, cosines
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.store.array import Vectors

Rows = NDArray[np.int64]

OTHERS = 3
"""Candidates of other subjects, at least, where there are any."""

NEAR = 0.97
"""Cosine from which on two training images are nearly the same; those of two people are not."""

_DEEPER = 4  # times as many rows are asked for, first and of images that have not enough of them
_AT_ONCE = 2**20  # rows that are found at a time, of all images and views
_BARRED = 2  # penalty of a row that is left out
_NEAREST = 1024  # of so many candidates of an image those near the best one are told
_COMPARED = 8192  # pairs of rows that are compared at a time
_ERROR = 1e-4  # above that of a product that is summed in float32, in any order
_COLUMNS = "rows", "scores", "views"


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Whom the images of an index show: `number` (N,) is that of each row's subject."""

    search: TrainingIndex
    number: Rows

    def of(self, rows: Rows, barred: NDArray[np.bool_] | None = None) -> Rows:
        """Return the number of whom each candidate (Q, n) of some images shows, the best one first.

        Subjects with nearly the same image as the best candidate count as its subject: they are one
        person, or one person's image is among those of another. Copies of it would hide each other
        otherwise, since none is more alike than those of other subjects. `barred` (Q, n)
        candidates are none.
        """
        whose = self.number[rows]
        if not rows.size:
            return whose
        barred = np.zeros(rows.shape, bool) if barred is None else barred
        at = np.arange(len(rows)), barred.argmin(1)
        own = whose[at][:, None]
        near = self._near(rows, rows[at], (whose != own) & ~barred)
        keys = np.arange(len(rows))[:, None] * (int(self.number.max()) + 1) + whose
        return np.where(np.isin(keys, keys[near]), own, whose)

    def of_verified(self, rows: Rows, count: int) -> Rows:
        """Return the same of candidates of which those after the first `count` are listed alone.

        What is listed alone changes no verdict of the others, so it is near to nobody.
        """
        listed = np.arange(rows.shape[1]) >= count
        return self.of(rows, np.broadcast_to(listed, rows.shape))

    def _near(self, rows: Rows, first: Rows, asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which of the candidates (Q, n) that are asked about are near the first one (Q,)."""
        near = np.zeros(rows.shape, bool)
        image, place = np.nonzero(asked[:, :_NEAREST])
        for part in sliced(len(image), _COMPARED):
            pairs = first[image[part]], rows[image[part], place[part]]
            ours, theirs = (self.search.vectors_at(each) for each in pairs)
            some = np.flatnonzero(np.einsum("nd,nd->n", ours, theirs) > NEAR - _ERROR)
            at = image[part][some], place[part][some]
            near[at] = cosines(ours[some], theirs[some]) >= NEAR
        return near


def propose(
    shown: Shown, views: Vectors, count: int, left_out: Sequence[Rows] | None = None
) -> Matches:
    """Return the `count` best candidates of each image, the best first; fewer where there are not.

    Of one subject at most `count` - 3, and at least one, are taken, unless there are no others.
    `left_out` names rows for each image that are not taken; where one image has fewer rows than
    `count`, all have as few.
    """
    search = shown.search
    depth = _DEEPER * count + (max(map(len, left_out)) if left_out else 0)
    chosen, few = _Chosen(len(views), min(count, search.rows)), np.arange(len(views))
    while len(few):
        depth = min(depth, search.rows)
        parts = sliced(len(few), max(1, _AT_ONCE // (views.shape[1] * depth)))
        for some in [few[part] for part in parts]:
            found = search.search_views(views[some], depth)
            barred = [left_out[query] for query in some] if left_out else ()
            chosen.put(some, found, _penalty(found, count, shown, barred))
        few = np.flatnonzero(chosen.best < count) if depth < search.rows else few[:0]
        depth *= _DEEPER
    return chosen.ranked(count)


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
    return Matches(*(np.concatenate([getattr(m, c) for m in (found, rest)], 1) for c in _COLUMNS))


def _penalty(
    found: Matches, count: int, shown: Shown, left_out: Sequence[Rows]
) -> NDArray[np.int64]:
    """Return 0 (Q, k) for rows to take, 1 for too many of a subject, 2 or 3 for those barred."""
    barred = np.zeros(found.rows.shape, bool)
    for query, rows in enumerate(left_out):
        barred[query] = np.isin(found.rows[query], rows)
    repeated = _rank(np.where(barred, -1 - found.rows, shown.of(found.rows, barred)))
    late: NDArray[np.bool_] = repeated >= max(1, count - OTHERS)
    return np.array(_BARRED * barred + late, np.int64)


class _Chosen:
    """The rows (Q, n) of the least penalty of each image, and the place of each by its score.

    `best` (Q,) counts rows without a penalty, `free` (Q,) those that are not barred.
    """

    def __init__(self, images: int, count: int) -> None:
        shape = images, count
        self._matches = Matches(
            np.empty(shape, np.int64), np.empty(shape, np.float32), np.empty(shape, np.int8)
        )
        self._places = np.empty(shape, np.int64)
        self.best, self.free = np.zeros(images, np.int64), np.zeros(images, np.int64)

    def put(self, images: Rows, found: Matches, penalty: NDArray[np.int64]) -> None:
        """Choose among all rows that were found of some images (m, k), the best score first."""
        first = np.argsort(penalty, axis=1, kind="stable")[:, : self._places.shape[1]]
        self._places[images] = first
        for name in _COLUMNS:
            getattr(self._matches, name)[images] = getattr(found.reordered(first), name)
        self.best[images], self.free[images] = (penalty == 0).sum(1), (penalty < _BARRED).sum(1)

    def ranked(self, count: int) -> Matches:
        """Return as many of each image as all have, `count` at most, the best score first."""
        room = int(self.free.min(initial=count))
        order = np.argsort(self._places[:, :room], axis=1)
        return self._matches.part(slice(None), room).reordered(order)


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
