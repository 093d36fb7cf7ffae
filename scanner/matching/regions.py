"""Regions of images that copy regions of training images, though the rest does not.

    thumbnails of N training images -> RegionSearch
    thumbnails of Q images -> Regions: of each the region that is most like one subject alone

An encoder looks at a whole image. One that holds half of a training image is often less like it
than one of a non-member is. So nine overlapping quarters of each thumbnail are looked for by
themselves, as they are and mirrored, a little shifted. They are compared by what tells these
training images apart: directions in which they differ more than an image does from itself, shifted
by a pixel. The best of several subjects are then correlated at half a pixel. A region that is a
copy is like one subject and no other. So the statistic is the correlation (Fisher's z) with the
best subject less that with the second best.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.linalg import eigh

from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.imaging.thumbnails import SIDE, Thumbnails
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.store.store import Store

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

MOST = 20_000
"""Training images among which regions are looked for, at most; time grows with their number."""

WINDOW = SIDE // 2
"""The side of a region, in pixels of a thumbnail."""

_PLACES = range(0, WINDOW + 1, WINDOW // 2)
CORNERS = [(y, x) for y in _PLACES for x in _PLACES]
"""The upper left corners of the regions."""

_MOVES = [(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]  # pixels, looked at coarsely
_DIMENSIONS, _RIDGE = 48, 0.1
_FITTED = 2048  # training images that the directions are fitted to, at most
_SUBJECTS = 8  # that are correlated with a region
_REGIONS = 4  # of an image that are correlated
_REACH = 2  # pixels that a region may be shifted
_QUERIES = 64  # images looked for at once
_BLOCK = 1024  # images of a block, to which the whole search is sent
_TOGETHER = 1024  # training images at once, so that their scores stay in the cache
_GROUP = 16  # columns, of which the maximum is looked at first
_HIGHEST = 0.995  # correlation


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """The region of each of Q images that is most like one subject alone.

    statistic (Q,) is NaN where there are too few subjects; rows (Q,) are the training images;
    corner (Q,) is an index in CORNERS, mirrored (Q,) tells whether the image is; correlation
    (Q,) is that of the two regions.
    """

    statistic: NDArray[np.float64]
    rows: Rows
    corner: Rows
    mirrored: NDArray[np.bool_]
    correlation: NDArray[np.float64]

    @classmethod
    def none(cls, count: int) -> Self:
        """Return what is known of images that were not looked for."""
        unknown = np.full(count, np.nan)
        zeros = np.zeros(count, np.int64)
        return cls(unknown, zeros, zeros.copy(), np.zeros(count, bool), unknown.copy())

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def put(self, images: int | Rows, values: Sequence[Any]) -> None:
        """Put what was found of some images at its place."""
        for column, value in zip(self.columns, values, strict=True):
            column[images] = value

    def only(self, images: Rows | slice) -> Self:
        """Return what was found of some images."""
        return type(self)(*(column[images] for column in self.columns))

    def or_if_better(self, other: Self) -> Self:
        """Return the one of two regions of each image that is more like one subject alone."""
        better = other.statistic > self.statistic
        both = zip(self.columns, other.columns, strict=True)
        return type(self)(*(np.where(better, theirs, ours) for ours, theirs in both))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Put several together, in their order."""
        return cls(*map(np.concatenate, zip(*(part.columns for part in parts), strict=True)))


