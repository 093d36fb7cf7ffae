"""Candidate pairs looked at again: registered, and their SSIM computed.

    images of the rows of two stores, pairs (Q, n) of them -> Evidence (Q, n)

The encoder proposes pairs by a cosine that estimates SSIM. Here the two images of a pair are read
again from their files, registered, and compared. The cost is one of pairs, not of images. A pair
of which an image is gone, or not the same any more, has no evidence, and is counted.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.imaging.registration import SIDE, register_on
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.store.reread import Reader

RULE = Standardisation(size=SIDE)
"""How images are standardised to be registered, whatever the encoder's own rule is."""

_BATCH = 256  # pairs registered at once
_BLOCK = 512  # synthetic images whose pixels are held: 32 MB


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What registration found of pairs (Q, n); NaN, and flip -1, where there is none.

    ssim after registration; flip, degrees, right, down (pixels of 128) and gamma as in
    `registration.Registration`: what makes the synthetic image of the training image.
    """

    ssim: NDArray[np.float32]
    flip: NDArray[np.int8]
    degrees: NDArray[np.float32]
    right: NDArray[np.float32]
    down: NDArray[np.float32]
    gamma: NDArray[np.float32]

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Self:
        """Return the evidence of pairs of which none was looked at."""
        found = {field.name: np.full(shape, np.nan, np.float32) for field in fields(cls)}
        return cls(**(found | {"flip": np.full(shape, -1, np.int8)}))  # type: ignore[arg-type]

    def take(self, found: Self) -> None:
        """Put the evidence of the first pairs of each image (Q, m), m <= n, in its place."""
        for field in fields(self):
            part = getattr(found, field.name)
            getattr(self, field.name)[:, : part.shape[1]] = part

    def reordered(self, order: NDArray[np.int64]) -> Self:
        """Return the pairs of each image in another order (Q, k), k <= n."""
        columns = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(np.take_along_axis(column, order, 1) for column in columns))


@dataclass(frozen=True, slots=True)
class Verifier:
    """Gathers evidence of pairs of a synthetic and a training image."""

    synthetic: Reader
    training: Reader
    runner: BatchRunner

    def gather(
        self, first: int, training: NDArray[np.int64], done: Callable[[int], None]
    ) -> Evidence:
        """Gather the evidence of the pairs of synthetic rows from `first` on.

        training (Q, n) rows of the training store -> Evidence (Q, n)

        `done` is told the number of pairs after each block of them.
        """
        found = Evidence.none((len(training), training.shape[1]))
        for start in range(0, len(training), _BLOCK):
            self._block(first, slice(start, start + _BLOCK), training, found)
            done(training[: start + _BLOCK].size)
        return found

    def _block(
        self, first: int, block: slice, training: NDArray[np.int64], found: Evidence
    ) -> None:
        """Gather the evidence of some synthetic images, whose pixels are held meanwhile.

        Each training image is read once, and meets all synthetic ones that it is a candidate of.
        """
        rows = range(len(training))[block]
        synthetic = {
            row - first: pixels for row, pixels in self.synthetic.pixels(first + q for q in rows)
        }
        pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for query in synthetic:
            for column, row in enumerate(training[query].tolist()):
                pairs[row].append((query, column))
        batch: list[tuple[tuple[int, int], Pixels]] = []
        for row, pixels in self.training.pixels(sorted(pairs)):
            batch += [(pair, pixels) for pair in pairs[row]]
            while len(batch) >= _BATCH:
                self._register(batch[:_BATCH], synthetic, found)
                batch = batch[_BATCH:]
        if batch:
            self._register(batch, synthetic, found)

    def _register(
        self,
        batch: list[tuple[tuple[int, int], Pixels]],
        synthetic: dict[int, Pixels],
        found: Evidence,
    ) -> None:
        pairs = (
            np.stack([synthetic[query] for (query, _), _ in batch]),
            np.stack([pixels for _, pixels in batch]),
        )
        result = register_on(self.runner, *map(torch.from_numpy, pairs))
        at = tuple(np.array([pair for pair, _ in batch]).T)
        for name in ("ssim", "flip", "degrees", "gamma"):
            getattr(found, name)[at] = getattr(result, name).numpy()
        found.right[at], found.down[at] = result.shift.numpy().T
