"""Test-time augmentation: a synthetic image is embedded in several views, and the best counts.

    images (N, H, W) -> embeddings of their views (N, V, D)
    views (N, V, D), embeddings of training images (M, D) -> scores (N, M)

The encoder canonicalises an image before it embeds it, and a copy not quite as its source, the less
so the less the images resemble those that it was trained on. Each view is another chance that
both are canonicalised alike. Training images are embedded once, as they are. Rotations and shifts
come in pairs of opposite sign, so that an image and its flips have the same scores.
"""

import math
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from deepssim_scan.encoder.equivariant import written_out
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.warp import read_at


def embed_tta(
    encoder: Encoder, images: Tensor, views: int = len(TTA_VIEWS), batch: int = 64
) -> Tensor:
    """Embed the first of `TTA_VIEWS` of standardised images: (N, H, W) -> (N, views, D)."""
    with torch.inference_mode(), written_out(encoder):
        return torch.stack([embed(encoder, view, batch) for view in _views(images, views)], 1)


def best_scores(views: Tensor, gallery: Tensor) -> Tensor:
    """Score images, by their best view, with others: (N, V, D), (M, D) -> (N, M)."""
    return reduce(torch.maximum, (view @ gallery.T for view in views.unbind(1)))


def _views(images: Tensor, views: int) -> Iterator[Tensor]:
    yield images
    for degrees, down in TTA_VIEWS[1:views]:
        angle = images.new_full((len(images),), math.radians(degrees))
        shift = images.new_tensor([0, 2 * down]).expand(len(images), 2)
        yield read_at(images, angle, shift)
