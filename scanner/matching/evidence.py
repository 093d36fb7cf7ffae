"""Candidate pairs looked at again: all coarsely, the best registered, and compared.

    pixels of synthetic images, candidates (Q, n) among the rows of a store -> Evidence (Q, n)

The encoder proposes pairs by a cosine that estimates SSIM. Here the two images of a pair are laid
on each other coarsely. The three best candidates of an image are registered, and compared by
several measures. The training images are read again from their files. A pair of which an image is
gone, or not the same any more, has no evidence, and is counted.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.imaging.names import NAMES, SIDE
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pipeline import CHUNK
from deepssim_scan.store.reread import Reader, Source, Wanted

if TYPE_CHECKING:
    from deepssim_scan.imaging.registration.comparison import Comparison

RULE = Standardisation(size=SIDE)
"""How images are standardised to be registered, whatever the encoder's own rule is."""

_SSIM = NAMES.index("ssim_1")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What was found of pairs (Q, n); NaN, and flip -1, where there is nothing.

    correlation is that of the coarse look. Of the pairs that were registered after it, measures
    (Q, n, 6) of `names.NAMES`; foreground, the share of the pixels that were compared; flip,
    degrees, scale, right, down (pixels of 128) and gamma as in `registration.Registered`: what
    makes the synthetic image, in the test-time view in which the candidate was found, of the
    training image.
    """

    correlation: NDArray[np.float32]
    measures: NDArray[np.float32]
    foreground: NDArray[np.float32]
    flip: NDArray[np.int8]
    degrees: NDArray[np.float32]
    scale: NDArray[np.float32]
    right: NDArray[np.float32]
    down: NDArray[np.float32]
    gamma: NDArray[np.float32]

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Self:
        """Return the evidence of pairs of which none was looked at."""
        found: dict[str, Any] = {f.name: np.full(shape, np.nan, np.float32) for f in fields(cls)}
        found["measures"] = np.full((*shape, len(NAMES)), np.nan, np.float32)
        return cls(**(found | {"flip": np.full(shape, -1, np.int8)}))

    @property
    def ssim(self) -> NDArray[np.float32]:
        """The SSIM (Q, n) of the registered pairs, after a blur of one pixel of 128."""
        ssim: NDArray[np.float32] = self.measures[..., _SSIM]
        return ssim

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which pairs (Q, n) were not looked at."""
        return np.isnan(self.correlation)

    @property
    def registered(self) -> NDArray[np.bool_]:
        """Which pairs (Q, n) were registered and compared."""
        return ~np.isnan(self.foreground)

    def put(self, images: slice | NDArray[np.int64], found: Self) -> None:
        """Put the evidence of the first m <= n candidates of some images in its place."""
        for field in fields(self):
            part = getattr(found, field.name)
            getattr(self, field.name)[images, : part.shape[1]] = part

    def forget(self, images: NDArray[np.bool_]) -> None:
        """Drop the evidence of some of the images (Q,)."""
        nothing = type(self).none(self.flip.shape)
        for field in fields(self):
            getattr(self, field.name)[images] = getattr(nothing, field.name)[images]

    def set(self, query: NDArray[np.int64], column: NDArray[np.int64], found: "Comparison") -> None:
        """Put what was found of P pairs at their places: query (P,) and column (P,)."""
        names = "correlation", "measures", "foreground", "flip", "degrees", "scale", "gamma"
        for name in names:
            getattr(self, name)[query, column] = getattr(found, name).numpy()
        self.right[query, column], self.down[query, column] = found.shift.numpy().T

    def part(self, images: slice | NDArray[np.int64], count: int) -> Self:
        """Return the first `count` pairs of some images."""
        return type(self)(*(getattr(self, field.name)[images, :count] for field in fields(self)))

    def reordered(self, order: NDArray[np.int64]) -> Self:
        """Return the pairs of each image in another order (Q, k), k <= n."""
        rows = np.arange(len(order))[:, None]
        return type(self)(*(getattr(self, field.name)[rows, order] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Verifier:
    """Gathers evidence of pairs of a synthetic and a training image."""

    training: Reader

    def gather(
        self,
        images: Callable[[slice], Source],
        candidates: Matches,
        subjects: NDArray[np.int64],
        done: Callable[[int], None] = lambda count: None,
    ) -> Evidence:
        """Gather the evidence of all candidates (Q, n) of Q synthetic images.

        `images` gives those of a slice of the Q, standardised by `RULE` and numbered from 0; one
        that is missing has no evidence. `subjects` (Q, n) numbers those of the candidates. `done`
        is told how many images have their evidence.
        """
        found, run = Evidence.none(candidates.rows.shape), self.training.run
        parts = [*sliced(len(candidates.rows), CHUNK)]
        tasks = (self._pairs(images(part), candidates.part(part), subjects[part]) for part in parts)
        block = partial(gather_pairs, run.device_of_blocks)
        with closing(run.map(block, tasks)) as answers:
            for part, answer in zip(parts, answers, strict=True):
                found.put(part, Evidence(**answer.arrays))
                done(part.stop)
        return found

    def _pairs(
        self, images: Source, candidates: Matches, subjects: NDArray[np.int64]
    ) -> "CandidatePairs":
        rows, numbers = np.unique(candidates.rows, return_inverse=True)
        training, shape = self.training.wanted(rows.tolist()), candidates.rows.shape
        return CandidatePairs(images, training, numbers.reshape(shape), candidates.views, subjects)


@dataclass(frozen=True, slots=True)
class CandidatePairs:
    """Images, and of their candidates (Q, n) the numbers, the views and the subjects."""

    images: Source
    training: Wanted
    numbers: NDArray[np.int64]
    views: NDArray[np.int8]
    subjects: NDArray[np.int64]


def gather_pairs(device: str, pairs: CandidatePairs) -> Answer:
    """Look at pairs, register and compare: a block."""
    from deepssim_scan.matching.pairs import looked_at

    return looked_at(device, pairs)
