"""Images in memory, batches drawn of them, and what is made of a batch to learn SSIM from.

    ImageSet -> draw -> images (n, H, W) -> pairs -> sources (4n, H, W), their SSIM (4n, 4n)

What is drawn depends on the state of a `torch.Generator` alone, and comes on its device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, Self

import torch
from torch import Generator, Tensor

from deepssim_scan.imaging.changes.augment import other_subject, perturb
from deepssim_scan.imaging.ssim import image_range, ssim_matrix

_NAME_DISTANCE = 8  # positions in `by_name` within which a neighbour is drawn
_SSIM_STRIDE = 3  # windows skipped in a target: within 0.03 of the exact one, a ninth of the cost
_SSIM_BINS = 10  # ranges of SSIM that have the same weight, however few pairs fall into one


class ImageSource(Protocol):
    """Gives images (n, H, W) float32 by the state of a generator alone, on its device."""

    def __len__(self) -> int:
        """Return how many images are kept; 0 where each is made anew."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw `count` images, half of them neighbours of the others."""

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw at most `count` images."""

    def digest(self) -> str:
        """Identify what is drawn."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Standardised images to draw from: pixels (N, H, W) float16, in the order of their paths.

    `by_name` (N,) holds their indices sorted by file name first: there, files of one name in
    several folders are neighbours.
    """

    pixels: Tensor
    by_name: Tensor

    @classmethod
    def of(cls, pixels: Sequence[Tensor], paths: Sequence[str]) -> Self:
        """Stack images (H, W) of one size; `paths` are relative to their folder, with `/`."""
        names = [(PurePosixPath(path).name, path) for path in paths]
        by_name = sorted(range(len(names)), key=names.__getitem__)
        return cls(torch.stack(list(pixels)), torch.tensor(by_name))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw `count` images, half of them neighbours of the others: (count, H, W) float32."""
        quarter, last = count // 4, len(self) - 1
        first, third = distinct(last, quarter, generator), distinct(last, quarter, generator)
        distance = torch.randint(
            1, _NAME_DISTANCE + 1, (quarter,), generator=generator, device=generator.device
        ).cpu()
        named = self.by_name[torch.cat([third, (third + distance).clamp_max(last)])]
        return self.at(torch.cat([first, first + 1, named]), generator.device)

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw at most `count` different images: (n, H, W) float32."""
        return self.at(distinct(len(self), count, generator), generator.device)

    def digest(self) -> str:
        """Identify the images and their order."""
        digest = hashlib.sha256(self.pixels.numpy().data)
        digest.update(self.by_name.numpy().data)
        return digest.hexdigest()

    def at(self, indices: Tensor, device: torch.device) -> Tensor:
        """Return images by their indices (n,), which are on the CPU: (n, H, W) float32."""
        return self.pixels[indices].to(device).float()


def distinct(stop: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` different indices below `stop`, or all of them: (n,) on the CPU."""
    return torch.randperm(stop, generator=generator, device=generator.device)[:count].cpu()


def pairs(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Make of n images a batch that holds every kind of pair, and the SSIM of all its pairs.

        images (n, H, W) -> sources (4n, H, W), SSIM of all with all (4n, 4n)

    Sources are the images, a perturbed version of each, another subject in place of each, and the
    images again.
    """
    clean = torch.cat([images, perturb(images, generator), other_subject(images, generator)])
    matrix = ssim_matrix(clean, clean, image_range(clean), stride=_SSIM_STRIDE)
    matrix = (matrix + matrix.T) / 2
    source = torch.arange(4 * len(images), device=images.device) % len(clean)
    return clean[source], matrix[source][:, source]


def range_weights(target: Tensor) -> Tensor:
    """Weight pairs by their SSIM, so that each tenth of its range that occurs has the same sum."""
    bins = (target.clamp(0, 1) * _SSIM_BINS).long().clamp_max(_SSIM_BINS - 1)
    return 1 / torch.bincount(bins.flatten())[bins].float()
