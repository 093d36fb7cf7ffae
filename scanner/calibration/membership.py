"""Whether a synthetic set tells who was in its training set: the search the other way round.

training and hold-out images, each with its nearest synthetic image -> Membership

A generator can give away its members without copying any image. Here an attacker has images of
people, and takes those for members that have a near synthetic image (the distance to the closest
record; why it is no proof of privacy: arXiv:2505.01524). Non-members are those of a hold-out. In
the control two halves of the hold-out play both parts, so that it shows nothing but chance.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from deepssim_scan.store.array import Vectors

FALSE_POSITIVES = 0.01, 0.001
MOST = 2000
"""Images of either side, at most."""

FEWEST = 4
"""Subjects of a hold-out, at least, so that each half of it has two."""

_DRAWS = 1000
_CHUNK = 1 << 14  # synthetic images that are compared at once

Scores = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Images (N,) of one side: the score of each with its nearest synthetic image, and whose."""

    scores: Scores
    subjects: Numbers

    def half(self, subjects: Numbers) -> "Side":
        """Return the images of some subjects."""
        kept = np.isin(self.subjects, subjects)
        return Side(self.scores[kept], self.subjects[kept])


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Embeddings (N, D) of the images of a hold-out, and the subject of each (N,)."""

    rows: Vectors
    subjects: Numbers

    def as_json(self) -> dict[str, Any]:
        """Return it in values of JSON; in hexadecimal digits, no name stands alone by chance."""
        return {"subjects": self.subjects.tolist(), "rows": self.rows.astype("<f4").tobytes().hex()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `as_json` returned."""
        subjects = np.array(value["subjects"], np.int64)
        rows = np.frombuffer(bytes.fromhex(value["rows"]), "<f4")
        return cls(rows.reshape(len(subjects), -1).astype(np.float32), subjects)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and its interval of 95 % over draws of subjects."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return it in values of JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Membership:
    """How well members are told from non-members by their nearest synthetic image.

    auc is the chance that a member has the higher score, 0.5 where nothing is told. true_positives
    are the shares of the members that are found, by the share of non-members that are taken for
    members. `control` is the auc of two halves of the non-members.
    """

    members: int
    non_members: int
    auc: Estimate
    true_positives: dict[float, Estimate]
    control: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return what summary.json says of it."""
        return {
            "members": self.members,
            "non_members": self.non_members,
            "auc": self.auc.as_json(),
            "true_positives": {f"{r:g}": e.as_json() for r, e in self.true_positives.items()},
            "control": self.control.as_json(),
        }


def nearest(rows: Vectors, synthetic: Iterable[Vectors]) -> Scores:
    """Return the cosine of unit-norm rows (N, D) with the nearest of synthetic ones: (N,)."""
    best = np.full(len(rows), -1.0, np.float32)
    for shard in synthetic:
        for first in range(0, len(shard), _CHUNK):
            part = shard[first : first + _CHUNK]
            np.maximum(best, (rows @ part.T).max(1), out=best)
    return best.astype(np.float64)


def membership(members: Side, others: Side, seed: int = 0) -> Membership:
    """Tell how well members, of two subjects at least, are told from others, of `FEWEST`."""
    rng = np.random.default_rng(seed)
    auc, *found = _estimates(members, others, rng)
    subjects = rng.permutation(np.unique(others.subjects))
    first, second = (others.half(some) for some in np.array_split(subjects, 2))
    control, *_ = _estimates(first, second, rng)
    rates = dict(zip(FALSE_POSITIVES, found, strict=True))
    return Membership(len(members.scores), len(others.scores), auc, rates, control)


def told_apart(ours: Side, theirs: Side, seed: int = 0) -> Estimate | None:
    """Return the chance that one of ours has the higher score; None of too few subjects."""
    if min(len(np.unique(side.subjects)) for side in (ours, theirs)) < FEWEST:
        return None
    return _estimates(ours, theirs, np.random.default_rng(seed))[0]


def _estimates(members: Side, others: Side, rng: np.random.Generator) -> list[Estimate]:
    """Return the AUC, and the true positives at each rate, with intervals."""
    _, level = np.unique(np.concatenate([members.scores, others.scores]), return_inverse=True)
    count = len(members.scores)
    sides = (members, level[:count]), (others, level[count:])
    ours, theirs = (_weights(side, of, int(level.max()) + 1, rng) for side, of in sides)
    figures = [_auc(ours, theirs), *(_found(ours, theirs, rate) for rate in FALSE_POSITIVES)]
    fewest = min(len(np.unique(side.subjects)) for side in (members, others))
    return [_estimate(all_, fewest) for all_ in figures]


def _estimate(figures: Scores, subjects: int) -> Estimate:
    """Return the first figure, and the interval of the others, which are of draws.

    Draws of few subjects vary too little: the interval is widened by what Student's t distribution
    is wider than the normal one, and as a variance is that is divided by n - 1.
    """
    value, freedom = float(figures[0]), subjects - 1
    wider = (subjects / freedom) ** 0.5 * stdtrit(freedom, 0.975) / ndtri(0.975)
    ends = value + wider * (np.quantile(figures[1:], [0.025, 0.975]) - value)
    return Estimate(value, *map(float, ends.clip(0, 1)))


def _weights(side: Side, level: Numbers, levels: int, rng: np.random.Generator) -> Scores:
    """Return the share of the images at each score (draws + 1, levels): all, then draws of them.

    A draw takes as many subjects as there are, with replacement, and all images of each.
    """
    names, subject = np.unique(side.subjects, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _DRAWS)
    times = np.concatenate([np.ones((1, len(names))), drawn])
    found = np.zeros((len(times), levels))
    for image, at in enumerate(level.tolist()):
        found[:, at] += times[:, subject[image]]
    shares: Scores = found / found.sum(1, keepdims=True)
    return shares


def _auc(ours: Scores, theirs: Scores) -> Scores:
    """Return the chance (draws,) that one of ours has the higher score; ties are halves."""
    below = theirs.cumsum(1) - theirs / 2
    chance: Scores = (ours * below).sum(1)
    return chance


def _found(ours: Scores, theirs: Scores, rate: float) -> Scores:
    """Return the share (draws,) of ours above the score that a share `rate` of theirs passes."""
    passing = 1 - theirs.cumsum(1)
    bound = (passing <= rate + 1e-12).argmax(1)
    above: Scores = 1 - np.take_along_axis(ours.cumsum(1), bound[:, None], 1)[:, 0]
    return above.clip(0, 1)
