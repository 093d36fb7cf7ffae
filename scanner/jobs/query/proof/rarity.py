"""How far the images of copied subjects are from those of all others.

copied training images -> rarity, from 0 to 1 -> subjects.parquet

A subject whose images are like nobody else's is easier to recognise, and generators memorize such
images more often.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.reporting.subjects import Reproduced

_SEARCHED = 1000  # nearest rows, at most
_SAMPLE = 1000  # training images whose nearest ones a copied one is compared with


def with_rarity(subjects: Sequence[Reproduced], gallery: Gallery) -> list[Reproduced]:
    """Return the subjects with the rarity of the training image of their strongest match.

    Rarity is the share of training images that have another subject's image nearer to them.
    """
    if not subjects:
        return []
    sample = gallery.groups.some(_SAMPLE, np.random.default_rng(0))
    rows = np.array([each.training_row for each in subjects], np.int64)
    near = nearest_other(gallery, np.concatenate([rows, sample]))
    others = known(near[len(rows) :])
    return [
        each if np.isnan(score) else replace(each, rarity=float((others > score).mean()))
        for each, score in zip(subjects, near[: len(rows)].tolist(), strict=True)
    ]


def nearest_other(gallery: Gallery, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the score of training rows (N,) with the nearest of another subject.

    NaN where there is none, or where the nearest 1,000 all show the same subject. Where no subjects
    are known, the neighbouring files count as the same subject.
    """
    beside = [gallery.groups.beside(row) for row in rows.tolist()]
    vectors = np.concatenate([gallery.search.vectors(row, row + 1) for row in rows.tolist()])
    found = gallery.search.search(vectors, min(_SEARCHED, max(map(len, beside)) + 1))
    own = np.array([np.isin(near, left) for near, left in zip(found.rows, beside, strict=True)])
    best: NDArray[np.float32] = np.fmax.reduce(np.where(own, np.float32(np.nan), found.scores), 1)
    return best


def known(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the scores that are no NaN."""
    return scores[~np.isnan(scores)].astype(np.float64)
