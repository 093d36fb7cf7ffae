"""What images show, and what is only around it: padding, fill and black background.

images (B, H, W) -> masks (B, H, W)
"""

import torch
from torch import Tensor

_ONE = 1e-5  # of the range: greys no further apart are one
_PADDED = 0.02  # of the range above the darkest grey, at least, is a bar of padding
_FLAT, _DARK_FLAT = 0.003, 0.02  # of an image's range: 3 x 3 pixels with less contrast are flat,
_DARK = 0.05  # the greater one where they are so dark, since a black background has noise


def padding_of(images: Tensor) -> Tensor:
    """Tell which pixels are bars of padding: (B, H, W) -> bool.

    Bars are rows or columns at the edges that hold one grey. A dark one may be background, into
    which an image can be moved, unless it is `dark_padding`.
    """
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    padding = dark_padding(images)
    for dim in (1, 2):
        least, most = images.amin(dim, keepdim=True), images.amax(dim, keepdim=True)
        one_grey = most - least <= _ONE * (high - low)
        first, last = _from_edges(one_grey & (least > low + _PADDED * (high - low)), 3 - dim)
        padding |= first | last
    return padding


def dark_padding(images: Tensor) -> Tensor:
    """Tell which pixels are what `standardise` adds to an oblong image: (B, H, W) -> bool.

    That is two bars of the darkest grey, opposite each other, as wide but for a pixel, and none
    beside them. Bars on every side are a black background.
    """
    rows, columns = _dark_bars(images)
    wide = [[bar.sum((1, 2), keepdim=True) for bar in bars] for bars in (rows, columns)]
    alike = [(first - last).abs() <= 1 for first, last in wide]
    none = [first + last == 0 for first, last in wide]
    above_and_below = (rows[0] | rows[1]) & alike[0] & none[1]
    return above_and_below | ((columns[0] | columns[1]) & alike[1] & none[0])


def dark_margin(images: Tensor) -> Tensor:
    """Tell which pixels can be `dark_padding` into which a background runs: (B, H, W) -> bool.

    Of opposite bars of the darkest grey, that is as much as the narrower one has, and a pixel.
    """
    margin = torch.zeros_like(images, dtype=torch.bool)
    for dim, (first, last) in enumerate(_dark_bars(images), 1):
        width = torch.minimum(first.sum((1, 2)), last.sum((1, 2)))[:, None, None] + 1
        from_first, from_last = (bar.long().cumsum(dim) for bar in (first, last.flip(dim)))
        margin |= (first & (from_first <= width)) | (last & (from_last.flip(dim) <= width))
    return margin


def _dark_bars(images: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the first and the last rows (B, H, 1) of the darkest grey, and columns (B, 1, W)."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    darkest = images <= low + _ONE * (high - low)
    above, below = _from_edges(darkest.all(2, keepdim=True), 1)
    left, right = _from_edges(darkest.all(1, keepdim=True), 2)
    return (above, below), (left, right)


def _from_edges(bars: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return what is connected to the first, and to the last, along a dimension of masks."""
    first = bars.long().cumprod(dim) > 0
    last = bars.flip(dim).long().cumprod(dim).flip(dim) > 0
    return first, last


def dark_and_flat(images: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which pixels are of a black background, with its noise, and which are of a flat part.

    (B, H, W) -> bool twice. Padding and fill are flat.
    """
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    level = (images - low) / (high - low).clamp_min(1e-6)
    contrast = highest_near(level) + highest_near(-level)
    return (contrast <= _DARK_FLAT) & (level < _DARK), contrast <= _FLAT


def highest_near(images: Tensor) -> Tensor:
    """Return the highest of each pixel and its eight neighbours: (B, H, W) -> the same shape.

    Several times faster on a CPU than `max_pool2d`.
    """
    for dim in (1, 2):
        length = images.shape[dim] - 1
        spread = images.clone()
        for to, of in ((0, 1), (1, 0)):
            target = spread.narrow(dim, to, length)
            torch.maximum(target, images.narrow(dim, of, length), out=target)
        images = spread
    return images


def apart_from(masks: Tensor) -> Tensor:
    """Return 0 in masks and within two pixels of them, else 1: (B, H, W) bool -> float."""
    return 1 - highest_near(highest_near(masks.float()))
