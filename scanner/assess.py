"""What an encoder is worth on images that were not trained on, and the thresholds that fit it.

encoder, images held out -> Assessment; encoder, all images -> Thresholds
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.augment import augment, disguise, other_subject
from deepssim_scan.checkpoint import Thresholds
from deepssim_scan.encoder import Encoder, device_of, embed
from deepssim_scan.pools import Images, Pool, pairs, range_weights
from deepssim_scan.registration import SIDE, register
from deepssim_scan.transform import restandardise
from deepssim_scan.verdicts import proposed

_GALLERY, _QUERIES = 4096, 512  # images of an audit
_VERIFIED = 5  # matches of a stranger that are registered, as `query` does by default
_FALSE = 0.001  # strangers that may pass a threshold
_MISSED = 0.005  # copies that may fall below `similar`


@dataclass(frozen=True, slots=True)
class Assessment:
    """What an encoder reaches on images held out.

    error: mean absolute error of the score against SSIM; right: share of disguised copies whose
    source is their best match; apart: share of them above the score that 1 % of the strangers
    reach, which are other subjects at the same place.
    """

    error: float
    right: float
    apart: float


def assess(encoder: Encoder, pool: Pool, seed: int) -> Assessment:
    """Assess an encoder on a pool, with draws that are the same at every call."""
    generator = Generator(device_of(encoder)).manual_seed(seed)
    images = pool.some(_QUERIES, generator)
    known = embed(encoder, images)
    copies, strangers = (
        embed(encoder, made) @ known.T
        for made in (disguise(images, generator)[0], other_subject(images, generator))
    )
    own = torch.arange(len(images), device=copies.device)
    bound = strangers.amax(1).quantile(0.99)
    return Assessment(
        score_error(encoder, pool, seed),
        float((copies.argmax(1) == own).float().mean()),
        float((copies.amax(1) > bound).float().mean()),
    )


def score_error(encoder: Encoder, pool: Pool, seed: int, batches: int = 4) -> float:
    """Return the mean absolute error of score against SSIM on images not trained on.

    Pairs are made as in training and augmented as in the reference, with draws that are the same
    at every call; every tenth of the SSIM range that occurs counts alike.
    """
    generator = Generator(device_of(encoder)).manual_seed(seed)
    scores, targets = [], []
    for _ in range(batches):
        sources, target = pairs(pool.draw(16, generator), generator)
        embeddings = embed(encoder, augment(sources, generator))
        scores.append((embeddings @ embeddings.T).flatten())
        targets.append(target.flatten())
    score, target = torch.cat(scores), torch.cat(targets)
    weights = range_weights(target)
    return float(((score - target).abs() * weights).sum() / weights.sum())


def fit_thresholds(encoder: Encoder, images: Images, seed: int) -> Thresholds:
    """Choose the default thresholds by playing an audit through, verification included.

    Training images are 4,096 of those trained on. Copies are 512 of them, disguised. Strangers
    are of two kinds: 512 images held out, and pseudo-subjects made of 512 training images.

    `similar` is the score that all but 0.5 % of the copies reach, and at most `duplicate`, which
    the best match of 0.1 % of the strangers passes. As many pass `ssim`, by the strongest of their
    five best matches, registered as in an audit; it is 0.8 at least.
    """
    generator = Generator(device_of(encoder)).manual_seed(seed)
    gallery = images.training.some(_GALLERY, generator)
    copied = gallery[:_QUERIES]
    copies = disguise(copied, generator)[0]
    unseen = images.validation.some(_QUERIES, generator)
    strangers = torch.cat([unseen, other_subject(copied, generator)])
    known = embed(encoder, gallery)
    of_copies = (embed(encoder, copies) * known[: len(copies)]).sum(1)
    nearest = (embed(encoder, strangers) @ known.T).topk(min(_VERIFIED, len(gallery)), 1)
    duplicate = _passed_by_few(nearest.values[:, 0])
    similar = max(min(_floored(of_copies.quantile(_MISSED)), duplicate), -1.0)
    thresholds = Thresholds(similar, duplicate)
    chosen = torch.from_numpy(proposed(nearest.values.cpu().numpy(), thresholds))
    query, rank = chosen.nonzero(as_tuple=True)
    likeness = torch.full(chosen.shape, -1.0)
    likeness[query, rank] = _verified(strangers[query], gallery[nearest.indices[query, rank]]).cpu()
    ssim = max(_passed_by_few(likeness.amax(1)), thresholds.ssim)
    return replace(thresholds, ssim=ssim)


def _passed_by_few(strongest: Tensor) -> float:
    """Return what all but 0.1 % of the strangers stay below, and 1 does not: (S,)."""
    bound = float(strongest.quantile(1 - _FALSE, interpolation="higher"))
    return min(math.ceil(bound * 1000) / 1000, 0.999)


def _verified(synthetic: Tensor, training: Tensor) -> Tensor:
    """Return the SSIM of pairs (P, H, W) once they are registered: (P,)."""
    return register(*(_resized(images) for images in (synthetic, training))).ssim


def _resized(images: Tensor) -> Tensor:
    """Bring images to the size at which an audit registers them, which would pad oblong ones."""
    if images.shape[1:] == (SIDE, SIDE):
        return images
    sized = functional.interpolate(images[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return restandardise(sized[:, 0])


def _floored(value: Tensor | float) -> float:
    return math.floor(float(value) * 1000) / 1000
