"""Candidate pairs looked at again: registered, and compared.

    pixels of synthetic images, candidates (Q, n) among the rows of a store -> Evidence (Q, n)

The encoder proposes pairs by a cosine that estimates SSIM. Here the two images of a pair are
registered, and compared by several measures. The training images are read again from their files.
The cost is one of pairs, not of images. A pair of which an image is gone, or not the same any more,
has no evidence, and is counted.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepssim_scan.encoder.tta import seen
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.imaging.comparison import Comparison, compare_on
from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.imaging.registration import SIDE
from deepssim_scan.imaging.similarity import NAMES
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pipeline import CHUNK
from deepssim_scan.progress import Collected
from deepssim_scan.store.reread import Reader, Source

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

    def set(self, query: NDArray[np.int64], column: NDArray[np.int64], found: Comparison) -> None:
        """Put what was found of P pairs at their places: query (P,) and column (P,)."""
        for name in ("measures", "foreground", "flip", "degrees", "scale", "gamma"):
            getattr(self, name)[query, column] = getattr(found, name).numpy()
        self.right[query, column], self.down[query, column] = found.shift.numpy().T

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
        done: Callable[[int], None] = lambda count: None,
    ) -> Evidence:
        """Gather the evidence of all candidates (Q, n) of Q synthetic images.

        `images` gives those of a slice of the Q, standardised by `RULE` and numbered from 0; one
        that is missing has no evidence. `done` is told how many images have theirs.
        """
        found, run = Evidence.none(candidates.rows.shape), self.training.run
        parts = [*sliced(len(candidates.rows), CHUNK)]
        tasks = (self._pairs(images(part), candidates.part(part)) for part in parts)
        block = partial(gather_pairs, run.device_of_blocks)
        with closing(run.map(block, tasks)) as answers:
            for part, answer in zip(parts, answers, strict=True):
                found.put(part.start, Evidence(**answer.arrays))
                done(part.stop)
        return found

    def _pairs(self, images: Source, candidates: Matches) -> "Pairs":
        rows, numbers = np.unique(candidates.rows, return_inverse=True)
        training = self.training.wanted(rows.tolist())
        return Pairs(images, training, numbers.reshape(candidates.rows.shape), candidates.views)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images, and for each the numbers (Q, n) of its candidates and the views (Q, n) of them."""

    images: Source
    training: Source
    numbers: NDArray[np.int64]
    views: NDArray[np.int8]


def gather_pairs(device: str, pairs: Pairs) -> Answer:
    """Register and compare pairs: a block. Each image is read once."""
    synthetic, training, warned = (
        dict(pairs.images.read()),
        dict(pairs.training.read()),
        Collected(),
    )
    found, runner = Evidence.none(pairs.views.shape), BatchRunner(device, "registration", warned)
    there = np.isin(np.arange(len(pairs.views)), [*synthetic])[:, None]
    index = np.argwhere(there & np.isin(pairs.numbers, [*training]))
    for part in sliced(len(index), _BATCH):
        query, column = index[part].T
        numbers, views = (each[query, column] for each in (pairs.numbers, pairs.views))
        sides = (
            _in_views(np.stack([synthetic[number] for number in query.tolist()]), views),
            torch.from_numpy(np.stack([training[number] for number in numbers.tolist()])),
        )
        found.set(query, column, compare_on(runner, *sides))
    return Answer(None, {f.name: getattr(found, f.name) for f in fields(found)}, warned.warnings)


def _in_views(images: NDArray[np.float32], views: NDArray[np.int8]) -> Tensor:
    """Return images (P, H, W), each as it is in its test-time view (P,)."""
    viewed, which = torch.from_numpy(images), torch.from_numpy(views)
    for view in which.unique().tolist():
        viewed[which == view] = seen(viewed[which == view], view)
    return viewed
