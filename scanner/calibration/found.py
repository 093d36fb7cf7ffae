"""What is looked for to calibrate, and what is found of it.

images, with the group of each -> Found; training images, changed -> Planted
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.candidates import NEAR, Rows
from deepssim_scan.matching.statistic import FEATURES, Array

_SAME = {"ncc_1": 0.995, "lcn_1": 0.98}  # above which two images are one


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found of Q images: candidates (Q, n), their features (Q, n, 16), groups (Q,).

    `decidable` (Q, n) tells of which candidates enough was compared for a verdict.
    """

    rows: Rows
    features: Array
    decidable: NDArray[np.bool_]
    group: Rows

    def only(self, kept: NDArray[np.bool_] | Rows) -> "Found":
        """Return what was found of some of the images: a mask (Q,), or their numbers."""
        return Found(self.rows[kept], self.features[kept], self.decidable[kept], self.group[kept])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return what was found of the images of all parts, as many candidates as all have.

        Parts without images do not count.
        """
        parts = [part for part in parts if len(part.group)] or parts[:1]
        fewest = min(part.rows.shape[1] for part in parts)
        rows, values, decidable = (
            np.concatenate([getattr(part, name)[:, :fewest] for part in parts])
            for name in ("rows", "features", "decidable")
        )
        return cls(rows, values, decidable, np.concatenate([part.group for part in parts]))

    @property
    def same(self) -> NDArray[np.bool_]:
        """Which candidates (Q, n) are the same image."""
        measures = (self.features[..., FEATURES.index(name)] for name in _SAME)
        above = zip(measures, _SAME.values(), strict=True)
        same: NDArray[np.bool_] = np.logical_and(*(x > np.arctanh(least) for x, least in above))
        return same

    @property
    def near(self) -> NDArray[np.bool_]:
        """Which candidates (Q, n) are nearly the same image, by the cosine similarity."""
        return np.asarray(self.features[..., FEATURES.index("score")] >= np.arctanh(NEAR))

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which images (Q,) have every candidate looked at."""
        looked_at = np.isfinite(self.features[..., FEATURES.index("correlation")])
        return np.asarray(looked_at.all(1))


@dataclass(frozen=True, slots=True)
class Planted:
    """Changed training images (Q,): pixels, the index in KINDS of each, and the source's row."""

    images: Sequence[Pixels]
    kinds: NDArray[np.int64]
    sources: Rows
