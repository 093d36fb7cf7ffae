"""Candidates registered and compared: all of them coarsely, and the best of them finely.

synthetic and training images, standardised, pairs of the two -> Comparison: a row a pair
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepssim_scan.imaging.names import NAMES
from deepssim_scan.imaging.registration import register
from deepssim_scan.imaging.registration.coarse import Coarse, chunks, search
from deepssim_scan.imaging.registration.deformation import undo_deformation
from deepssim_scan.imaging.registration.sides import Sides, check_images, sides
from deepssim_scan.imaging.registration.similarity import similarity

COMPARED = 3
"""Candidates of an image that are registered finely, and compared."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs (P,): the number of the synthetic and of the training image of each.

    image (P,) numbers the images whose candidates they are, which several synthetic images can be
    views of; subject (P,) is whom the training image shows.
    """

    synthetic: NDArray[np.int64]
    training: NDArray[np.int64]
    image: NDArray[np.int64]
    subject: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What makes each synthetic image of its training image, and how similar they are without it.

    correlation (P,) is that of the coarse look. All else is NaN, and flip -1, for a pair that was
    not worth more: flip, degrees, scale, shift and gamma as in `registration.Registered`; measures
    (P, 6) of `names.NAMES`; foreground (P,), the share of the pixels that were compared.
    """

    flip: Tensor
    degrees: Tensor
    scale: Tensor
    shift: Tensor
    gamma: Tensor
    measures: Tensor
    foreground: Tensor
    correlation: Tensor

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The tensors, in their order."""
        return tuple(getattr(self, name) for name in self.__slots__)

    @classmethod
    def none(cls, correlation: Tensor) -> Self:
        """Return what is known of pairs (P,) after the coarse look."""
        nothing = [torch.full_like(correlation, torch.nan) for _ in range(4)]
        shift, measures = (
            correlation.new_full((len(correlation), width), torch.nan) for width in (2, len(NAMES))
        )
        flip = torch.full_like(correlation, -1, dtype=torch.long)
        degrees, scale, gamma, foreground = nothing
        return cls(flip, degrees, scale, shift, gamma, measures, foreground, correlation)

    def put(self, index: Tensor, found: Sequence[Tensor]) -> None:
        """Put what was found of some pairs, but for their correlation, at its place."""
        for column, values in zip(self.columns[:-1], found, strict=True):
            column[index] = values

    def cpu(self) -> Self:
        """Return the same on the CPU."""
        return type(self)(*(column.cpu() for column in self.columns))


@torch.inference_mode()
def compare(synthetic: Tensor, training: Tensor) -> Comparison:
    """Register and compare pairs of standardised images (P, H, W), each by itself.

    Raises ValueError when shapes differ, or sides are no multiple of 4.
    """
    if synthetic.shape != training.shape:
        shapes = tuple(synthetic.shape), tuple(training.shape)
        raise ValueError(f"pairs have one shape (P, H, W), found {shapes}")
    every = np.arange(len(synthetic))
    check_images(training)
    return compare_candidates(synthetic, sides(training), Pairs(every, every, every, every))


@torch.inference_mode()
def compare_candidates(synthetic: Tensor, training: Sides, pairs: Pairs) -> Comparison:
    """Look at all pairs coarsely, and at the best more closely.

    Those are of each image the three with the highest correlation, one of them of another subject
    than the first where there is one. synthetic (N, H, W) are standardised images. Raises
    ValueError when their sides are no multiple of 4.
    """
    check_images(synthetic)
    framed = training.framed.cpu().numpy()[pairs.training]
    # Beside an image that fills its frame, other pixels of a synthetic one count.
    kinds, which = np.unique(2 * pairs.synthetic + framed, return_inverse=True)
    on_device = torch.from_numpy(kinds).to(synthetic.device)
    ours = sides(synthetic[on_device // 2], on_device % 2 == 1)
    numbers = torch.from_numpy(np.stack([which, pairs.training], 1)).to(synthetic.device)
    coarse = search(ours, training, numbers, pairs.image)
    chosen = _worth_comparing(coarse.correlation.cpu().numpy(), pairs)
    found = Comparison.none(coarse.correlation)
    for part in chunks(torch.from_numpy(chosen).to(synthetic.device)):
        found.put(part, _compare(ours, training, numbers, coarse, part))
    return found


def _worth_comparing(correlation: NDArray[np.float32], pairs: Pairs) -> NDArray[np.int64]:
    """Return the numbers of the pairs that are compared."""
    order = np.lexsort((-correlation, pairs.image))
    kept = []
    for numbers in np.split(order, np.flatnonzero(np.diff(pairs.image[order])) + 1):
        first, rest = numbers[: COMPARED - 1], numbers[COMPARED - 1 :]
        subjects = pairs.subject[numbers]
        others = rest[subjects[COMPARED - 1 :] != subjects[0]] if len(rest) else rest
        alone = (subjects[: COMPARED - 1] == subjects[0]).all()
        kept += [*first, *(others if alone and len(others) else rest)[:1]]
    return np.sort(np.array(kept, np.int64))


def _compare(
    synthetic: Sides, training: Sides, pairs: Tensor, coarse: Coarse, part: Tensor
) -> tuple[Tensor, ...]:
    """Register and compare some pairs."""
    ours, theirs = (side.at(pairs[part, n]) for n, side in enumerate((synthetic, training)))
    registered = register(ours, theirs, coarse.flip[part], coarse.pose.at(part))
    found = similarity(undo_deformation(registered))
    transform = registered.flip, registered.degrees, registered.scale
    more = registered.shift, registered.gamma, found.measures, found.foreground
    return *transform, *more
