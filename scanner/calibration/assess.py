"""What an encoder is worth on images that it was not trained on.

encoder, images held out -> Assessment
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deepssim_scan.encoder.network import Encoder, device_of, embed
from deepssim_scan.encoder.tta import best_scores, embed_tta
from deepssim_scan.imaging.changes.augment import augment, other_subject, simulate_copy
from deepssim_scan.imaging.image_set import ImageSet, pairs, range_weights

_QUERIES = 512  # copies, and as many non-members, at most
_DRAWN = 16  # images from which the pairs of a batch are made


@dataclass(frozen=True, slots=True)
class Assessment:
    """What an encoder reaches on images held out.

    mae: mean absolute error of the score against SSIM.
    recall_at_1: share of simulated copies whose source is their best match.
    tpr_at_1_fpr: share of the copies above the score that 1 % of non-members reach; non-members are
    other subjects in place of the images.
    """

    mae: float
    recall_at_1: float
    tpr_at_1_fpr: float


def assess(encoder: Encoder, images: ImageSet, seed: int) -> Assessment:
    """Assess an encoder on its device; the same images and seed give the same draws."""
    generator = Generator(device_of(encoder)).manual_seed(seed)
    members = images.some(_QUERIES, generator)
    gallery = embed(encoder, members)
    copies = best_scores(embed_tta(encoder, simulate_copy(members, generator)[0]), gallery)
    others = best_scores(embed_tta(encoder, other_subject(members, generator)), gallery)
    sources = torch.arange(len(members), device=copies.device)
    bound = others.amax(1).quantile(0.99)
    return Assessment(
        score_mae(encoder, images, seed),
        _share(copies.argmax(1) == sources),
        _share(copies.amax(1) > bound),
    )


def score_mae(encoder: Encoder, images: ImageSet, seed: int, batches: int = 4) -> float:
    """Return the mean absolute error of the score against SSIM.

    Pairs are made as in training, and each image is augmented as in the reference, with the same
    draws at every call. Every tenth of the SSIM range that occurs has the same weight.
    """
    generator = Generator(device_of(encoder)).manual_seed(seed)
    scores, targets = [], []
    for _ in range(batches):
        sources, target = pairs(images.draw(_DRAWN, generator), generator)
        embeddings = embed(encoder, augment(sources, generator))
        scores.append((embeddings @ embeddings.T).flatten())
        targets.append(target.flatten())
    score, target = torch.cat(scores), torch.cat(targets)
    weights = range_weights(target)
    return float(((score - target).abs() * weights).sum() / weights.sum())


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())
