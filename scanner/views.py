"""A synthetic image is looked at more than once, moved a little, and its best score counts.

    images (N, H, W) -> embeddings of their views (N, V, D)
    views (N, V, D), embeddings of training images (M, D) -> scores (N, M)

The encoder puts an image upright before it embeds it, and puts a copy upright a little differently
from its source, the more so the less it knows of such images. Each view is another chance that
both come to lie alike. Training images are embedded once, as they are. Turns and shifts come in
pairs that mirror each other, so that an image and its flips have one score still.
"""

import math
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from deepssim_scan.encoder import Encoder, embed
from deepssim_scan.transform import read_at

VIEWS = ((0.0, 0.0), (0.0, 0.04), (0.0, -0.04), (6.0, 0.0), (-6.0, 0.0))
"""Degrees by which an image is turned, and the share of its height by which it is moved."""


def embed_views(
    encoder: Encoder, images: Tensor, views: int = len(VIEWS), batch: int = 64
) -> Tensor:
    """Embed the first of `VIEWS` of standardised images: (N, H, W) -> (N, views, D)."""
    return torch.stack([embed(encoder, seen, batch) for seen in _views(images, views)], 1)


def best_scores(views: Tensor, known: Tensor) -> Tensor:
    """Score images, by their best view, with others: (N, V, D), (M, D) -> (N, M)."""
    return reduce(torch.maximum, (view @ known.T for view in views.unbind(1)))


def _views(images: Tensor, views: int) -> Iterator[Tensor]:
    yield images
    for degrees, down in VIEWS[1:views]:
        angle = images.new_full((len(images),), math.radians(degrees))
        shift = images.new_tensor([0, 2 * down]).expand(len(images), 2)
        yield read_at(images, angle, shift)
