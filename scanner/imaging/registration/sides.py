"""What registration goes by of an image, made once for all pairs that it is in.

standardised images (N, H, W) -> Sides
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.content import apart_from, dark_and_flat, dark_margin, padding_of
from deepssim_scan.imaging.devices import batches
from deepssim_scan.imaging.warp import normalise_local_contrast

COARSE, FINE = 4, 2  # pixels that become one
_WINDOW = 11  # of local contrast normalisation
_BACKGROUND = 0.1  # of the pixels: with so many dark ones, an image does not fill its frame
_FLOOR = 1.0  # of the image's variance: below it, noise is not raised to the level of edges
_CHUNK = 32  # images worked on at once


@dataclass(frozen=True, slots=True)
class Sides:
    """Images (N, h, w) at half the resolution, and what registration goes by of each.

    weight, where it counts when poses are estimated; shown, where it is compared afterwards;
    features, the image after local contrast normalisation; coarse (N, h / 2, w / 2), the same at a
    quarter of the resolution; framed (N,), whether the image fills its frame.
    """

    images: Tensor
    weight: Tensor
    shown: Tensor
    features: Tensor
    coarse: Tensor
    framed: Tensor

    def at(self, index: Tensor) -> Self:
        """Return the sides with an index."""
        return type(self)(*(each[index] for each in self.columns))

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The tensors, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @classmethod
    def joined(cls, parts: Sequence[Self], device: str | torch.device = "cpu") -> Self:
        """Join parts, on a device."""
        columns = zip(*(part.columns for part in parts), strict=True)
        return cls(*(torch.cat(column).to(device) for column in columns))


def sides(images: Tensor, framed: Tensor | None = None) -> Sides:
    """Make the sides of standardised images (N, H, W).

    Bars of padding do not count when poses are estimated: they do not move with what an image
    shows. Nor does as much of opposite black bars as can be padding, nor fill, black corners for
    instance, where the training image fills its frame. Where it has a background, the outline of
    what it shows is what tells poses best, and the background counts on both sides: a noisy copy's
    is not flat. `framed` (N,) tells of synthetic images whether the training image beside them
    fills its frame; None: the images are training images.
    """
    if framed is None:
        parts = [_sides(batch, None) for batch in batches(images, _CHUNK)]
    else:
        both = zip(batches(images, _CHUNK), batches(framed, _CHUNK), strict=True)
        parts = [_sides(*each) for each in both]
    return Sides(*(column[: len(images)] for column in Sides.joined(parts, images.device).columns))


def check_images(images: Tensor) -> None:
    """Raise ValueError unless images are (N, H, W) with sides that are multiples of 4."""
    if images.ndim != 3 or any(side % COARSE for side in images.shape[1:]):
        raise ValueError(
            f"images must be (N, H, W) with sides that are multiples of {COARSE}, found "
            f"{tuple(images.shape)}"
        )


def _sides(images: Tensor, framed: Tensor | None) -> Sides:
    images = functional.avg_pool2d(images, FINE)
    dark, flat = dark_and_flat(images)
    padding = padding_of(images)
    bars = padding | dark_margin(images)
    if framed is None:
        framed = (dark & ~bars).sum((1, 2)) < _BACKGROUND * (~bars).sum((1, 2))
    around = dark | flat
    weight = apart_from(bars | (framed[:, None, None] & around))
    features = normalise_local_contrast(images, _WINDOW, _FLOOR, weight)
    coarse = functional.avg_pool2d(features, COARSE // FINE)
    return Sides(images, weight, apart_from(around | padding), features, coarse, framed)
