"""The strongest pairs looked at again: registered, and their true SSIM computed.

    images of the rows of two stores, pairs (Q, k) of them -> Verification (Q, k)

The encoder proposes pairs by a score that estimates SSIM; here the two images of a pair are read
again from their files, laid on each other by `registration`, and their SSIM is computed. The cost
is one of pairs, not of images. A pair whose images are not there any more, or not the same, is
left as it is: judged by its score alone.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from deepssim_scan.decode import Pixels
from deepssim_scan.embed import Report, silent
from deepssim_scan.embeddings import Store
from deepssim_scan.listing import Listing
from deepssim_scan.registration import RULE, register
from deepssim_scan.sources import pixels_of_rows
from deepssim_scan.workers import Limits

_BATCH = 64  # pairs registered at once
_BLOCK = 512  # synthetic images whose pixels are held: 32 MB


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What registration found of pairs (Q, k); NaN, and flip -1, where none was made.

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
        """Return the verification of pairs of which none was looked at."""
        found = {field.name: np.full(shape, np.nan, np.float32) for field in fields(cls)}
        return cls(**(found | {"flip": np.full(shape, -1, np.int8)}))  # type: ignore[arg-type]

    def reordered(self, order: NDArray[np.int64]) -> Self:
        """Return the pairs of each image in another order (Q, k)."""
        columns = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(np.take_along_axis(column, order, 1) for column in columns))


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the pairs: a store, and the listing of its images as they are now."""

    store: Store
    listing: Listing


@dataclass(frozen=True, slots=True)
class Verifier:
    """Registers pairs of two stores; `device` is where."""

    synthetic: Side
    training: Side
    device: str
    workers: int
    limits: Limits
    report: Report = silent

    def verify(
        self, first: int, training: NDArray[np.int64], chosen: NDArray[np.bool_]
    ) -> Verification:
        """Verify the chosen pairs of synthetic rows from `first` on.

        training (Q, k) rows of the training store, chosen (Q, k) -> Verification (Q, k)
        """
        found = Verification.none((len(training), training.shape[1]))
        wanted, total = np.flatnonzero(chosen.any(1)), int(chosen.sum())
        for start in range(0, len(wanted), _BLOCK):
            self._block(first, wanted[start : start + _BLOCK], training, chosen, found)
            self.report("pairs registered", int(np.isfinite(found.ssim).sum()), total)
        return found

    def _block(
        self,
        first: int,
        queries: NDArray[np.int64],
        training: NDArray[np.int64],
        chosen: NDArray[np.bool_],
        found: Verification,
    ) -> None:
        """Verify the pairs of some synthetic images, whose pixels are held meanwhile.

        Each training image is read once, and meets all the synthetic ones that it is a match of.
        """
        rows = (queries + first).tolist()
        synthetic = {row - first: pixels for row, pixels in self._read(self.synthetic, rows)}
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for query in synthetic:
            for rank in np.flatnonzero(chosen[query]).tolist():
                places[int(training[query, rank])].append((query, rank))
        batch: list[tuple[tuple[int, int], Pixels]] = []
        for row, pixels in self._read(self.training, sorted(places)):
            batch += [(place, pixels) for place in places[row]]
            while len(batch) >= _BATCH:
                self._register(batch[:_BATCH], synthetic, found)
                batch = batch[_BATCH:]
        if batch:
            self._register(batch, synthetic, found)

    def _read(self, side: Side, rows: list[int]) -> Iterator[tuple[int, Pixels]]:
        return pixels_of_rows(
            side.store, rows, side.listing, RULE, workers=self.workers, limits=self.limits
        )

    def _register(
        self,
        batch: list[tuple[tuple[int, int], Pixels]],
        synthetic: dict[int, Pixels],
        found: Verification,
    ) -> None:
        pairs = (
            np.stack([synthetic[query] for (query, _), _ in batch]),
            np.stack([pixels for _, pixels in batch]),
        )
        result = register(*(torch.from_numpy(pixels).to(self.device) for pixels in pairs))
        at = tuple(np.array([place for place, _ in batch]).T)
        found.ssim[at], found.flip[at] = result.ssim.cpu().numpy(), result.flip.cpu().numpy()
        found.degrees[at], found.gamma[at] = (
            result.degrees.cpu().numpy(),
            result.gamma.cpu().numpy(),
        )
        found.right[at], found.down[at] = result.shift.cpu().numpy().T


def strongest_first(
    verdicts: NDArray[np.int8], ssim: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Order the pairs of each image: by verdict, then SSIM, then score, then as they were.

    (Q, k) three times -> (Q, k) places. Pairs without an SSIM come after those with one.
    """
    known = np.where(np.isnan(ssim), -np.inf, ssim)
    return np.lexsort((-scores, -known, -verdicts.astype(np.int64)), axis=1)
