"""Test-time augmentation: a synthetic image is embedded in several views, and the best counts.

    images (N, H, W) -> embeddings of their views (N, V, D)
    views (N, V, D), embeddings of training images (M, D) -> scores (N, M)

The encoder is invariant to flips, and learnt to be so to small rotations, shifts and scales. It
takes quarter turns and inverted greys for other images, so a synthetic image is looked at under
each of them. Training images are embedded once, as they are. A view costs a part of every query; on
the side of the index it would cost as much memory as the index has.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from deepssim_scan.encoder.equivariant import written_out
from deepssim_scan.encoder.network import Encoder, embed_turned
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.content import dark_padding
from deepssim_scan.imaging.warp import restandardise


def embed_tta(encoder: Encoder, images: Tensor, views: int = len(TTA_VIEWS)) -> Tensor:
    """Embed the first of `TTA_VIEWS` of standardised images: (N, H, W) -> (N, views, D)."""
    return embed_views(encoder, images, range(views))


def embed_views(encoder: Encoder, images: Tensor, views: Sequence[int]) -> Tensor:
    """Embed some of `TTA_VIEWS`, in their order: (N, H, W) -> (N, len(views), D)."""
    parts = []
    with torch.inference_mode(), written_out(encoder):
        for inverted in (False, True):
            turns = [TTA_VIEWS[view][0] for view in views if TTA_VIEWS[view][1] == inverted]
            if turns:
                greys = _negative(images) if inverted else images
                parts.append(embed_turned(encoder, greys, turns))
        return torch.cat(parts, 1)


def seen(images: Tensor, view: int) -> Tensor:
    """Return standardised images (N, H, W) as they are in one of `TTA_VIEWS`."""
    turns, inverted = TTA_VIEWS[view]
    turned = torch.rot90(images, turns, (1, 2)) if turns else images
    return _negative(turned) if inverted else turned


def _negative(images: Tensor) -> Tensor:
    """Invert the greys of images (N, H, W), and standardise again with padding as ever."""
    padding = dark_padding(images)
    negative = -images
    darkest = negative.masked_fill(padding, torch.inf).amin((1, 2), keepdim=True)
    refilled = restandardise(torch.where(padding, darkest, negative))
    return torch.where(padding.any(1, keepdim=True).any(2, keepdim=True), refilled, negative)


def best_scores(views: Tensor, gallery: Tensor) -> Tensor:
    """Score images, by their best view, with others: (N, V, D), (M, D) -> (N, M)."""
    return reduce(torch.maximum, (view @ gallery.T for view in views.unbind(1)))