class RegionSearch:
    """Looks for regions of images among training images (N,) of some subjects (N,)."""

    def __init__(self, training: Thumbnails, subjects: Rows) -> None:
        """Fit the directions, and keep where the regions of all training images lie in them."""
        self._order = np.argsort(subjects, kind="stable")
        self._subjects, starts = np.unique(subjects[self._order], return_index=True)
        self._starts, self._stops = starts, np.append(starts[1:], len(subjects))
        self._training = training[self._order]
        chosen = np.linspace(0, len(training) - 1, min(_FITTED, len(training))).round().astype(int)
        some = self._training[chosen].astype(np.float32)
        moved = [_moved(some, *move) for move in ((1, 0), (0, 1), (1, 1), (1, -1))]
        self._directions = [
            Directions.fitted(_region(some, corner), [_region(each, corner) for each in moved])
            for corner in CORNERS
        ]
        self._known = [
            directions.of(_region(self._training, corner).astype(np.float32))
            for directions, corner in zip(self._directions, CORNERS, strict=True)
        ]

    def look_for(self, images: Thumbnails, left_out: Rows | None = None) -> Regions:
        """Look for images (Q,), as they are and mirrored; what is more like one subject counts.

        `left_out` (Q, m) are subjects that do not count for each.
        """
        found = [Regions.none(0)]
        for part in sliced(len(images), _QUERIES):
            whose = None if left_out is None else left_out[part]
            plain, mirrored = (self._found(images[part], side, whose) for side in (False, True))
            found.append(plain.or_if_better(mirrored))
        return Regions.joined(found)

    def _found(self, images: Thumbnails, mirrored: bool, left_out: Rows | None) -> Regions:
        found = Regions.none(len(images))
        count = min(_SUBJECTS, len(self._subjects) - (0 if left_out is None else left_out.shape[1]))
        if count < 2:
            return found
        found.mirrored[:] = mirrored
        side = images.astype(np.float32)[:, :, :: -1 if mirrored else 1]
        looks = [_moved(side, *move) for move in _MOVES]
        coarse = [self._coarse(corner, looks, left_out, count) for corner in range(len(CORNERS))]
        margins = np.stack([margin for margin, _ in coarse])
        between = _between(side)
        for number, corners in enumerate(np.argsort(-margins, 0, kind="stable")[:_REGIONS].T):
            for corner in corners.tolist():
                rows = coarse[corner][1][number]
                z = self._correlated(CORNERS[corner], rows, between[number])
                first, second = np.argsort(-z, kind="stable")[:2]
                if not z[first] - z[second] <= found.statistic[number]:
                    found.statistic[number] = z[first] - z[second]
                    found.rows[number], found.corner[number] = self._order[rows[first]], corner
                    found.correlation[number] = np.tanh(z[first])
        return found

    def _coarse(
        self, number: int, looks: Sequence[Floats], left_out: Rows | None, count: int
    ) -> tuple[Floats, Rows]:
        """Find the `count` subjects that a region of Q images is most like.

        Return by how much the first is ahead of the mean of the others (Q,), and the best image of
        each (Q, count).
        """
        known, directions = self._known[number].T, self._directions[number]
        places = [directions.of(_region(each, CORNERS[number])) for each in looks]
        best = np.empty((len(places[0]), known.shape[1]), np.float32)
        for start in range(0, known.shape[1], _TOGETHER):
            part = slice(start, start + _TOGETHER)
            score = best[:, part]
            np.matmul(places[0], known[:, part], out=score)
            for place in places[1:]:
                np.maximum(score, place @ known[:, part], out=score)
        of_subject = np.maximum.reduceat(best, self._starts, 1)
        if left_out is not None:
            of_subject[(self._subjects == left_out[..., None]).any(1)] = -2
        some = _greatest(of_subject, count)
        scores = np.take_along_axis(of_subject, some, 1)
        margin = scores.max(1) - (scores.sum(1) - scores.max(1)) / (count - 1)
        rows = np.array(
            [
                [self._starts[s] + best[q, self._starts[s] : self._stops[s]].argmax() for s in each]
                for q, each in enumerate(some)
            ]
        )
        return margin, rows

    def _correlated(
        self, corner: tuple[int, int], rows: Rows, between: Floats
    ) -> NDArray[np.float64]:
        """Correlate a region of an image with those of training images (c,): Fisher's z (c,).

        The image comes with a border and its half pixels (`_between`): every shift is tried.
        """
        theirs = _region(self._training[rows].astype(np.float32), corner)
        theirs = theirs - theirs.mean(1, keepdims=True)
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True) + 1e-3
        (y, x), reach = corner, WINDOW + 2 * _REACH
        near = between[:, y : y + reach, x : x + reach]
        ours = sliding_window_view(near, (WINDOW, WINDOW), (1, 2)).reshape(-1, WINDOW**2)
        total = ours.sum(1)
        spread = np.einsum("np,np->n", ours, ours) - total * total / WINDOW**2
        spread = np.sqrt(np.maximum(spread, 1))
        best = ((ours @ theirs.T) / spread[:, None]).argmax(0)
        # Summed in a fixed order, so that no number of threads changes a bit.
        exact = np.einsum("np,np->n", ours[best].astype(np.float64), theirs) / spread[best]
        z: NDArray[np.float64] = np.arctanh(np.minimum(exact, _HIGHEST))
        return z


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Directions (P, k) in which a region of training images differs from its mean (P,)."""

    mean: Floats
    matrix: Floats

    @classmethod
    def fitted(cls, images: Floats, moved: Sequence[Floats]) -> Self:
        """Fit them to regions (n, P) of images, and the same regions after they were moved.

        By linear discriminants: the directions with the greatest variance of all over that of an
        image and itself moved.
        """
        mean: Floats = images.mean(0)
        centred = images - mean
        total = centred.T @ centred / len(images)
        change = np.concatenate([each - images for each in moved])
        within = change.T @ change / len(change)
        ridge = _RIDGE * np.trace(within) / len(within) + 1e-3
        within += ridge * np.eye(len(within), dtype=np.float32)
        greatest = len(within) - _DIMENSIONS, len(within) - 1
        values, vectors = eigh(total, within, subset_by_index=greatest)
        matrix = vectors / np.sqrt(np.maximum(values, 0) + 1)
        return cls(mean, np.ascontiguousarray(matrix, np.float32))

    def of(self, regions: Floats) -> Floats:
        """Return where regions (n, P) lie, with norm 1: (n, k)."""
        found = (regions - self.mean) @ self.matrix
        unit: Floats = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
        return unit


def _greatest(scores: Floats, count: int) -> Rows:
    """Return the columns of the greatest `count` scores (Q, n) of each row, in any order.

    They are among those of the greatest `count` of the maxima of groups of columns.
    """
    width = -(-scores.shape[1] // _GROUP)
    if width <= count:
        return np.argpartition(-scores, count - 1, 1)[:, :count]
    padded = np.full((len(scores), _GROUP * width), -np.inf, np.float32)
    padded[:, : scores.shape[1]] = scores
    most = padded.reshape(-1, _GROUP, width).max(1)
    groups = np.argpartition(-most, count - 1, 1)[:, :count]
    columns = (groups[..., None] + width * np.arange(_GROUP)).reshape(len(scores), -1)
    kept = np.argpartition(-np.take_along_axis(padded, columns, 1), count - 1, 1)[:, :count]
    return np.take_along_axis(columns, kept, 1)


def _region(images: NDArray[Any], corner: tuple[int, int]) -> Any:
    """Return a region of images (n, S, S): (n, P)."""
    y, x = corner
    return images[:, y : y + WINDOW, x : x + WINDOW].reshape(len(images), -1)


def _moved(images: Floats, down: int, right: int) -> Floats:
    """Read images (n, S, S) some pixels further on; the border continues."""
    rows, columns = (np.clip(np.arange(SIDE) + by, 0, SIDE - 1) for by in (down, right))
    moved: Floats = images[:, rows][:, :, columns]
    return moved


def _between(images: Floats) -> Floats:
    """Return images with a border, and read half a pixel further on: (n, 4, S + 2 r, S + 2 r).

    In between, values are interpolated by a cubic.
    """
    border = _REACH + 2
    wide: Floats = np.pad(images, ((0, 0), (border, border), (border, border)), mode="edge")

    def half(images: Floats, axis: int) -> Floats:
        before, here, after, beyond = (np.roll(images, -by, axis) for by in (-1, 0, 1, 2))
        return np.float32(1 / 16) * (9 * (here + after) - (before + beyond))

    lower = half(wide, 1)
    every: Floats = np.stack([wide, lower, half(wide, 2), half(lower, 2)], 1)
    return every[:, :, 2:-2, 2:-2]


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """Thumbnails (Q, S, S) that are looked for, and subjects (Q, m) that do not count."""

    images: Thumbnails
    left_out: Rows | None


def look_for(
    search: RegionSearch, images: Thumbnails, run: RunContext, left_out: Rows | None = None
) -> Regions:
    """Look for images (Q,) as `RegionSearch.look_for` does, in blocks."""
    parts = [*sliced(len(images), _BLOCK)]
    tasks = (Sought(images[at], None if left_out is None else left_out[at]) for at in parts)
    with closing(run.map(partial(_look_for, search), tasks)) as answers:
        found = [Regions(**answer.arrays) for answer in answers]
    return Regions.joined([Regions.none(0), *found])


def _look_for(search: RegionSearch, sought: Sought) -> Answer:
    """Look for images: a block."""
    found = search.look_for(sought.images, sought.left_out)
    names = [field.name for field in fields(found)]
    return Answer(None, dict(zip(names, found.columns, strict=True)))


def are_few_enough(training: Store) -> bool:
    """Tell whether regions are looked for among the images of a store: where they are few."""
    return training.rows <= MOST and training.manifest.thumbnail > 0


def regions_of(store: Store, subjects: Rows) -> RegionSearch:
    """Return what looks for regions among the images of a store."""
    return RegionSearch(np.concatenate([part for _, part in store.thumbnails()]), subjects)


def boxes(regions: Regions) -> Iterator[tuple[float, float, float, float]]:
    """Give the region of each image: left, top, right, bottom, as shares of its sides."""
    for corner, mirrored in zip(regions.corner.tolist(), regions.mirrored.tolist(), strict=True):
        y, x = CORNERS[corner]
        left = SIDE - WINDOW - x if mirrored else x
        yield left / SIDE, y / SIDE, (left + WINDOW) / SIDE, (y + WINDOW) / SIDE
