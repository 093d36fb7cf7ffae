"""Candidate pairs looked at again: registered, and compared.

    pixels of synthetic images, candidates (Q, n) among the rows of a store -> Evidence (Q, n)

The encoder proposes pairs by a cosine that estimates SSIM. Here the two images of a pair are
registered, and compared by several measures. The training images are read again from their files.
The cost is one of pairs, not of images. A pair of which an image is gone, or not the same any more,
has no evidence, and is counted.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from deepssim_scan.encoder.tta import seen
from deepssim_scan.imaging.comparison import compare_on
from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.imaging.registration import SIDE
from deepssim_scan.imaging.similarity import NAMES
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.store.reread import Reader

RULE = Standardisation(size=SIDE)
"""How images are standardised to be registered, whatever the encoder's own rule is."""

_BATCH = 256  # pairs registered at once
_SSIM = NAMES.index("ssim_1")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What registration found of pairs (Q, n); NaN, and flip -1, where there is none.

    measures (Q, n, 6) of `similarity.NAMES`, after registration; foreground, the share of the
    pixels that were compared; flip, degrees, scale, right, down (pixels of 128) and gamma as in
    `registration.Registered`: what makes the synthetic image, in the test-time view in which the
    candidate was found, of the training image.
    """

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
        """Which pairs (Q, n) have no evidence."""
        return np.isnan(self.foreground)

    def put(self, first: int, found: Self) -> None:
        """Put the evidence of m <= n candidates of some images, from `first` on, in its place."""
        for field in fields(self):
            part = getattr(found, field.name)
            getattr(self, field.name)[first : first + len(part), : part.shape[1]] = part

    def reordered(self, order: NDArray[np.int64]) -> Self:
        """Return the pairs of each image in another order (Q, k), k <= n."""
        rows = np.arange(len(order))[:, None]
        return type(self)(*(getattr(self, field.name)[rows, order] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Verifier:
    """Gathers evidence of pairs of a synthetic and a training image."""

    training: Reader
    runner: BatchRunner

    def gather(self, synthetic: Mapping[int, Pixels], candidates: Matches) -> Evidence:
        """Gather the evidence of all candidates (Q, n) of Q synthetic images.

        `synthetic` holds the pixels of each image by its number, 0 to Q - 1, standardised by
        `RULE`; one that is not there has no evidence. Each training image is read once, and meets
        all synthetic images that it is a candidate of.
        """
        found = Evidence.none(candidates.rows.shape)
        pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for query in synthetic:
            for column, row in enumerate(candidates.rows[query].tolist()):
                pairs[row].append((query, column))
        batch: list[tuple[tuple[int, int], Pixels]] = []
        for row, pixels in self.training.pixels(sorted(pairs)):
            batch += [(pair, pixels) for pair in pairs[row]]
            while len(batch) >= _BATCH:
                self._compare(batch[:_BATCH], synthetic, candidates, found)
                batch = batch[_BATCH:]
        if batch:
            self._compare(batch, synthetic, candidates, found)
        return found

    def _compare(
        self,
        batch: list[tuple[tuple[int, int], Pixels]],
        synthetic: Mapping[int, Pixels],
        candidates: Matches,
        found: Evidence,
    ) -> None:
        at = tuple(np.array([pair for pair, _ in batch]).T)
        images = torch.from_numpy(np.stack([synthetic[query] for (query, _), _ in batch]))
        views = torch.from_numpy(candidates.views[at])
        for view in views.unique().tolist():
            images[views == view] = seen(images[views == view], view)
        training = torch.from_numpy(np.stack([pixels for _, pixels in batch]))
        result = compare_on(self.runner, images, training)
        for name in ("measures", "foreground", "flip", "degrees", "scale", "gamma"):
            getattr(found, name)[at] = getattr(result, name).numpy()
        found.right[at], found.down[at] = result.shift.numpy().T
