"""Pairs registered and compared, a few at a time.

synthetic, training (P, H, W) standardised -> Comparison: a transform and measures a pair
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deepssim_scan.imaging.deformation import undo_deformation
from deepssim_scan.imaging.devices import BatchRunner, batches
from deepssim_scan.imaging.registration import check_pairs, register
from deepssim_scan.imaging.similarity import similarity

_CHUNK, _CUDA_CHUNK = 32, 256  # pairs worked on at once; a GPU is faster the more there are


@dataclass(frozen=True, slots=True)
class Comparison:
    """What makes each synthetic image of its training image, and how similar they are without it.

    flip, degrees, scale, shift and gamma as in `registration.Registered`; measures (P, 6) of
    `similarity.NAMES`; foreground (P,), the share of the pixels that were compared.
    """

    flip: Tensor
    degrees: Tensor
    scale: Tensor
    shift: Tensor
    gamma: Tensor
    measures: Tensor
    foreground: Tensor

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The tensors, in their order."""
        return tuple(getattr(self, name) for name in self.__slots__)

    def first(self, count: int) -> Self:
        """Return the first pairs alone."""
        return type(self)(*(column[:count] for column in self.columns))

    def cpu(self) -> Self:
        """Return the same on the CPU."""
        return type(self)(*(column.cpu() for column in self.columns))


@torch.inference_mode()
def compare(synthetic: Tensor, training: Tensor) -> Comparison:
    """Register and compare pairs of standardised images (P, H, W), on their device.

    Raises ValueError as `register` does.
    """
    check_pairs(synthetic, training)
    size = _CHUNK if synthetic.device.type == "cpu" else _CUDA_CHUNK
    count = len(synthetic)
    pairs = zip(batches(synthetic, size), batches(training, size), strict=True)
    return _joined([_compare(*pair) for pair in pairs]).first(count)


def compare_on(runner: BatchRunner, synthetic: Tensor, training: Tensor) -> Comparison:
    """Compare pairs on a runner's device, as far as it has room; the result is on the CPU."""

    def work(device: str, *pairs: Tensor) -> Comparison:
        return compare(*(images.to(device) for images in pairs)).cpu()

    return _joined(runner.run(work, synthetic, training))


def _compare(synthetic: Tensor, training: Tensor) -> Comparison:
    pairs = register(synthetic, training)
    found = similarity(undo_deformation(pairs))
    transform = pairs.flip, pairs.degrees, pairs.scale, pairs.shift, pairs.gamma
    return Comparison(*transform, found.measures, found.foreground)


def _joined(parts: Sequence[Comparison]) -> Comparison:
    columns = zip(*(part.columns for part in parts), strict=True)
    return Comparison(*(torch.cat(column) for column in columns))
